import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fakes.driver import Driver, planned
from fakes.models import Linear, Model, Quadratic, Softmax, picture, weights
from fakes.properties import examples
from fakes.questions import ask
from fakes.servables import compute
from vitrail.errors import FailedPrecondition, Internal, InvalidArgument, ResourceExhausted
from vitrail_server.explainers.gradient import SIGNLESS, GradientParameters, GradientRun, Reduction, reduced
from vitrail_server.explainers.question import AllTargets, Limits, TopK
from vitrail_server.explainers.run import Nothing, WarningKind, Work
from vitrail_server.servable import Capabilities
from vitrail_server.work import GradientRows, Kind, Objective, Result

GRADIENT = np.array([[[1, -3, 2]], [[-4, 0, -3]]], np.float32)
IMAGE = np.array([[[2, 1, 0]], [[1, 5, -1]]], np.float32)
REDUCTIONS: list[Reduction] = ["NONE", "MAX_ABS", "SUM_ABS", "L2", "SUM", "MEAN"]


@pytest.mark.parametrize(
    ("reduction", "signed", "expected"),
    [
        ("MAX_ABS", False, [[3], [4]]),
        ("SUM_ABS", False, [[6], [7]]),
        ("L2", False, [[14**0.5], [5]]),
        ("SUM", True, [[0], [-7]]),
        ("SUM", False, [[6], [7]]),
        ("MEAN", True, [[0], [-7 / 3]]),
        ("MEAN", False, [[2], [7 / 3]]),
        ("NONE", True, GRADIENT.tolist()),
        ("NONE", False, [[[1, 3, 2]], [[4, 0, 3]]]),
    ],
)
def test_reductions_by_hand(reduction: Reduction, expected: list[list[float]], *, signed: bool) -> None:
    values = reduced(GRADIENT, IMAGE, GradientParameters(signed, reduction))
    assert values.dtype == np.float32
    np.testing.assert_allclose(values, expected, rtol=1e-7)


@pytest.mark.parametrize(
    ("reduction", "signed", "expected"),
    [
        ("MAX_ABS", False, [[3], [4]]),  # products 2 -3 0 and -4 0 3
        ("SUM", True, [[-1], [-1]]),
        ("SUM", False, [[5], [7]]),
        ("L2", False, [[13**0.5], [5]]),
        ("NONE", True, [[[2, -3, 0]], [[-4, 0, 3]]]),
    ],
)
def test_gradient_times_input_by_hand(
    reduction: Reduction, expected: list[list[float]], *, signed: bool
) -> None:
    values = reduced(GRADIENT, IMAGE, GradientParameters(signed, reduction, times_input=True))
    np.testing.assert_allclose(values, expected, rtol=1e-7)


def test_integer_pixels_multiply_as_numbers() -> None:
    image = np.full((1, 1, 1), 200, np.uint8)
    values = reduced(np.full((1, 1, 1), 2, np.float32), image, GradientParameters(times_input=True))
    assert values.tolist() == [[400]]


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_values_that_are_not_finite_pass_through_every_reduction(reduction: Reduction) -> None:
    gradient = np.array([[[np.inf, -np.inf], [np.nan, 1], [3e38, 3e38], [1, 2]]], np.float32)
    image = np.array([[[1, 1], [1, 1], [3e38, 3e38], [0, 1]]], np.float32)
    for signed in {False, reduction not in SIGNLESS}:
        values = reduced(gradient, image, GradientParameters(signed, reduction, times_input=True))
        assert np.isfinite(values).reshape(4, -1).all(1).tolist() == [False, False, False, True]


def test_zero_times_infinity_is_nan() -> None:
    values = reduced(
        np.full((1, 1, 1), np.inf, np.float32), np.zeros((1, 1, 1)), GradientParameters(times_input=True)
    )
    assert np.isnan(values).all()


