package main

// A map, as it is assembled from the messages of its stream. Nothing here does I/O.

import (
	"bytes"
	"fmt"

	vitrailpb "vitrail/v1"
)

// maxMapBytes is the largest map that is taken.
const maxMapBytes = 1 << 30

// nan is a quiet NaN, little-endian.
var nan = []byte{0x00, 0x00, 0xc0, 0x7f}

// explanation is the map of one image: one plan, then tiles, then one summary.
type explanation struct {
	plan    *vitrailpb.Plan
	summary *vitrailpb.Summary
	// values is the map as it is on the wire: little-endian float32, row-major, NaN where no value
	// has arrived.
	values          []byte
	tiles           uint32
	evaluationsDone uint64
	// The map's sides; without a channel reduction there are several channels.
	targets, rows, columns, channels uint64
}

// receive takes in the next message; the error is a *failure if it has no place here.
func (e *explanation) receive(message *vitrailpb.ExplainTilesResponse) error {
	kind := "message that this client does not know"
	switch message.Event.(type) {
	case *vitrailpb.ExplainTilesResponse_Plan:
		kind = "plan"
	case *vitrailpb.ExplainTilesResponse_Tile:
		kind = "tile"
	case *vitrailpb.ExplainTilesResponse_Summary:
		kind = "summary"
	}
	switch {
	case e.summary != nil:
		return refused("a %s after the summary", kind)
	case e.plan == nil && kind == "plan":
		return e.begin(message.GetPlan())
	case e.plan == nil:
		return refused("a %s before the plan", kind)
	case kind == "tile":
		return e.paste(message.GetTile())
	case kind == "summary":
		e.finish(message.GetSummary())
		return nil
	}
	return refused("a %s between the plan and the summary", kind)
}

// end checks that a stream which has ended was whole.
func (e *explanation) end() error {
	if e.summary == nil {
		return refused("no summary")
	}
	return nil
}

func (e *explanation) begin(plan *vitrailpb.Plan) error {
	shape := append([]int64{}, plan.GetMapShape()...)
	if len(shape) == 3 {
		shape = append(shape, 1)
	}
	if len(shape) != 4 || shape[0] != int64(len(plan.GetTargets())) {
		return refused("a map of shape %v for %d targets", plan.GetMapShape(), len(plan.GetTargets()))
	}
	size := int64(4)
	for _, side := range shape {
		if side < 1 || side > maxMapBytes/size {
			return refused("a map of shape %v; its sides must be 1 or more and its bytes at most %d",
				plan.GetMapShape(), maxMapBytes)
		}
		size *= side
	}
	e.targets, e.rows, e.columns, e.channels =
		uint64(shape[0]), uint64(shape[1]), uint64(shape[2]), uint64(shape[3])
	e.values = bytes.Repeat(nan, int(size/4))
	e.plan = plan
	return nil
}

// paste is the paste rule: a tile's values replace what was there. Bytes are copied, so no bit changes.
func (e *explanation) paste(tile *vitrailpb.Tile) error {
	firstTarget, targets := uint64(tile.GetFirstTarget()), uint64(tile.GetTargetCount())
	top, rows := uint64(tile.GetRow()), uint64(tile.GetHeight())
	left, columns := uint64(tile.GetColumn()), uint64(tile.GetWidth())
	from := tile.GetValues()
	fits := within(firstTarget, targets, e.targets) && within(top, rows, e.rows) && within(left, columns, e.columns)
	line := 4 * e.channels * columns
	if !fits || uint64(len(from)) != targets*rows*line {
		return refused("%s, which does not fit its map of shape %v", describe(tile), e.plan.GetMapShape())
	}
	for target := firstTarget; target < firstTarget+targets; target++ {
		for row := top; row < top+rows; row++ {
			to := 4 * e.channels * ((target*e.rows+row)*e.columns + left)
			copy(e.values[to:to+line], from)
			from = from[line:]
		}
	}
	e.tiles++
	if done := tile.GetEvaluationsDone(); done > e.evaluationsDone {
		e.evaluationsDone = done
	}
	return nil
}

func (e *explanation) finish(summary *vitrailpb.Summary) {
	e.summary = summary
	e.evaluationsDone = summary.GetEvaluations().GetDone() + summary.GetEvaluations().GetSkipped()
}

func within(first, count, size uint64) bool {
	return count >= 1 && first+count <= size
}

func describe(tile *vitrailpb.Tile) string {
	return fmt.Sprintf("a tile of %d targets from %d on, %d rows from %d and %d columns from %d with %d bytes",
		tile.GetTargetCount(), tile.GetFirstTarget(), tile.GetHeight(), tile.GetRow(), tile.GetWidth(),
		tile.GetColumn(), len(tile.GetValues()))
}
