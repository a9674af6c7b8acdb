"""Rows of docs/clients/conformance.md: what a stream of tiles is, and the map that it makes."""

import asyncio
import math
from pathlib import Path

import numpy as np
import pytest

from conformance.api import (
    MIB,
    Connection,
    Gradient,
    Occlusion,
    Plan,
    Spec,
    Summary,
    Tile,
    Tiles,
    Whole,
    gradient,
    occlusion,
    read_tiles,
    refused,
    spec,
    targets,
    time_budget,
)
from conformance.models import IMAGE, SHAPE, WEIGHTS, WIDE_SHAPE, gated
from conformance.wire import Message, content, double, number
from fakes.serving import served

pytestmark = pytest.mark.asyncio(loop_scope="module")

METHODS = {
    "gradient": gradient(),
    "channels": gradient(number(Gradient.SIGNED, 1), number(Gradient.CHANNEL_REDUCTION, Gradient.NONE)),
    "occlusion": occlusion(3, 2),
    "progressive": occlusion(3, 1, number(Occlusion.ORDER, Occlusion.PROGRESSIVE)),
    "windows": occlusion(2, 2, number(Occlusion.RESOLUTION, Occlusion.WINDOWS)),
}
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


@every_method
async def test_one_plan_then_tiles_then_one_summary(wire: Connection, method: bytes) -> None:
    messages = [Message.of(each) async for each in wire.tiles(spec("softmax", IMAGE), method)]

    events = [[kind for kind in (Tiles.PLAN, Tiles.TILE, Tiles.SUMMARY) if kind in each] for each in messages]
    assert events == [[Tiles.PLAN], *[[Tiles.TILE]] * (len(messages) - 2), [Tiles.SUMMARY]]
    assert len(messages) > 2


@every_method
async def test_every_tile_lies_inside_the_map_and_has_all_its_values(wire: Connection, method: bytes) -> None:
    explained = await wire.explained(spec("softmax", IMAGE), method, targets(2, 0))

    assert explained.shape[0] == len(explained.plan.messages(Plan.TARGETS)) == 2
    for tile in explained.tiles:
        for part, side in zip(explained.area(tile), explained.shape, strict=False):
            assert 0 <= part.start < part.stop <= side
        covered = [tile.number(each) for each in (Tile.TARGET_COUNT, Tile.HEIGHT, Tile.WIDTH)]
        assert len(tile.bytes(Tile.VALUES)) == 4 * math.prod(covered) * math.prod(explained.shape[3:])


@every_method
async def test_pasting_the_tiles_gives_the_map_of_the_unary_call(wire: Connection, method: bytes) -> None:
    explained = await wire.explained(spec("softmax", IMAGE), method, targets(1, 0, 2))
    whole = Message.of(await wire.whole(spec("softmax", IMAGE), method, targets(1, 0, 2)))

    assert explained.map().tobytes() == whole.bytes(Whole.VALUES)
    assert whole.message(Whole.PLAN) == explained.plan
    assert whole.message(Whole.SUMMARY).number(Summary.COMPLETION) == Summary.COMPLETE


@every_method
async def test_what_a_final_tile_covered_does_not_change(wire: Connection, method: bytes) -> None:
    explained = await wire.explained(spec("softmax", IMAGE), method)

    values = np.full(explained.shape, math.nan, np.float32)
    final = np.zeros(explained.shape, np.bool_)
    for tile in explained.tiles:
        area = explained.area(tile)
        settled = final[area]
        assert (values[area][settled] == explained.values(tile)[settled]).all()
        values[area] = explained.values(tile)
        final[area] |= bool(tile.number(Tile.FINAL))
    assert final.all()


@every_method
async def test_a_complete_map_has_a_value_everywhere(wire: Connection, method: bytes) -> None:
    explained = await wire.explained(spec("softmax", IMAGE), method)

    assert explained.summary.number(Summary.COMPLETION) == Summary.COMPLETE
    assert explained.summary.number(Summary.PARTIAL_REASON) == 0
    assert explained.summary.float(Summary.MEASURED_FRACTION) == 1.0
    assert not np.isnan(explained.map()).any()


async def test_values_are_little_endian_floats_in_row_major_order(wire: Connection) -> None:
    explained = await wire.explained(spec("linear", IMAGE), METHODS["channels"])

    expected = WEIGHTS.astype("<f4")  # the gradient of a linear model is its weights
    assert explained.shape == expected.shape == (3, *SHAPE)
    assert explained.map().tobytes() == expected.tobytes()


@every_method
async def test_the_same_request_gives_the_same_bits(wire: Connection, method: bytes) -> None:
    first, second = await asyncio.gather(*[wire.explained(spec("softmax", IMAGE), method) for _ in range(2)])

    assert first.map().tobytes() == second.map().tobytes()