def drawn_model(data: st.DataObject, seed: int, shape: tuple[int, int, int], objective: Objective) -> Model:
    if objective is Objective.CROSS_ENTROPY:
        return Softmax(weights(seed, data.draw(st.integers(1, 4)), shape))
    elements = data.draw(st.integers(1, 5))
    match data.draw(st.integers(0, 2)):
        case 0:
            return Linear(weights(seed, elements, shape))
        case 1:
            return Quadratic(weights(seed, elements, shape))
        case _:
            return Softmax(weights(seed, elements, shape))


def by_finite_differences(
    model: Model, image: NDArray[np.float64], target: int, objective: Objective, value: float
) -> NDArray[np.float64]:
    """The derivative without any formula for it."""

    def objective_of(pixels: NDArray[np.float64]) -> float:
        y = float(model.outputs(pixels)[target])
        return {
            Objective.OUTPUT: y,
            Objective.SQUARED_ERROR: (y - value) ** 2,
            Objective.CROSS_ENTROPY: float(-np.log(max(y, 1e-300))),
        }[objective]

    result = np.zeros(image.shape)
    for place in np.ndindex(*image.shape):
        up, down = image.copy(), image.copy()
        up[place] += 1e-5
        down[place] -= 1e-5
        result[place] = (objective_of(up) - objective_of(down)) / 2e-5
    return result


@given(st.data(), st.integers(0, 10_000))
@examples(60)
def test_the_map_is_the_reduced_derivative_of_the_objective(data: st.DataObject, seed: int) -> None:
    shape = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 4), st.sampled_from([1, 3])))
    objective = data.draw(st.sampled_from(Objective))
    model = drawn_model(data, seed, shape, objective)
    single = objective is Objective.CROSS_ENTROPY
    targets = tuple(
        data.draw(st.lists(st.sampled_from(range(model.elements)), min_size=1, max_size=1 if single else 4))
    )
    reduction = data.draw(st.sampled_from(REDUCTIONS))
    signed = reduction not in SIGNLESS and data.draw(st.booleans())
    times_input = data.draw(st.booleans())
    values = (0.3,) if objective is Objective.SQUARED_ERROR else ()

    image = picture(seed, shape)
    question = ask(
        model,
        image,
        targets=targets,
        objective=objective,
        values=values,
        probabilities=isinstance(model, Softmax),
    )
    run = GradientRun(question, GradientParameters(signed, reduction, times_input))
    canvas = Driver(run, model, seed=seed, most_rows=3).finish()
    assert canvas.final.all()
    assert run.plan
    assert canvas.values.shape == run.map_shape == run.plan.map_shape

    for k, target in enumerate(targets):
        pixels = image.astype(np.float64)
        slope = by_finite_differences(model, pixels, target, objective, 0.3)
        if times_input:
            slope = slope * pixels
        if not signed:
            slope = np.abs(slope)
        expected = {
            "NONE": slope,
            "MAX_ABS": slope.max(-1),
            "SUM_ABS": slope.sum(-1),
            "SUM": slope.sum(-1),
            "MEAN": slope.sum(-1) / shape[2],
            "L2": (slope**2).sum(-1) ** 0.5,
        }[reduction]
        np.testing.assert_allclose(canvas.values[k], expected, atol=2e-6)


@given(st.integers(0, 10_000), st.integers(1, 9), st.sampled_from([0.0, 0.5, 1.0]))
@examples(30)
def test_chunks_order_and_drains_do_not_change_a_bit(seed: int, most_rows: int, drains: float) -> None:
    model = Softmax(weights(1, 7, (3, 4, 3)))
    question = ask(model, picture(1, (3, 4, 3)), targets=AllTargets())
    plain, wild = GradientRun(question, GradientParameters()), GradientRun(question, GradientParameters())
    expected = Driver(plain, model, most_rows=1, give_backs=0).finish()
    canvas = Driver(wild, model, seed=seed, most_rows=most_rows, drains=drains).finish()
    assert canvas.values.tobytes() == expected.values.tobytes()
    assert plain.plan == wild.plan
    assert plain.summary() == wild.summary()


