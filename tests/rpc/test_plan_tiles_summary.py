"""The contract of a streamed map: one plan with what is really used, tiles to paste, one summary."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import pytest_asyncio
from google.protobuf.duration_pb2 import Duration
from numpy.typing import NDArray

from explainers import brute_force
from fakes.models import Linear, Quadratic, Softmax, picture, weights
from fakes.servables import describe
from fakes.serving import Gate, Offer, Served, served
from fakes.wide import Plain
from vitrail.v1 import explanation_pb2 as pb
from vitrail.v1.tensor_pb2 import Precision
from vitrail_server.servable import Capabilities
from vitrail_server.work import Kind

from .messages import (
    MIB,
    Received,
    bits,
    by_id,
    event_of,
    extent,
    indices,
    label,
    occlusion,
    received,
    refused,
    spec,
    start,
    tensor,
    whole,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

SHAPE = (7, 9, 3)
IMAGE = picture(0, SHAPE)
GREY_SHAPE = (10, 7, 1)
GREY = picture(1, GREY_SHAPE)
LABELS = ("tench", "goldfish", "shark", "ray")

SCORES = Softmax(weights(1, 4, SHAPE))
WIDTHS = Quadratic(weights(2, 2, GREY_SHAPE))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fakes(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    scores = describe(
        SHAPE, 4, task="CLASSIFICATION", labels=LABELS, probabilities=True, fill=(0.5, 0.25, 0.125)
    )
    offers = {
        "scores": Offer(model=SCORES, description=scores, versions=(1, 3), config=BOTH),
        "widths": Offer(model=WIDTHS, description=describe(GREY_SHAPE, 2, fill=(0.5,)), batch_size=5),
        "noisy": Offer(
            model=WIDTHS,
            description=describe(GREY_SHAPE, 2, capabilities=Capabilities(non_deterministic=True)),
        ),
        "large": Offer(model=Plain((300, 301, 3), 3)),
        "square": Offer(model=Plain((512, 512, 1), 1)),
    }
    async with served(tmp_path_factory.mktemp("contract"), offers) as running:
        yield running


BOTH = """
version_policy { all {} }
parameters { key: "vitrail.version_labels" value { string_value: "old=1" } }
"""


async def ask(running: Served, model: str, image: NDArray[Any], **further: Any) -> Received:
    request = pb.ExplainTilesRequest(spec=spec(model, image, **further))
    return await whole(running.explanations.ExplainTiles(request))


async def ask_unary(running: Served, model: str, image: NDArray[Any], **further: Any) -> NDArray[np.float32]:
    answer = await running.explanations.Explain(pb.ExplainRequest(spec=spec(model, image, **further)))
    return np.frombuffer(answer.values, "<f4").reshape(tuple(answer.plan.map_shape))


async def test_a_plan_names_every_default_that_is_used_for_an_occlusion(fakes: Served) -> None:
    answer = await ask(fakes, "scores", IMAGE, occlusion=pb.Occlusion(patch=extent(3, 4)))
    outputs = SCORES.outputs(IMAGE.astype(np.float64))
    top = int(outputs.argmax())
    (target,) = answer.plan.targets

    assert (target.index, target.label) == (top, LABELS[top])
    assert target.output == target.score == np.float32(outputs[top])
    answer.plan.ClearField("targets")
    assert answer.plan == pb.Plan(
        model_name="scores",
        model_version=3,
        output_name="scores",
        objective=pb.Objective(kind=pb.Objective.KIND_OUTPUT),
        occlusion=pb.Occlusion(
            patch=extent(3, 4),
            stride=extent(3, 4),
            fill=pb.Fill(channels=pb.ChannelValues(values=[0.5, 0.25, 0.125])),
            edge=pb.Occlusion.EDGE_CLIP,
            window_score=pb.Occlusion.WINDOW_SCORE_SIGNED,
            resolution=pb.Occlusion.RESOLUTION_PIXELS,
            order=pb.Occlusion.ORDER_RASTER,
        ),
        map_shape=[1, 7, 9],
        window_grid=pb.WindowGrid(rows=3, columns=3),
        evaluations=10,
        execution=pb.Plan.EXECUTION_FULL,
        source_box=pb.SourceBox(height=7, width=9),
        priority=100,
        precision=Precision.PRECISION_FP32,
    )


async def test_a_plan_names_every_default_that_is_used_for_a_gradient(fakes: Served) -> None:
    answer = await ask(fakes, "widths", GREY, gradient=pb.Gradient())
    outputs = WIDTHS.outputs(GREY.astype(np.float64)).astype(np.float32)

    assert answer.plan == pb.Plan(
        model_name="widths",
        model_version=1,
        output_name="scores",
        targets=[pb.ResolvedTarget(index=k, output=outputs[k], score=outputs[k]) for k in (0, 1)],
        objective=pb.Objective(kind=pb.Objective.KIND_OUTPUT),
        gradient=pb.Gradient(channel_reduction=pb.Gradient.CHANNEL_REDUCTION_MAX_ABS),
        map_shape=[2, 10, 7],
        evaluations=2,
        execution=pb.Plan.EXECUTION_FULL,
        source_box=pb.SourceBox(height=10, width=7),
        priority=100,
        precision=Precision.PRECISION_FP32,
    )


EXPLICIT_OCCLUSIONS = [
    pb.Occlusion(
        patch=extent(4, 5),
        stride=extent(2, 3),
        fill=fill,
        edge=pb.Occlusion.EDGE_SHIFT,
        window_score=pb.Occlusion.WINDOW_SCORE_ABSOLUTE,
        resolution=pb.Occlusion.RESOLUTION_WINDOWS,
        order=pb.Occlusion.ORDER_PROGRESSIVE,
    )
    for fill in (
        pb.Fill(constant=0.75),
        pb.Fill(channels=pb.ChannelValues(values=[1, 2, 3])),
        pb.Fill(blur=pb.Blur(sigma=1.5)),
    )
]


@pytest.mark.parametrize("method", EXPLICIT_OCCLUSIONS)
async def test_what_a_request_says_of_an_occlusion_is_repeated(fakes: Served, method: pb.Occlusion) -> None:
    answer = await ask(
        fakes,
        "scores",
        IMAGE,
        occlusion=method,
        version_label="old",
        output_name="scores",
        targets=indices(2, 0, 2),
        objective=pb.Objective(kind=pb.Objective.KIND_SQUARED_ERROR, values=[0.5]),
        priority=3,
    )

    assert answer.plan.model_version == 1
    assert answer.plan.occlusion == method
    assert [each.index for each in answer.plan.targets] == [2, 0, 2]
    assert [each.label for each in answer.plan.targets] == ["shark", "tench", "shark"]
    assert answer.plan.objective == pb.Objective(kind=pb.Objective.KIND_SQUARED_ERROR, values=[0.5, 0.5, 0.5])
    for each in answer.plan.targets:
        assert each.score == pytest.approx((each.output - 0.5) ** 2)
    assert answer.plan.priority == 3
    assert answer.plan.map_shape == [3, 3, 3]


async def test_fills_that_come_from_an_image_are_repeated_without_it(fakes: Served) -> None:
    fill = picture(5, SHAPE)
    given = await ask(fakes, "scores", IMAGE, occlusion=occlusion(fill=pb.Fill(image=tensor(fill))))
    mean = await ask(fakes, "scores", IMAGE, occlusion=occlusion(fill=pb.Fill(image_mean=pb.ImageMean())))

    echoed = tensor(fill)
    echoed.ClearField("data")
    assert given.plan.occlusion.fill == pb.Fill(image=echoed)
    assert mean.plan.occlusion.fill.image_mean.values == pytest.approx(IMAGE.mean((0, 1), np.float64))


@pytest.mark.parametrize("reduction", ["NONE", "SUM", "MEAN"])
async def test_what_a_request_says_of_a_gradient_is_repeated(fakes: Served, reduction: str) -> None:
    number = pb.Gradient.ChannelReduction.Value(f"CHANNEL_REDUCTION_{reduction}")
    method = pb.Gradient(signed=True, channel_reduction=number, times_input=True)

    answer = await ask(fakes, "scores", IMAGE, gradient=method, targets=pb.Targets(top_k=2))

    assert answer.plan.gradient == method
    assert answer.plan.map_shape == ([2, 7, 9, 3] if reduction == "NONE" else [2, 7, 9])
    first, second = answer.plan.targets
    assert first.output >= second.output


async def test_labels_and_ties_and_all_targets_are_resolved(fakes: Served) -> None:
    by_name = await ask(fakes, "scores", IMAGE, targets=label("ray"))
    every = await ask(fakes, "scores", IMAGE, targets=pb.Targets(all=pb.AllTargets()))

    assert [each.index for each in by_name.plan.targets] == [3]
    assert [each.label for each in every.plan.targets] == list(LABELS)


OCCLUSIONS = [
    occlusion(3),
    occlusion(3, 1),
    occlusion(4, 3, edge=pb.Occlusion.EDGE_SHIFT),
    occlusion(3, 2, order=pb.Occlusion.ORDER_PROGRESSIVE),
    occlusion(3, 2, window_score=pb.Occlusion.WINDOW_SCORE_ABSOLUTE),
    pb.Occlusion(patch=extent(10, 7)),
    pb.Occlusion(patch=extent(1, 7), stride=extent(1, 2), fill=pb.Fill(constant=0)),
]


@pytest.mark.parametrize("method", OCCLUSIONS)
async def test_tiles_pasted_are_the_whole_map_and_that_of_the_definition(
    fakes: Served, method: pb.Occlusion
) -> None:
    answer = await ask(fakes, "widths", GREY, occlusion=method)
    unary = await ask_unary(fakes, "widths", GREY, occlusion=method)
    stream = fakes.explanations.ExplainStream()
    await stream.write(start("a", spec("widths", GREY, occlusion=method)))
    await stream.done_writing()
    conversation = received((await by_id(_messages(stream)))["a"])

    used = answer.plan.occlusion
    windows = brute_force.grid(
        GREY_SHAPE[:2],
        (used.patch.rows, used.patch.columns),
        (used.stride.rows, used.stride.columns),
        "SHIFT" if used.edge == pb.Occlusion.EDGE_SHIFT else "CLIP",
    )
    scores = brute_force.window_scores(
        lambda image: WIDTHS.outputs(image),
        GREY.astype(np.float64),
        np.full(GREY_SHAPE, used.fill.constant),
        windows,
        (0, 1),
        (0.0, 0.0),
        "OUTPUT",
        absolute=used.window_score == pb.Occlusion.WINDOW_SCORE_ABSOLUTE,
    )
    expected = brute_force.pixel_map(GREY_SHAPE[:2], windows, scores).values
    assert np.allclose(answer.values, expected, atol=1e-5)
    assert answer.values.tobytes() == unary.tobytes() == conversation.values.tobytes()
    assert (answer.plan.window_grid.rows, answer.plan.window_grid.columns) == scores.shape[1:]
    assert answer.plan.evaluations == scores[0].size + 1

    method.resolution = pb.Occlusion.RESOLUTION_WINDOWS
    grid = await ask(fakes, "widths", GREY, occlusion=method)
    assert np.allclose(grid.values, scores, atol=1e-5)
    assert [each.lowest_window for each in grid.summary.diagnostics] == _lowest(windows, used)


def _lowest(windows: list[list[brute_force.Window]], used: pb.Occlusion) -> list[int]:
    """Return, per target, the raster position of the window that lowers its output most."""
    outputs = []
    for top, left, bottom, right in (window for row in windows for window in row):
        hidden = GREY.astype(np.float64)
        hidden[top:bottom, left:right] = used.fill.constant
        outputs.append(WIDTHS.outputs(hidden))
    return [int(each) for each in np.argmin(np.array(outputs, np.float32), 0)]


@pytest.mark.parametrize(
    ("method", "reduce"),
    [
        (pb.Gradient(), lambda d, _: np.abs(d).max(-1)),
        (pb.Gradient(channel_reduction=pb.Gradient.CHANNEL_REDUCTION_NONE, signed=True), lambda d, _: d),
        (
            pb.Gradient(channel_reduction=pb.Gradient.CHANNEL_REDUCTION_SUM, signed=True, times_input=True),
            lambda d, x: (d * x).sum(-1),
        ),
        (
            pb.Gradient(channel_reduction=pb.Gradient.CHANNEL_REDUCTION_L2),
            lambda d, _: np.sqrt((d**2).sum(-1)),
        ),
    ],
)
async def test_gradient_tiles_are_the_derivatives(fakes: Served, method: pb.Gradient, reduce: Any) -> None:
    answer = await ask(fakes, "scores", IMAGE, gradient=method, targets=indices(1, 3))
    derivatives = SCORES.derivatives(IMAGE.astype(np.float64))[[1, 3]]

    assert np.allclose(answer.values, reduce(derivatives, IMAGE), atol=1e-6)
    assert [tile.first_target for tile in answer.tiles] == [0, 1]
    assert all(tile.final for tile in answer.tiles)
    assert answer.summary.measured_fraction == 1


async def test_windows_that_show_the_fill_already_are_skipped_and_counted(fakes: Served) -> None:
    image = GREY.copy()
    image[:6] = 0.5
    method = occlusion(2)
    answer = await ask(fakes, "widths", image, occlusion=method)
    noisy = await ask(fakes, "noisy", image, occlusion=occlusion(2, fill=pb.Fill(constant=0.5)))

    # 5 x 4 windows, the upper 3 rows of them gray already.
    assert (answer.summary.evaluations.done, answer.summary.evaluations.skipped) == (9, 12)
    assert (answer.values[:, :6] == 0).all()
    # A model that answers differently every time is asked every time.
    assert (noisy.summary.evaluations.done, noisy.summary.evaluations.skipped) == (21, 0)
    assert [each.kind for each in noisy.plan.warnings] == [pb.Warning.KIND_NON_DETERMINISTIC]


async def test_what_a_reader_should_know_comes_as_warnings(fakes: Served) -> None:
    outputs = WIDTHS.outputs(GREY.astype(np.float64)).astype(np.float32)
    exact = pb.Objective(kind=pb.Objective.KIND_SQUARED_ERROR, values=outputs)

    met = await ask(fakes, "widths", GREY, gradient=pb.Gradient(), objective=exact)

    assert [each.kind for each in met.plan.warnings] == [pb.Warning.KIND_RESIDUAL_NEAR_ZERO]
    assert all("use KIND_OUTPUT" in each.message for each in met.plan.warnings)


async def test_a_map_does_not_depend_on_its_company(fakes: Served) -> None:
    """Twenty at once, whose rows share batches: to the bit what each is alone."""
    asked: list[dict[str, Any]] = [
        {
            "image": picture(seed, GREY_SHAPE),
            "occlusion": occlusion(3, 1 + seed % 3),
            "priority": 1 + seed % 2,
            "targets": pb.Targets(all=pb.AllTargets()),
        }
        for seed in range(20)
    ]
    alone = [await ask(fakes, "widths", **each) for each in asked]
    together = await asyncio.gather(*(ask(fakes, "widths", **each) for each in asked))

    for one, other in zip(alone, together, strict=True):
        assert one.values.tobytes() == other.values.tobytes()
        assert one.plan == other.plan
        assert one.summary.diagnostics == other.summary.diagnostics


async def test_what_is_not_finite_in_the_models_answers_is_passed_on_and_counted(tmp_path: Path) -> None:
    class Fragile(Linear):
        def outputs(self, image: NDArray[np.float64]) -> NDArray[np.float64]:
            outputs = super().outputs(image)
            return np.array([np.nan, outputs[1]]) if image[0, 0, 0] == 0 else outputs

    async with served(tmp_path, {"m": Offer(model=Fragile(weights(0, 2, (4, 4, 1))))}) as running:
        answer = await ask(running, "m", picture(0, (4, 4, 1)), occlusion=occlusion(2))

    first, second = answer.values
    assert np.isnan(first[:2, :2]).all()
    assert np.isfinite(first[2:]).all()
    assert np.isfinite(second).all()
    assert [each.non_finite_values for each in answer.summary.diagnostics] == [4, 0]
    assert [each.kind for each in answer.summary.warnings] == [pb.Warning.KIND_NON_FINITE]


@pytest.mark.parametrize(
    "method",
    [
        {"gradient": pb.Gradient(channel_reduction=pb.Gradient.CHANNEL_REDUCTION_NONE)},
        {"gradient": pb.Gradient()},
        {"occlusion": pb.Occlusion(patch=extent(300, 301))},
        {"occlusion": occlusion(100, 50, order=pb.Occlusion.ORDER_PROGRESSIVE)},
    ],
)
async def test_no_message_is_larger_than_a_mebibyte(fakes: Served, method: dict[str, Any]) -> None:
    large = spec("large", picture(3, (300, 301, 3)), targets=pb.Targets(all=pb.AllTargets()), **method)
    messages = [
        message async for message in fakes.explanations.ExplainTiles(pb.ExplainTilesRequest(spec=large))
    ]
    answer = received([event_of(message) for message in messages])

    assert answer.values.nbytes > MIB
    assert max(message.ByteSize() for message in messages) <= MIB
    assert not np.isnan(answer.values).any()


async def test_a_map_of_exactly_a_mebibyte_is_returned_whole_or_in_tiles_that_are_smaller(
    fakes: Served,
) -> None:
    image = np.ones((512, 512, 1), np.float32)
    values = await ask_unary(fakes, "square", image, gradient=pb.Gradient())
    tiles = fakes.explanations.ExplainTiles(
        pb.ExplainTilesRequest(spec=spec("square", image, gradient=pb.Gradient()))
    )
    messages = [message async for message in tiles]

    assert values.nbytes == MIB
    assert (values == 1).all()
    assert max(message.ByteSize() for message in messages) <= MIB
    assert np.array_equal(received([event_of(message) for message in messages]).values, values)


async def test_an_occlusion_whose_budget_ends_is_partial_and_says_what_it_has(tmp_path: Path) -> None:
    gate = Gate(is_open=False)
    model = Linear(weights(0, 2, (8, 8, 1)))
    async with served(tmp_path, {"m": Offer(model=model, gate=gate)}) as running:
        image = picture(0, (8, 8, 1))
        what = spec("m", image, occlusion=occlusion(2), time_budget=Duration(seconds=3600))
        call = running.explanations.ExplainTiles(pb.ExplainTilesRequest(spec=what))
        gate.let_through()
        plan, tile = event_of(await call.read()), event_of(await call.read())
        await gate.reached(2)
        # One or two batches of 4 are under way. From now on one is known to take longer than the budget.
        running.offers["m"].program(Kind.FORWARD).seconds = 1e6
        gate.open()
        answer = received([plan, tile, *[event_of(each) async for each in _messages(call)]])
        running.offers["m"].program(Kind.FORWARD).seconds = 0.001
        complete = await ask(running, "m", image, occlusion=occlusion(2))
        scrape = await running.at_rest(2)

    summary = answer.summary
    evaluated = bits(summary.evaluated_windows, 16).reshape(4, 4)
    done = summary.evaluations.done
    assert summary.completion == pb.Summary.COMPLETION_PARTIAL
    assert summary.partial_reason == pb.Summary.PARTIAL_REASON_TIME_BUDGET
    assert done in (8, 12)
    assert (summary.evaluations.skipped, summary.evaluations.dropped) == (0, 17 - done)
    # In raster order, and the first row evaluated was the image itself.
    assert evaluated.ravel().tolist() == [True] * (done - 1) + [False] * (17 - done)
    assert summary.measured_fraction == (done - 1) / 16
    pixels = np.repeat(np.repeat(evaluated, 2, 0), 2, 1)
    assert np.array_equal(~np.isnan(answer.values), np.broadcast_to(pixels, (2, 8, 8)))
    assert np.array_equal(answer.values[:, pixels], complete.values[:, pixels])
    assert complete.summary.evaluated_windows == b""
    assert scrape.total("vitrail_explanations_total", outcome="partial") == 1
    assert scrape.total("vitrail_explanation_evaluations_total", result="dropped") == 17 - done


async def test_a_partial_map_is_returned_whole_too_with_nan_where_it_has_no_value(tmp_path: Path) -> None:
    gate = Gate(is_open=False)
    offers = {"m": Offer(model=Linear(weights(0, 2, (8, 8, 1))), gate=gate)}
    async with served(tmp_path, offers) as running:
        what = spec("m", picture(0, (8, 8, 1)), occlusion=occlusion(2), time_budget=Duration(seconds=3600))
        call = running.explanations.Explain(pb.ExplainRequest(spec=what))
        await gate.reached(1)
        running.offers["m"].program(Kind.FORWARD).seconds = 1e6
        gate.open()
        answer = await call

    values = np.frombuffer(answer.values, "<f4").reshape(2, 8, 8)
    assert answer.summary.completion == pb.Summary.COMPLETION_PARTIAL
    evaluated = bits(answer.summary.evaluated_windows, 16)
    assert 0 < evaluated.sum() < 16
    assert np.isnan(values).sum() == 2 * 4 * (16 - evaluated.sum())


async def test_a_gradient_whose_budget_ends_has_the_first_targets(tmp_path: Path) -> None:
    gate = Gate(is_open=False)
    model = Linear(weights(0, 8, (4, 4, 1)))
    async with served(tmp_path, {"m": Offer(model=model, gate=gate, batch_size=1)}) as running:
        what = spec("m", picture(0, (4, 4, 1)), gradient=pb.Gradient(), time_budget=Duration(seconds=3600))
        call = running.explanations.ExplainTiles(pb.ExplainTilesRequest(spec=what))
        gate.let_through()
        plan, tile = event_of(await call.read()), event_of(await call.read())
        await gate.reached(2)  # the second one has begun, and a third one waits behind it or not
        running.offers["m"].program(Kind.GRADIENT).seconds = 1e6
        gate.open()
        answer = received([plan, tile, *[event_of(each) async for each in _messages(call)]])

    assert answer.summary.completion == pb.Summary.COMPLETION_PARTIAL
    done = answer.summary.evaluations.done
    assert done in (2, 3)
    assert answer.summary.measured_fraction == done / 8
    assert answer.summary.evaluated_windows == b""
    assert np.isnan(answer.values[done:]).all()
    assert np.allclose(answer.values[:done], np.abs(model.weights[:done, :, :, 0]), atol=1e-6)


async def test_a_budget_that_is_over_before_the_first_batch_is_a_deadline(tmp_path: Path) -> None:
    async with served(tmp_path, {"m": Offer(model=Linear(weights(0, 1, (4, 4, 1))))}) as running:
        running.offers["m"].program(Kind.FORWARD).seconds = 1e6
        what = spec("m", picture(0, (4, 4, 1)), time_budget=Duration(seconds=60))
        refusal = await refused(running.explanations.Explain(pb.ExplainRequest(spec=what)))
        await running.at_rest(1)

    assert refusal.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert refusal.field == "spec.time_budget"


async def test_seconds_are_told_and_add_up(fakes: Served) -> None:
    answer = await ask(fakes, "scores", IMAGE)

    summary = answer.summary
    assert summary.queue_seconds > 0
    assert summary.device_seconds > 0
    assert summary.queue_seconds + summary.device_seconds <= summary.total_seconds


async def test_the_version_that_began_answers_to_the_end(tmp_path: Path) -> None:
    """An explanation is pinned to one version: unloading it waits."""
    gate = Gate(is_open=False)
    offer = Offer(model=Linear(weights(0, 1, (4, 4, 1))), gate=gate)
    async with served(tmp_path, {"m": replace(offer, versions=(2,))}) as running:
        request = pb.ExplainTilesRequest(spec=spec("m", picture(0, (4, 4, 1)), occlusion=occlusion(1)))
        call = running.explanations.ExplainTiles(request)
        gate.let_through()
        plan = event_of(await call.read())
        await running.server.manager.unload("m", wait=False)
        gate.open()
        answer = received([plan, *[event_of(each) async for each in _messages(call)]])

    assert answer.plan.model_version == 2
    assert answer.summary.completion == pb.Summary.COMPLETION_COMPLETE


async def _messages(call: Any) -> AsyncIterator[Any]:
    """Yield the rest of a call that was read from before."""
    while (message := await call.read()) is not grpc.aio.EOF:
        yield message
