import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from explainers import brute_force
from fakes.canvas import Canvas
from fakes.driver import Driver, planned
from fakes.models import Linear, Model, Quadratic, Rule, Softmax, picture, weights
from fakes.properties import examples
from fakes.questions import ask
from fakes.servables import compute
from vitrail.errors import FailedPrecondition, Internal, InvalidArgument, ResourceExhausted
from vitrail_server.explainers.fills import Blur, Constant, Fill, GivenImage, ImageMean
from vitrail_server.explainers.grid import Edge, Order, coarsest_step
from vitrail_server.explainers.occlusion import OcclusionParameters, OcclusionRun, Resolution
from vitrail_server.explainers.question import AllTargets, Limits, TopK
from vitrail_server.explainers.run import Nothing, WarningKind, Work
from vitrail_server.servable import Capabilities
from vitrail_server.work import Kind, Objective, OccludeRows

SUM_4X4 = Linear(np.ones((1, 4, 4, 1)))


def counting(height: int, width: int, channels: int = 1) -> NDArray[np.float32]:
    """1, 2, 3, ... in raster order."""
    size = height * width * channels
    return np.arange(1, size + 1, dtype=np.float32).reshape(height, width, channels)


def whole_map(
    run: OcclusionRun,
    model: Model,
    *,
    seed: int = 0,
    most_rows: int = 8,
    drains: float = 0.5,
    give_backs: int = 3,
) -> Canvas:
    canvas = Driver(run, model, seed, most_rows, drains, give_backs).finish()
    assert canvas.final.all()
    return canvas