@every_method
async def test_evaluations_done_only_grow_and_end_at_those_announced(wire: Connection, method: bytes) -> None:
    explained = await wire.explained(spec("softmax", IMAGE), method)

    done = [tile.number(Tile.EVALUATIONS_DONE) for tile in explained.tiles]
    assert done == sorted(done)
    assert done[-1] == explained.plan.number(Plan.EVALUATIONS)


async def test_announced_evaluations_are_done_skipped_or_dropped(wire: Connection) -> None:
    image = IMAGE.copy()
    image[:3] = 0  # the upper windows already show the fill
    fill = content(Occlusion.FILL, double(Occlusion.FILL_CONSTANT, 0.0))

    explained = await wire.explained(spec("linear", image), occlusion(3, 3, fill))

    evaluations = explained.summary.message(Summary.EVALUATIONS)
    done, skipped, dropped = map(evaluations.number, (Summary.DONE, Summary.SKIPPED, Summary.DROPPED))
    assert (done, skipped, dropped) == (4, 3, 0)
    assert done + skipped + dropped == explained.plan.number(Plan.EVALUATIONS)


async def test_a_time_budget_ends_with_a_partial_map_that_says_what_it_lacks(tmp_path: Path) -> None:
    offers, gate = gated()
    async with served(tmp_path, offers) as server:
        call = Connection(server.channel).tiles(
            spec("linear", IMAGE), occlusion(1, 1), time_budget(0, 500_000_000)
        )
        await gate.reached(1)
        await asyncio.sleep(0.5)  # the budget runs by the clock
        gate.open()
        explained = read_tiles([message async for message in call])

    summary = explained.summary
    bitmap = summary.bytes(Summary.EVALUATED_WINDOWS)
    evaluated = np.unpackbits(np.frombuffer(bitmap, np.uint8), bitorder="little")[: 6 * 8].reshape(6, 8)
    evaluations = summary.message(Summary.EVALUATIONS)
    assert summary.number(Summary.COMPLETION) == Summary.PARTIAL
    assert summary.number(Summary.PARTIAL_REASON) == Summary.TIME_BUDGET
    assert 0 < summary.float(Summary.MEASURED_FRACTION) == evaluated.mean() < 1
    assert evaluations.number(Summary.DROPPED) == (evaluated == 0).sum()
    assert (np.isnan(explained.map()) == (evaluated == 0)).all()  # a window is a pixel here


async def test_the_plan_names_every_value_that_is_really_used(wire: Connection) -> None:
    patch = content(Occlusion.PATCH, number(Occlusion.ROWS, 3), number(Occlusion.COLUMNS, 4))
    plan = (await wire.explained(spec("linear", IMAGE), content(Spec.OCCLUSION, patch))).plan

    used = plan.message(Plan.OCCLUSION)
    fill = used.message(Occlusion.FILL)
    stride, grid, box = (
        used.message(Occlusion.STRIDE),
        plan.message(Plan.WINDOW_GRID),
        plan.message(Plan.SOURCE_BOX),
    )
    assert plan.text(Plan.MODEL_NAME) == "linear"
    assert plan.number(Plan.MODEL_VERSION) == 1
    assert [each.number(Plan.TARGET_INDEX) for each in plan.messages(Plan.TARGETS)] == [0, 1, 2]
    assert plan.message(Plan.OBJECTIVE).number(Plan.OBJECTIVE_KIND) == Plan.KIND_OUTPUT
    assert (stride.number(Occlusion.ROWS), stride.number(Occlusion.COLUMNS)) == (3, 4)
    assert (fill.float(Occlusion.FILL_CONSTANT), Occlusion.FILL_CONSTANT in fill) == (0.0, True)
    for field in (Occlusion.EDGE, Occlusion.WINDOW_SCORE, Occlusion.RESOLUTION, Occlusion.ORDER):
        assert used.number(field) == 1
    assert (grid.number(Plan.GRID_ROWS), grid.number(Plan.GRID_COLUMNS)) == (2, 2)
    assert (box.float(Plan.BOX_HEIGHT), box.float(Plan.BOX_WIDTH)) == SHAPE[:2]
    assert plan.number(Plan.PRIORITY) == 100
    assert plan.number(Plan.EVALUATIONS) == 5


async def test_no_message_of_a_stream_is_larger_than_a_mebibyte(wire: Connection) -> None:
    image = np.zeros(WIDE_SHAPE, np.float32)
    messages = [message async for message in wire.tiles(spec("wide", image), gradient())]

    assert read_tiles(messages).map().nbytes > 2 * MIB
    assert max(map(len, messages)) <= MIB


async def test_the_unary_call_refuses_a_larger_map(wire: Connection) -> None:
    refusal = await refused(wire.whole(spec("wide", np.zeros(WIDE_SHAPE, np.float32)), gradient()))

    assert refusal.name == "RESOURCE_EXHAUSTED"
    assert "ExplainTiles" in refusal.message