MODEL = Linear(weights(3, 4, (2, 3, 1)), np.array([0.0, 50.0, 100.0, 50.0]))
PIXELS = picture(3, (2, 3, 1))


def test_rows_name_the_ranks_of_top_k_and_the_plan_the_elements() -> None:
    """The biases decide the order, with the two in the middle nearly equal."""
    run = GradientRun(
        ask(MODEL, PIXELS, targets=TopK(4)), GradientParameters(signed=True, channel_reduction="SUM")
    )
    driver = Driver(run, MODEL)
    work = run.take(9)
    assert isinstance(work, Work)
    assert isinstance(work.rows, GradientRows)
    assert work.rows.targets.tolist() == [-1, -2, -3, -4]
    run.give_back(work)
    canvas = driver.finish()
    outputs = MODEL.outputs(PIXELS.astype(np.float64))
    assert run.plan
    order = [target.index for target in run.plan.targets]
    assert order == sorted(range(4), key=lambda k: -outputs[k])
    for k, target in enumerate(order):
        np.testing.assert_allclose(canvas.values[k], MODEL.weights[target, ..., 0], rtol=1e-6)


def test_rows_carry_objective_targets_and_true_values() -> None:
    question = ask(MODEL, PIXELS, targets=(2, 0), objective=Objective.SQUARED_ERROR, values=(7.0, 9.0))
    work = GradientRun(question, GradientParameters()).take(9)
    assert isinstance(work, Work)
    assert isinstance(work.rows, GradientRows)
    assert work.tag.tolist() == [0, 1]
    assert work.rows.targets.tolist() == [2, 0]
    assert work.rows.values.tolist() == [7.0, 9.0]
    assert work.rows.objective is Objective.SQUARED_ERROR
    assert work.rows.output == "scores"
    assert work.rows.subject.image is PIXELS
    assert work.rows.subject.fill is None


def test_the_plan_comes_with_the_first_pass_and_costs_nothing() -> None:
    run = GradientRun(
        ask(MODEL, PIXELS, targets=(1, 2), labels=("a", "b", "c", "d")),
        GradientParameters(channel_reduction="NONE"),
    )
    assert not planned(run)
    assert run.kind is Kind.GRADIENT
    assert run.image_size == (2, 3)
    driver = Driver(run, MODEL, most_rows=1)
    assert driver.take()
    driver.absorb(driver.out.pop())
    assert run.plan
    outputs = MODEL.outputs(PIXELS.astype(np.float64)).astype(np.float32)
    assert run.plan.map_shape == (2, 2, 3, 1)
    assert run.plan.evaluations == 2
    assert run.plan.window_grid is None
    assert [(each.index, each.label, each.output) for each in run.plan.targets] == [
        (1, "b", float(outputs[1])),
        (2, "c", float(outputs[2])),
    ]
    (tile,) = run.tiles()
    assert (tile.first_target, tile.evaluations_done, tile.final) == (0, 1, True)
    assert tile.values.shape == (1, 2, 3, 1)
    assert not run.tiles()


def test_a_stopped_run_has_the_targets_that_were_out() -> None:
    run = GradientRun(ask(MODEL, PIXELS), GradientParameters())
    driver = Driver(run, MODEL)
    first, second = run.take(1), run.take(2)
    assert isinstance(first, Work)
    assert isinstance(second, Work)
    run.stop()
    assert run.take(1) is Nothing.WAIT
    driver.absorb(second)
    run.give_back(first)
    assert run.finished
    assert run.take(1) is Nothing.DONE
    driver.drain()
    assert driver.canvas
    assert driver.canvas.final.all((1, 2)).tolist() == [False, True, True, False]
    summary = run.summary()
    assert summary.partial == "TIME_BUDGET"
    assert summary.measured_fraction == 0.5
    assert (summary.done, summary.skipped, summary.dropped) == (2, 0, 2)
    assert summary.evaluated_windows == b""