class TestByHand:
    def test_disjoint_windows_hold_the_sum_of_what_they_hide(self) -> None:
        """The model sums the pixels and the fill is 0, so a window's score is the sum of its pixels."""
        run = OcclusionRun(ask(SUM_4X4, counting(4, 4)), OcclusionParameters(patch=(2, 2)))
        expected = np.repeat(np.repeat([[14.0, 22.0], [46.0, 54.0]], 2, 0), 2, 1)
        assert whole_map(run, SUM_4X4).values[0].tolist() == expected.tolist()
        assert run.summary().done == 5

    def test_overlapping_windows_are_averaged(self) -> None:
        """One row of four pixels 1 2 3 4, windows 12, 23, 34 with the scores 3, 5, 7."""
        model = Linear(np.ones((1, 1, 4, 1)))
        run = OcclusionRun(ask(model, counting(1, 4)), OcclusionParameters(patch=(1, 2), stride=(1, 1)))
        assert whole_map(run, model).values[0].tolist() == [[3.0, 4.0, 6.0, 7.0]]

    def test_clip_cuts_the_last_window_and_shift_moves_it_back(self) -> None:
        """Pixels 1 2 3, patch 2: CLIP has the windows 12 and 3, SHIFT has 12 and 23."""
        model = Linear(np.ones((1, 1, 3, 1)))
        maps = [
            whole_map(OcclusionRun(ask(model, counting(1, 3)), OcclusionParameters((1, 2), edge=edge)), model)
            for edge in ("CLIP", "SHIFT")
        ]
        assert [each.values[0].tolist() for each in maps] == [[[3.0, 3.0, 3.0]], [[3.0, 4.0, 5.0]]]

    def test_the_resolution_windows_gives_one_value_per_window(self) -> None:
        parameters = OcclusionParameters((2, 2), (1, 2), resolution="WINDOWS")
        run = OcclusionRun(ask(SUM_4X4, counting(4, 4)), parameters)
        assert whole_map(run, SUM_4X4).values[0].tolist() == [[14.0, 22.0], [30.0, 38.0], [46.0, 54.0]]
        assert run.plan
        assert run.plan.map_shape == run.map_shape == (1, 3, 2)

    def test_absolute_is_taken_before_the_mean(self) -> None:
        """Scores -3, -1, 1 of the windows 12, 23, 34; the signed mean of the middle ones is -2 and 0."""
        model = Linear(np.array([-2.0, -1, 0, 1]).reshape(1, 1, 4, 1))
        image = np.ones((1, 4, 1), np.float32)
        maps = [
            whole_map(
                OcclusionRun(ask(model, image), OcclusionParameters((1, 2), (1, 1), absolute=absolute)), model
            )
            for absolute in (False, True)
        ]
        assert [each.values[0].tolist() for each in maps] == [
            [[-3.0, -2.0, 0.0, 1.0]],
            [[3.0, 2.0, 1.0, 1.0]],
        ]

    def test_a_loss_that_grows_when_a_window_is_hidden_is_positive(self) -> None:
        """y = 10, true value 10; hiding a quarter leaves 10 - its sum, so the loss is the sum squared."""
        image = np.array([[1, 2], [3, 4]], np.float32)[..., None]
        model = Linear(np.ones((1, 2, 2, 1)))
        question = ask(model, image, objective=Objective.SQUARED_ERROR, values=(10.0,))
        run = OcclusionRun(question, OcclusionParameters((1, 1)))
        assert whole_map(run, model).values[0].tolist() == [[1.0, 4.0], [9.0, 16.0]]
        assert run.plan
        assert run.plan.values == (10.0,)
        assert [note.kind for note in run.plan.warnings] == [WarningKind.RESIDUAL_NEAR_ZERO]

    def test_a_patch_as_large_as_the_image_is_one_window(self) -> None:
        run = OcclusionRun(ask(SUM_4X4, counting(4, 4), fill=(1.0,)), OcclusionParameters((4, 4)))
        assert (whole_map(run, SUM_4X4).values == 136 - 16).all()
        (diagnostics,) = run.summary().diagnostics
        assert diagnostics.hidden_score == diagnostics.lowest_score == 16.0
        assert diagnostics.lowest_window == 0
        assert diagnostics.class_changes is None

    def test_the_plan_names_targets_with_output_and_score(self) -> None:
        model = Linear(np.stack([np.ones((2, 2, 1)), -np.ones((2, 2, 1))]), np.array([0.0, 1.0]))
        question = ask(
            model,
            counting(2, 2),
            labels=("sum", "minus"),
            targets=("minus", 0),
            objective=Objective.SQUARED_ERROR,
            values=(-8.0, 13.0),
        )
        run = OcclusionRun(question, OcclusionParameters((1, 1)))
        whole_map(run, model)
        assert run.plan
        assert [(each.index, each.label, each.output, each.score) for each in run.plan.targets] == [
            (1, "minus", -9.0, 1.0),
            (0, "sum", 10.0, 9.0),
        ]
        assert run.plan.values == (-8.0, 13.0)
        assert run.plan.window_grid == (2, 2)
        assert run.plan.evaluations == 5
        assert run.plan.objective is Objective.SQUARED_ERROR
        assert not run.plan.warnings

    def test_top_k_follows_the_clean_image(self) -> None:
        model = Linear(np.zeros((4, 1, 2, 1)), np.array([1.0, 7.0, 3.0, 7.0]))
        run = OcclusionRun(ask(model, counting(1, 2), targets=TopK(3)), OcclusionParameters((1, 1)))
        whole_map(run, model)
        assert run.plan
        assert [target.index for target in run.plan.targets] == [1, 3, 2]

    def test_effective_parameters_are_filled_in(self) -> None:
        run = OcclusionRun(ask(SUM_4X4, counting(4, 4), fill=(0.5,)), OcclusionParameters((2, 3)))
        assert run.parameters.stride == (2, 3)
        assert run.parameters.fill == Constant((0.5,))
        assert run.kind is Kind.FORWARD
        assert run.image_size == (4, 4)

    def test_provisional_pixels_show_the_mean_of_the_windows_so_far(self) -> None:
        """Pixels 1 2 3, windows 12 and 23 with the scores 3 and 5."""
        model = Linear(np.ones((1, 1, 3, 1)))
        run = OcclusionRun(ask(model, counting(1, 3)), OcclusionParameters((1, 2), (1, 1)))
        driver = Driver(run, model)
        clean_and_first = run.take(2)
        assert isinstance(clean_and_first, Work)
        driver.absorb(clean_and_first)
        driver.drain()
        assert driver.canvas
        assert driver.canvas.values[0, 0, :2].tolist() == [3.0, 3.0]
        assert driver.canvas.known[0].tolist() == [[True, True, False]]
        assert driver.canvas.final[0].tolist() == [[True, False, False]]
        assert {tile.evaluations_done for tile in driver.canvas.tiles} == {2}
        assert driver.finish().values[0].tolist() == [[3.0, 4.0, 5.0]]


