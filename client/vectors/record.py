#!/usr/bin/env python3
"""Writes the recorded message streams of this directory, and the maps that the Python client makes of them.

The streams are made by hand, so that they hold what a real one seldom does; README.md lists it. Nothing
is random: running this again changes a byte only where the API or the client's assembly has changed.
"""

import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from google.protobuf.proto import parse_length_prefixed, serialize_length_prefixed
from numpy.typing import ArrayLike, NDArray

from vitrail.explanation import Explanation, ended, receive
from vitrail.v1 import explanation_pb2 as pb

DIRECTORY = Path(__file__).parent

UNKNOWN_FIELD = b"\xc2\x3e\x08tomorrow"
"""Field 1000, a string: what a newer server may add to any message."""

EDGE_CASES = np.array([0x7FC00001, 0xFFC12345, 0x7F800001, 0x80000000, 0x7F800000, 0x00000001], "<u4")
"""Two NaNs with payloads, one that signals, -0, infinity, the smallest number: to be copied bit by bit."""


def main() -> None:
    """Write every stream and every map."""
    refused = DIRECTORY / "refused"
    refused.mkdir(exist_ok=True)
    for name, messages in accepted_streams().items():
        (DIRECTORY / f"{name}.stream").write_bytes(recorded(messages))
        (DIRECTORY / f"{name}.f32").write_bytes(assembled(recorded(messages)).values.astype("<f4").tobytes())
    for name, stream in refused_streams().items():
        (refused / f"{name}.stream").write_bytes(stream)


def accepted_streams() -> dict[str, list[pb.ExplainTilesResponse]]:
    """Return the streams that every client must assemble, by name."""
    plan = planned(gradient_plan((1, 2, 3)))
    return {
        "occlusion": partial_occlusion(),
        "channels": gradient_with_channels(),
        # No tile at all, and a summary with nothing but an outcome that is not invented yet.
        "bare": [plan, summarised(pb.Summary(completion=9))],  # type: ignore[arg-type]  # unknown on purpose
    }


def partial_occlusion() -> list[pb.ExplainTilesResponse]:
    """Return a map of two targets, 5 x 7 pixels, whose last row never gets a value."""
    messages = [
        planned(occlusion_plan((2, 5, 7), ("espresso", "cup"), evaluations=13)),
        tiled(0, 0, ramp((2, 3, 4), 100), done=2),
        tiled(1, 2, ramp((1, 3, 5), 200), first_target=1, done=4),
        tiled(1, 2, ramp((1, 3, 5), 300), done=4),
        tiled(3, 6, ramp((2, 1, 1), 400), done=5),
        tiled(0, 0, ramp((2, 2, 7), 500), done=8, final=True),
        tiled(2, 1, EDGE_CASES.view("<f4").reshape(1, 1, 6), done=9, final=True),
        tiled(2, 0, ramp((1, 2, 3), 600), first_target=1, done=9),
        tiled(3, 0, ramp((1, 1, 1), 700), done=9, final=True),
        summarised(
            pb.Summary(
                completion=pb.Summary.COMPLETION_PARTIAL,
                partial_reason=pb.Summary.PARTIAL_REASON_TIME_BUDGET,
                measured_fraction=0.75,
                evaluated_windows=b"\xff\x01",
                evaluations=pb.Evaluations(done=8, skipped=1, dropped=4),
                total_seconds=0.5,
            )
        ),
    ]
    for message in messages:
        for _, body in message.ListFields():
            body.MergeFromString(UNKNOWN_FIELD)
        message.MergeFromString(UNKNOWN_FIELD)
    return messages


def gradient_with_channels() -> list[pb.ExplainTilesResponse]:
    """Return a map of one target, 3 x 4 pixels and 2 channels."""
    return [
        planned(gradient_plan((1, 3, 4, 2))),
        tiled(0, 0, ramp((1, 2, 4, 2), 0), done=1),
        tiled(1, 1, ramp((1, 2, 3, 2), 50), done=1, final=True),
        tiled(2, 0, ramp((1, 1, 1, 2), 80), done=1, final=True),
        summarised(complete(evaluations=1)),
    ]