def test_a_run_stopped_before_its_first_pass_has_no_plan() -> None:
    run = GradientRun(ask(MODEL, PIXELS), GradientParameters())
    run.stop()
    assert run.finished
    assert run.plan is None
    assert not run.tiles()
    assert (run.summary().partial, run.summary().dropped) == ("TIME_BUDGET", 4)


def test_a_complete_run_says_so() -> None:
    run = GradientRun(ask(MODEL, PIXELS), GradientParameters())
    Driver(run, MODEL).finish()
    summary = run.summary()
    assert summary.partial is None
    assert summary.measured_fraction == 1
    assert (summary.done, summary.skipped, summary.dropped) == (4, 0, 0)
    assert not summary.warnings
    assert [each.lowest_score for each in summary.diagnostics] == [None] * 4


def test_maps_of_zeros_and_values_that_are_not_finite_are_reported() -> None:
    model = Linear(np.array([0.0, np.inf]).reshape(2, 1, 1, 1) * np.ones((2, 2, 3, 1)))
    run = GradientRun(ask(model, PIXELS), GradientParameters())
    Driver(run, model).finish()
    summary = run.summary()
    assert [each.non_finite_values for each in summary.diagnostics] == [0, 6]
    assert [note.kind for note in summary.warnings] == [WarningKind.ZERO_MAP, WarningKind.NON_FINITE]


def test_a_failed_run_is_finished_and_hands_out_nothing() -> None:
    run = GradientRun(ask(MODEL, PIXELS), GradientParameters())
    run.take(1)
    run.fail(Internal("broken"))
    assert run.finished
    assert not isinstance(run.take(1), Work)


def test_results_without_gradients_are_a_programming_error() -> None:
    run = GradientRun(ask(MODEL, PIXELS), GradientParameters())
    work = run.take(1)
    assert isinstance(work, Work)
    with pytest.raises(TypeError, match="gradient program"):
        run.absorb(work, Result(compute(MODEL, work.rows).outputs))


@pytest.mark.parametrize("reduction", ["MAX_ABS", "SUM_ABS", "L2"])
def test_a_sign_is_refused_where_there_is_none(reduction: Reduction) -> None:
    with pytest.raises(InvalidArgument, match=f"{reduction} has no sign: use NONE, SUM or MEAN") as caught:
        GradientRun(ask(MODEL, PIXELS), GradientParameters(signed=True, channel_reduction=reduction))
    assert caught.value.field == "spec.gradient.signed"


def test_a_model_without_gradients_is_refused_with_its_reason() -> None:
    question = ask(MODEL, PIXELS, capabilities=Capabilities(gradient_reason="the image is cast to uint8"))
    with pytest.raises(FailedPrecondition, match="cast to uint8") as caught:
        GradientRun(question, GradientParameters())
    assert caught.value.field == "spec.gradient"


def test_targets_are_checked() -> None:
    with pytest.raises(ResourceExhausted, match="4 targets"):
        GradientRun(ask(MODEL, PIXELS, limits=Limits(targets=2)), GradientParameters())


def test_the_default_map_has_the_bits_that_float64_would_give() -> None:
    generator = np.random.default_rng(0)
    gradient = generator.normal(size=(9, 7, 3)).astype(np.float32) * np.float32(1e-40)
    gradient[0, 0, :2] = np.inf, -np.inf
    gradient[1, 1] = -0.0
    gradient[2, 2, 1] = np.nan

    made = reduced(gradient, gradient, GradientParameters())

    expected = np.abs(gradient.astype(np.float64)).max(axis=-1).astype(np.float32)
    assert made.dtype == np.float32
    np.testing.assert_array_equal(made.view(np.uint32), expected.view(np.uint32))