def models(draw: st.DrawFn, seed: int, shape: tuple[int, int, int], objective: Objective) -> Model:
    elements = draw(st.integers(1, 4))
    if objective is Objective.CROSS_ENTROPY:
        return Softmax(weights(seed, elements, shape))
    kinds: list[type[Linear] | type[Quadratic] | type[Softmax]] = [Linear, Quadratic, Softmax]
    return draw(st.sampled_from(kinds))(weights(seed, elements, shape))


class Case:
    """One occlusion with every option drawn."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.seed = draw(st.integers(0, 10_000))
        # The long ones have grids large enough for several coarse passes.
        height, width = draw(st.sampled_from([(8, 8), (8, 8), (2, 30), (30, 2)]))
        self.size = (draw(st.integers(1, height)), draw(st.integers(1, width)))
        shape = (*self.size, draw(st.sampled_from([1, 3])))
        self.patch = (draw(st.integers(1, self.size[0])), draw(st.integers(1, self.size[1])))
        self.stride = (draw(st.integers(1, self.patch[0])), draw(st.integers(1, self.patch[1])))
        self.edge: Edge = draw(st.sampled_from(["CLIP", "SHIFT"]))
        self.absolute = draw(st.booleans())
        self.resolution: Resolution = draw(st.sampled_from(["PIXELS", "WINDOWS"]))
        self.order: Order = draw(st.sampled_from(["RASTER", "PROGRESSIVE"]))
        self.objective = draw(st.sampled_from(Objective))
        self.model = models(draw, self.seed, shape, self.objective)
        self.image = picture(self.seed, shape)
        elements = range(self.model.elements)
        many = 1 if self.objective is Objective.CROSS_ENTROPY else 4
        self.targets = tuple(draw(st.lists(st.sampled_from(elements), min_size=1, max_size=many)))
        squared = self.objective is Objective.SQUARED_ERROR
        self.values = tuple(draw(st.sampled_from([0.0, 0.5, -2.0])) for _ in self.targets) if squared else ()
        self.fill, self.filled = self.fills(draw)

    def fills(self, draw: st.DrawFn) -> tuple[Fill, NDArray[np.float64]]:
        image = self.image.astype(np.float64)
        channels = [0.1, 0.2, 0.3][: image.shape[2]]
        match draw(st.sampled_from(["constant", "channels", "mean", "blur", "image"])):
            case "constant":
                return Constant((0.25,)), np.full_like(image, 0.25)
            case "channels":
                return Constant(tuple(channels)), np.zeros_like(image) + channels
            case "mean":
                return ImageMean(), np.zeros_like(image) + image.mean((0, 1))
            case "blur":
                return Blur(0.4), brute_force.blurred(image, 0.4)
            case _:
                given = picture(self.seed + 1, self.model.shape)
                return GivenImage(given), given.astype(np.float64)

    def run(self) -> OcclusionRun:
        question = ask(
            self.model,
            self.image,
            targets=self.targets,
            objective=self.objective,
            values=self.values,
            probabilities=isinstance(self.model, Softmax),
        )
        return OcclusionRun(
            question,
            OcclusionParameters(
                self.patch, self.stride, self.fill, self.edge, self.absolute, self.resolution, self.order
            ),
        )

    @property
    def windows(self) -> list[list[brute_force.Window]]:
        return brute_force.grid(self.size, self.patch, self.stride, self.edge)

    def scores(self) -> NDArray[np.float64]:
        return brute_force.window_scores(
            self.model.outputs,
            self.image.astype(np.float64),
            self.filled.astype(np.float32).astype(np.float64),
            self.windows,
            self.targets,
            self.values or (0.0,) * len(self.targets),
            self.objective.name,
            absolute=self.absolute,
        )

    def state(
        self, scores: NDArray[np.float64], evaluated: NDArray[np.bool_] | None = None
    ) -> brute_force.State:
        size, windows = self.size, self.windows
        if self.resolution == "WINDOWS":
            size = (len(windows), len(windows[0]))
            windows = [[(i, j, i + 1, j + 1) for j in range(size[1])] for i in range(size[0])]
        return brute_force.pixel_map(
            size, windows, scores, evaluated, progressive=self.order == "PROGRESSIVE"
        )


@st.composite
def cases(draw: st.DrawFn) -> Case:
    return Case(draw)


@given(cases(), st.integers(1, 20))
@examples(120)
def test_the_map_is_that_of_the_definition(case: Case, most_rows: int) -> None:
    canvas = whole_map(case.run(), case.model, seed=case.seed, most_rows=most_rows)
    np.testing.assert_allclose(canvas.values, case.state(case.scores()).values, rtol=1e-5, atol=1e-6)


@given(cases(), st.integers(0, 10_000))
@examples(60)
def test_at_every_moment_the_client_sees_the_mean_of_the_windows_so_far(case: Case, seed: int) -> None:
    """Also with results in any order, rows given back, and a client that reads now and then."""
    run, scores = case.run(), case.scores()
    driver = Driver(run, case.model, seed=seed, most_rows=4, drains=0.3)
    while driver.step():
        if run.plan is None or driver.rng.random() < 0.5:
            continue
        driver.drain()
        assert driver.canvas
        evaluated = np.zeros(scores.shape[1:], np.bool_)
        evaluated.ravel()[[tag for tag in driver.computed if tag >= 0]] = True
        evaluated.ravel()[_skipped(case)] = True
        state = case.state(scores, evaluated)
        assert (driver.canvas.known == state.known).all()
        assert (driver.canvas.final == state.final).all()
        np.testing.assert_allclose(driver.canvas.values, state.values, rtol=1e-5, atol=1e-6)


def _skipped(case: Case) -> list[int]:
    same = (case.image == case.filled.astype(np.float32)).all(-1)
    flat = [window for row in case.windows for window in row]
    return [k for k, (top, left, bottom, right) in enumerate(flat) if same[top:bottom, left:right].all()]


@given(cases(), st.integers(0, 10_000), st.integers(1, 64), st.sampled_from([0.0, 0.4, 1.0]))
@examples(80)
def test_chunks_order_and_drains_do_not_change_a_bit(
    case: Case, seed: int, most_rows: int, drains: float
) -> None:
    runs = case.run(), case.run()
    plain = whole_map(runs[0], case.model, most_rows=1, drains=0.0, give_backs=0)
    wild = whole_map(runs[1], case.model, seed=seed, most_rows=most_rows, drains=drains)
    assert plain.values.tobytes() == wild.values.tobytes()
    assert runs[0].plan == runs[1].plan
    assert runs[0].summary() == runs[1].summary()


@given(cases(), st.integers(0, 10_000))
@examples(30)
def test_the_order_of_evaluation_does_not_change_a_bit(case: Case, seed: int) -> None:
    maps = []
    for case.order in ("RASTER", "PROGRESSIVE"):
        maps.append(whole_map(case.run(), case.model, seed=seed).values.tobytes())
    assert maps[0] == maps[1]


@given(cases(), st.integers(0, 10_000), st.integers(0, 12))
@examples(60)
def test_a_stopped_run_says_exactly_what_it_has(case: Case, seed: int, steps: int) -> None:
    run = case.run()
    driver = Driver(run, case.model, seed=seed, most_rows=4)
    for _ in range(steps):
        driver.step()
    run.stop()
    for work in driver.out:
        driver.absorb(work)
    assert run.finished
    assert run.take(1) is Nothing.DONE

    scores, summary = case.scores(), run.summary()
    skipped = _skipped(case)
    windows = scores[0].size
    assert summary.skipped == len(skipped)
    assert summary.done == len(driver.computed) == len(set(driver.computed))
    assert windows + 1 == summary.done + summary.skipped + summary.dropped
    if run.plan is None:
        assert summary.partial == "TIME_BUDGET"
        assert summary.measured_fraction == 0
        assert not run.tiles()
        return
    driver.drain()
    assert driver.canvas
    evaluated = np.zeros(scores.shape[1:], np.bool_)
    evaluated.ravel()[skipped] = True
    evaluated.ravel()[[tag for tag in driver.computed if tag >= 0]] = True
    whole = bool(evaluated.all())
    assert summary.partial == (None if whole else "TIME_BUDGET")
    assert summary.measured_fraction == evaluated.mean()
    assert summary.evaluated_windows == (b"" if whole else _bitmap(evaluated))
    state = case.state(scores, evaluated)
    assert (driver.canvas.known == state.known).all()
    assert (np.isnan(driver.canvas.values) == ~state.known).all()
    np.testing.assert_allclose(driver.canvas.values, state.values, rtol=1e-5, atol=1e-6)


def _bitmap(evaluated: NDArray[np.bool_]) -> bytes:
    bits = evaluated.ravel().tolist()
    return bytes(sum(bit << k for k, bit in enumerate(bits[i : i + 8])) for i in range(0, len(bits), 8))


@given(cases(), st.integers(0, 10_000))
@examples(30)
def test_after_the_first_progressive_pass_the_whole_map_has_values(case: Case, seed: int) -> None:
    case.order = "PROGRESSIVE"
    run = case.run()
    driver = Driver(run, case.model, seed=seed)
    rows, columns = len(case.windows), len(case.windows[0])
    step = coarsest_step(rows, columns)
    first = {i * columns + j for i in range(0, rows, step) for j in range(0, columns, step)}
    while not first <= {*driver.computed, *_skipped(case)} or run.plan is None:
        assert driver.step()
    driver.drain()
    assert driver.canvas
    assert driver.canvas.known.all()


class TestWhatTheScoresSay:
    MODEL = Softmax(np.stack([np.full((1, 5, 1), 1.0), np.arange(5.0).reshape(1, 5, 1)]))
    """Class 0 likes every pixel as much, class 1 the right ones."""

    def question_run(self, order: Order = "RASTER") -> OcclusionRun:
        image = np.array([1, 0, 0, 0, 0.4], np.float32).reshape(1, 5, 1)
        question = ask(
            self.MODEL, image, task="CLASSIFICATION", labels=("a", "b"), targets=AllTargets(), fill=(0.1,)
        )
        return OcclusionRun(question, OcclusionParameters((1, 1), order=order))

    def test_by_hand(self) -> None:
        """Logits 1.4 and 1.6: class b. Hiding the last pixel makes them 1.1 and 0.4: class a."""
        run = self.question_run()
        whole_map(run, self.MODEL)
        a, b = run.summary().diagnostics
        assert a.class_changes == b.class_changes == 1
        assert a.lowest_window == 0
        assert b.lowest_window == 4
        # Class a loses most with pixel 0 hidden: logits 0.5 and 1.6.
        assert a.lowest_score == pytest.approx(1 / (1 + np.exp(1.1)))
        assert b.lowest_score == pytest.approx(1 / (1 + np.exp(0.7)))
        assert a.hidden_score is None
        assert a.non_finite_values == b.non_finite_values == 0

    @pytest.mark.parametrize("order", ["RASTER", "PROGRESSIVE"])
    @pytest.mark.parametrize("seed", range(5))
    def test_whatever_the_order(self, seed: int, order: Order) -> None:
        plain, wild = self.question_run(), self.question_run(order=order)
        whole_map(plain, self.MODEL, most_rows=1, give_backs=0)
        whole_map(wild, self.MODEL, seed=seed, most_rows=2)
        assert plain.summary() == wild.summary()

    @pytest.mark.parametrize("seed", range(5))
    def test_among_equal_windows_the_first_in_raster_order_is_the_lowest(self, seed: int) -> None:
        run = OcclusionRun(
            ask(SUM_4X4, np.ones((4, 4, 1), np.float32)), OcclusionParameters((1, 1), order="PROGRESSIVE")
        )
        whole_map(run, SUM_4X4, seed=seed, most_rows=3)
        assert run.summary().diagnostics[0].lowest_window == 0

    def test_no_class_changes_for_a_regressor_or_a_single_output(self) -> None:
        for question in (
            ask(Linear(np.ones((2, 1, 2, 1))), counting(1, 2)),
            ask(Linear(np.ones((1, 1, 2, 1))), counting(1, 2), task="CLASSIFICATION"),
        ):
            run = OcclusionRun(question, OcclusionParameters((1, 1)))
            whole_map(run, Linear(np.ones((question.elements, 1, 2, 1))))
            assert {each.class_changes for each in run.summary().diagnostics} == {None}


class TestUnchangedWindows:
    IMAGE = np.array([[0, 0, 5], [0, 0, 0]], np.float32)[..., None]
    MODEL = Linear(np.ones((1, 2, 3, 1)))

    def test_they_are_skipped_with_score_zero(self) -> None:
        run = OcclusionRun(ask(self.MODEL, self.IMAGE), OcclusionParameters((1, 1)))
        driver = Driver(run, self.MODEL)
        canvas = driver.finish()
        assert sorted(driver.computed) == [-1, 2]
        assert canvas.values[0].tolist() == [[0, 0, 5], [0, 0, 0]]
        summary = run.summary()
        assert (summary.done, summary.skipped, summary.dropped) == (2, 5, 0)
        assert summary.partial is None
        assert summary.measured_fraction == 1

    def test_a_pixel_differs_if_one_channel_does(self) -> None:
        image = np.array([[[1, 2], [1, 3]]], np.float32)
        model = Linear(np.ones((1, 1, 2, 2)))
        run = OcclusionRun(ask(model, image), OcclusionParameters((1, 1), fill=Constant((1.0, 2.0))))
        whole_map(run, model)
        assert run.summary().skipped == 1

    def test_an_image_that_is_all_fill_costs_one_evaluation_and_warns_of_a_zero_map(self) -> None:
        run = OcclusionRun(ask(SUM_4X4, np.zeros((4, 4, 1), np.float32)), OcclusionParameters((3, 3), (1, 1)))
        assert (whole_map(run, SUM_4X4).values == 0).all()
        summary = run.summary()
        assert (summary.done, summary.skipped) == (1, 4)
        assert [note.kind for note in summary.warnings] == [WarningKind.ZERO_MAP]
        assert "the map of 0 is 0 everywhere" in summary.warnings[0].message
        assert (summary.diagnostics[0].lowest_score, summary.diagnostics[0].lowest_window) == (0.0, 0)

    def test_the_whole_image_hidden_by_itself_has_a_hidden_score(self) -> None:
        run = OcclusionRun(
            ask(SUM_4X4, np.ones((4, 4, 1), np.float32), fill=(1.0,)), OcclusionParameters((4, 4))
        )
        whole_map(run, SUM_4X4)
        assert run.summary().diagnostics[0].hidden_score == 16.0

    def test_a_model_that_is_not_deterministic_evaluates_them_all(self) -> None:
        run = OcclusionRun(
            ask(self.MODEL, self.IMAGE, capabilities=Capabilities(non_deterministic=True)),
            OcclusionParameters((1, 1)),
        )
        whole_map(run, self.MODEL)
        assert run.summary().done == 7
        assert run.plan
        assert [note.kind for note in run.plan.warnings] == [WarningKind.NON_DETERMINISTIC]


class TestNonFiniteOutputs:
    """Pixel 0 is hidden by the first window only; the model answers by its value."""

    @staticmethod
    def run(clean: list[float], first: list[float], others: list[float]) -> tuple[OcclusionRun, Canvas]:
        """Four pixels 1 2 3 4, windows 12, 23, 34; a fill of 9."""

        def answer(image: NDArray[np.float64]) -> list[float]:
            hidden = (image[0, :, 0] == 9).tolist()
            return first if hidden[0] else others if any(hidden) else clean

        model = Rule((1, 4, 1), len(clean), answer)
        question = ask(model, counting(1, 4), fill=(9.0,))
        run = OcclusionRun(question, OcclusionParameters((1, 2), (1, 1)))
        return run, whole_map(run, model)

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_they_pass_through_where_they_cover_and_are_counted(self, value: float) -> None:
        run, canvas = self.run([1.0, 1.0], [value, 1.0], [3.0, 1.0])
        expected = 1 - value
        np.testing.assert_array_equal(canvas.values[0], np.array([[expected, expected, -2, -2]], np.float32))
        summary = run.summary()
        assert [each.non_finite_values for each in summary.diagnostics] == [2, 0]
        assert [note.kind for note in summary.warnings] == [WarningKind.ZERO_MAP, WarningKind.NON_FINITE]
        assert "the map of 0 has values that are not finite" in summary.warnings[1].message

    def test_infinities_of_both_signs_meet_in_nan(self) -> None:
        """Window 12 scores 1 - inf, the others 1 + inf: pixel 2 lies in both."""
        _, canvas = self.run([1.0], [np.inf], [-np.inf])
        np.testing.assert_array_equal(
            canvas.values[0], np.array([[-np.inf, np.nan, np.inf, np.inf]], np.float32)
        )

    def test_a_clean_image_without_an_answer_makes_the_whole_map_nan(self) -> None:
        run, canvas = self.run([np.nan], [1.0], [1.0])
        assert np.isnan(canvas.values).all()
        assert run.summary().diagnostics[0].non_finite_values == 4

    def test_infinite_before_and_after_is_nan(self) -> None:
        _, canvas = self.run([np.inf], [np.inf], [1.0])
        np.testing.assert_array_equal(
            canvas.values[0], np.array([[np.nan, np.nan, np.inf, np.inf]], np.float32)
        )

    def test_the_lowest_window_is_found_among_the_finite_ones(self) -> None:
        run, _ = self.run([1.0], [np.nan], [3.0])
        (diagnostics,) = run.summary().diagnostics
        assert (diagnostics.lowest_score, diagnostics.lowest_window) == (3.0, 1)

    def test_a_score_too_large_for_the_map_is_infinite_and_counted(self) -> None:
        run, canvas = self.run([3e38], [-3e38], [3e38])
        np.testing.assert_array_equal(canvas.values[0], np.array([[np.inf, np.inf, 0, 0]], np.float32))
        assert run.summary().diagnostics[0].non_finite_values == 2

    def test_nothing_is_known_of_the_lowest_window_if_no_window_is_evaluated(self) -> None:
        run = OcclusionRun(ask(SUM_4X4, counting(4, 4)), OcclusionParameters((2, 2)))
        driver = Driver(run, SUM_4X4)
        clean = run.take(1)
        assert isinstance(clean, Work)
        driver.absorb(clean)
        run.stop()
        (diagnostics,) = run.summary().diagnostics
        assert diagnostics.lowest_score is None
        assert diagnostics.lowest_window is None


class TestHandingOut:
    def test_the_clean_image_comes_first_and_costs_no_batch_of_its_own(self) -> None:
        run = OcclusionRun(ask(SUM_4X4, counting(4, 4)), OcclusionParameters((2, 2)))
        work = run.take(3)
        assert isinstance(work, Work)
        assert isinstance(work.rows, OccludeRows)
        assert work.tag.tolist() == [-1, 0, 1]
        assert work.rows.windows.tolist() == [[0, 0, 0, 0], [0, 0, 2, 2], [0, 2, 2, 4]]

    def test_rows_given_back_come_first_again_in_their_order(self) -> None:
        run = OcclusionRun(ask(SUM_4X4, counting(4, 4)), OcclusionParameters((2, 2)))
        first, second = run.take(2), run.take(2)
        assert isinstance(first, Work)
        assert isinstance(second, Work)
        run.give_back(second)
        run.give_back(first)
        again = run.take(9)
        assert isinstance(again, Work)
        assert again.tag.tolist() == [-1, 0, 1, 2, 3]

    def test_wait_while_rows_are_out_and_done_when_nothing_can_come_back(self) -> None:
        run = OcclusionRun(ask(SUM_4X4, counting(4, 4)), OcclusionParameters((4, 4)))
        work = run.take(9)
        assert isinstance(work, Work)
        assert run.take(1) is Nothing.WAIT
        assert not run.finished
        run.absorb(work, compute(SUM_4X4, work.rows))
        assert run.take(1) is Nothing.DONE
        assert run.finished

    def test_windows_before_the_clean_image_are_kept_until_it_is_there(self) -> None:
        run = OcclusionRun(ask(SUM_4X4, counting(4, 4)), OcclusionParameters((2, 2)))
        driver = Driver(run, SUM_4X4)
        clean, windows = run.take(1), run.take(4)
        assert isinstance(clean, Work)
        assert isinstance(windows, Work)
        driver.absorb(windows)
        assert not planned(run)
        assert not run.tiles()
        driver.absorb(clean)
        assert planned(run)
        driver.drain()
        assert driver.canvas
        assert driver.canvas.final.all()

    def test_a_failed_run_is_finished_and_hands_out_nothing(self) -> None:
        run = OcclusionRun(ask(SUM_4X4, counting(4, 4)), OcclusionParameters((2, 2)))
        run.take(1)
        error = Internal("broken")
        run.fail(error)
        assert run.finished
        assert run.error is error
        assert not isinstance(run.take(1), Work)

    def test_a_run_stopped_before_its_first_answer_has_no_plan(self) -> None:
        run = OcclusionRun(ask(SUM_4X4, counting(4, 4)), OcclusionParameters((2, 2)))
        run.stop()
        assert run.finished
        assert run.plan is None
        summary = run.summary()
        assert (summary.done, summary.skipped, summary.dropped) == (0, 0, 5)
        assert summary.evaluated_windows == b"\x00"


class TestRefusals:
    @pytest.mark.parametrize(
        ("patch", "stride", "field", "message"),
        [
            ((0, 1), None, "patch.rows", "patch.rows is 0; it must be 1 to 4, the image's rows"),
            ((5, 1), None, "patch.rows", "patch.rows is 5; it must be 1 to 4, the image's rows"),
            ((1, 7), None, "patch.columns", "patch.columns is 7; it must be 1 to 6, the image's columns"),
            ((2, 2), (0, 1), "stride.rows", "stride.rows is 0; it must be 1 to 2, the patch"),
            ((2, 2), (2, 3), "stride.columns", "stride.columns is 3; it must be 1 to 2, the patch"),
        ],
    )
    def test_patch_and_stride_that_do_not_fit(
        self, patch: tuple[int, int], stride: tuple[int, int] | None, field: str, message: str
    ) -> None:
        model = Linear(np.ones((1, 4, 6, 1)))
        with pytest.raises(InvalidArgument, match=message) as caught:
            OcclusionRun(ask(model, counting(4, 6)), OcclusionParameters(patch, stride))
        assert caught.value.field == f"spec.occlusion.{field}"

    def test_more_scores_than_the_server_allows(self) -> None:
        model = Linear(np.ones((3, 4, 4, 1)))
        question = ask(model, counting(4, 4), limits=Limits(scores=47))
        with pytest.raises(
            ResourceExhausted, match="16 windows times 3 targets are 48 scores; at most 47"
        ) as caught:
            OcclusionRun(question, OcclusionParameters((1, 1)))
        assert caught.value.field == "spec.occlusion.stride"
        OcclusionRun(ask(model, counting(4, 4), limits=Limits(scores=48)), OcclusionParameters((1, 1)))

    def test_a_huge_grid_is_refused_before_anything_is_allocated(self) -> None:
        image = np.zeros((60_000, 60_000, 1), np.uint8)  # pages that are never touched cost nothing
        model = Linear(np.ones((1, 1, 1, 1)))
        with pytest.raises(ResourceExhausted, match="3600000000 windows"):
            OcclusionRun(ask(model, image, dtype="UINT8"), OcclusionParameters((1, 1)))

    def test_a_model_whose_answers_depend_on_their_company(self) -> None:
        question = ask(
            SUM_4X4, counting(4, 4), capabilities=Capabilities(occlusion_reason="batch norm learns")
        )
        with pytest.raises(FailedPrecondition, match="batch norm learns") as caught:
            OcclusionRun(question, OcclusionParameters((1, 1)))
        assert caught.value.field == "spec.occlusion"


def test_an_integer_image_is_hidden_with_a_rounded_fill() -> None:
    model = Linear(np.ones((1, 1, 2, 1)))
    image = np.array([[[10], [20]]], np.uint8)
    run = OcclusionRun(ask(model, image, dtype="UINT8"), OcclusionParameters((1, 1), fill=Constant((2.6,))))
    assert whole_map(run, model).values[0].tolist() == [[7.0, 17.0]]