def refused_streams() -> dict[str, bytes]:
    """Return the recordings that no client may accept, by name: each breaks one rule."""
    plan = planned(gradient_plan((1, 3, 4)))
    tile = tiled(0, 0, ramp((1, 3, 4), 0), done=1, final=True)
    summary = summarised(complete(evaluations=1))
    broken_orders: dict[str, list[pb.ExplainTilesResponse]] = {
        "empty": [],
        "plan_missing": [tile, summary],
        "plan_twice": [plan, plan, tile, summary],
        "summary_missing": [plan, tile],
        "tile_after_summary": [plan, tile, summary, tile],
        "event_unknown": [plan, unknown_event(), summary],
    }
    broken_tiles = {
        "tile_below_the_map": tiled(1, 0, ramp((1, 3, 4), 0)),
        "tile_right_of_the_map": tiled(0, 3, ramp((1, 3, 2), 0)),
        "tile_of_no_target": tiled(0, 0, ramp((1, 3, 4), 0), first_target=1),
        "tile_of_too_many_targets": tiled(0, 0, ramp((2, 3, 4), 0)),
        "tile_without_rows": tiled(0, 0, np.zeros((1, 0, 4))),
        # Where row + height is computed in 32 bits, it is 2 and seems to fit.
        "tile_row_overflows": tiled(2**32 - 1, 0, ramp((1, 3, 4), 0)),
        "tile_first_target_overflows": tiled(0, 0, ramp((2, 3, 4), 0), first_target=2**32 - 1),
        "tile_values_short": cut_short(tile),
    }
    broken_shapes = {
        "map_without_channels": (1, 3, 4, 0),
        "map_of_two_dimensions": (3, 4),
        "map_of_another_target_count": (2, 3, 4),
        # The product is 0 where it is computed in 64 bits.
        "map_size_overflows": (1, 2**32, 2**32),
    }
    return {
        **{name: recorded(messages) for name, messages in broken_orders.items()},
        **{name: recorded([plan, broken, summary]) for name, broken in broken_tiles.items()},
        **{name: recorded([with_shape(shape), summary]) for name, shape in broken_shapes.items()},
        "recording_cut_off": recorded([plan, tile, summary])[:-1],
        # A group that is never opened: no message begins like this.
        "message_garbled": recorded([plan]) + b"\x02\x0c\x0c" + recorded([summary]),
    }


def recorded(messages: Sequence[pb.ExplainTilesResponse]) -> bytes:
    """Return messages as a recording has them: each after its length."""
    output = io.BytesIO()
    for message in messages:
        serialize_length_prefixed(message, output)
    return output.getvalue()


def replayed(recording: bytes) -> Iterator[pb.ExplainTilesResponse]:
    """Yield the messages of a recording."""
    stream = io.BytesIO(recording)
    while stream.tell() < len(recording):
        yield parse_length_prefixed(pb.ExplainTilesResponse, stream)


def assembled(recording: bytes) -> Explanation:
    """Return what the Python client makes of a recording.

    Raises:
        Internal: the messages break a rule.

    """
    explanation = None
    for message in replayed(recording):
        explanation = receive(explanation, message, pb.Image())
    ended(explanation)
    assert explanation is not None  # noqa: S101 - `ended` has refused that
    return explanation


def ramp(shape: tuple[int, ...], first: float) -> NDArray[np.float32]:
    """Return first, first + 0.25, first + 0.5, ... in this shape."""
    return (first + 0.25 * np.arange(np.prod(shape))).astype("<f4").reshape(shape)


def occlusion_plan(shape: tuple[int, ...], labels: tuple[str, ...], evaluations: int) -> pb.Plan:
    """Return the plan of an occlusion: one target per label."""
    return pb.Plan(
        model_name="net",
        model_version=3,
        output_name="probabilities",
        targets=[
            pb.ResolvedTarget(index=960 + k, label=label, output=0.75 - 0.5 * k, score=0.75 - 0.5 * k)
            for k, label in enumerate(labels)
        ],
        objective=pb.Objective(kind=pb.Objective.KIND_OUTPUT),
        occlusion=pb.Occlusion(
            patch=pb.Extent(rows=2, columns=2),
            stride=pb.Extent(rows=2, columns=2),
            fill=pb.Fill(constant=0.5),
            edge=pb.Occlusion.EDGE_CLIP,
            window_score=pb.Occlusion.WINDOW_SCORE_SIGNED,
            resolution=pb.Occlusion.RESOLUTION_PIXELS,
            order=pb.Occlusion.ORDER_PROGRESSIVE,
        ),
        map_shape=shape,
        window_grid=pb.WindowGrid(rows=3, columns=4),
        evaluations=evaluations,
        execution=pb.Plan.EXECUTION_FULL,
        source_box=pb.SourceBox(height=5.0, width=7.0),
        warnings=[
            pb.Warning(kind=pb.Warning.KIND_SATURATED, message="the probability of espresso is close to 1")
        ],
        priority=100,
    )


def gradient_plan(shape: tuple[int, ...]) -> pb.Plan:
    """Return the plan of a gradient with one target that has no label."""
    channels = (
        pb.Gradient.CHANNEL_REDUCTION_NONE if len(shape) == 4 else pb.Gradient.CHANNEL_REDUCTION_MAX_ABS
    )
    return pb.Plan(
        model_name="net",
        model_version=3,
        output_name="probabilities",
        targets=[pb.ResolvedTarget(index=7, output=-1.5, score=2.25)],
        objective=pb.Objective(kind=pb.Objective.KIND_SQUARED_ERROR, values=[0.0]),
        gradient=pb.Gradient(channel_reduction=channels),
        map_shape=shape,
        evaluations=1,
        execution=pb.Plan.EXECUTION_FULL,
        priority=100,
    )


def complete(evaluations: int) -> pb.Summary:
    """Return the summary of a whole map."""
    return pb.Summary(
        completion=pb.Summary.COMPLETION_COMPLETE,
        measured_fraction=1.0,
        evaluations=pb.Evaluations(done=evaluations),
        total_seconds=0.5,
    )


def planned(plan: pb.Plan) -> pb.ExplainTilesResponse:
    """Return the message that carries a plan."""
    return pb.ExplainTilesResponse(plan=plan)


def tiled(
    row: int, column: int, values: ArrayLike, *, first_target: int = 0, done: int = 0, final: bool = False
) -> pb.ExplainTilesResponse:
    """Return the message that carries the tile with `values` (targets, height, width[, channels])."""
    array = np.asarray(values, "<f4")
    tile = pb.Tile(
        row=row,
        column=column,
        height=array.shape[1],
        width=array.shape[2],
        first_target=first_target,
        target_count=array.shape[0],
        values=array.tobytes(),
        evaluations_done=done,
        final=final,
    )
    return pb.ExplainTilesResponse(tile=tile)


def summarised(summary: pb.Summary) -> pb.ExplainTilesResponse:
    """Return the message that carries a summary."""
    return pb.ExplainTilesResponse(summary=summary)


def with_shape(shape: tuple[int, ...]) -> pb.ExplainTilesResponse:
    """Return the message that carries a plan with this map shape."""
    return planned(gradient_plan(shape))


def cut_short(message: pb.ExplainTilesResponse) -> pb.ExplainTilesResponse:
    """Return a tile's message without the last value."""
    short = pb.ExplainTilesResponse()
    short.CopyFrom(message)
    short.tile.values = message.tile.values[:-4]
    return short


def unknown_event() -> pb.ExplainTilesResponse:
    """Return a message whose event this version of the API does not have."""
    return pb.ExplainTilesResponse.FromString(UNKNOWN_FIELD)


if __name__ == "__main__":
    main()
