"""Plans of a version: prepared once, tried, budgeted, and given up where they do not hold."""

import weakref
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from itertools import count
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray

from savedmodel.conftest import Caches
from savedmodel.incremental.nets import Net, Tensor, all_windows, differences, grid_of, kernel, net, numbers
from vitrail.errors import Unavailable
from vitrail_server.savedmodel.incremental import preparations
from vitrail_server.savedmodel.incremental.budget import CacheBudget
from vitrail_server.savedmodel.incremental.check import Trial, cheapest, difference, example_windows
from vitrail_server.savedmodel.incremental.evaluator import Evaluator
from vitrail_server.savedmodel.incremental.preparations import PlannedModel, Preparations
from vitrail_server.savedmodel.incremental.program import IncrementalProgram
from vitrail_server.savedmodel.incremental.weights import Weights
from vitrail_server.savedmodel.probe import Sample
from vitrail_server.savedmodel.programs import BatchProgram, Evaluate, ForwardFunction
from vitrail_server.savedmodel.rows import Arrays, InputLayout, RowLayout
from vitrail_server.servable import WindowGrid
from vitrail_server.work import OccludeRows, OutOfMemory, Subject

SIZE = (20, 20)
GRID = grid_of(SIZE, (4, 4), (4, 4))
LAYOUT = RowLayout("image", InputLayout((*SIZE, 3), np.dtype(np.float32)), {})


def network(image: Tensor) -> list[Tensor]:
    x = tf.nn.relu(tf.nn.conv2d(image, kernel(3, 3, 3, 8), 1, "SAME"))
    return [tf.reduce_mean(x, [1, 2]) @ tf.constant(numbers(8, 5))]


@pytest.fixture(scope="module")
def tested() -> Net:
    return net(network, SIZE)


class Bench:
    """What preparations need; the background waits until it is told to go on."""

    def __init__(
        self,
        tested: Net,
        limit: int = 1 << 20,
        full_batch: int = 1,
        allowance: int = 1 << 40,
        forward: ForwardFunction | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self.tested = tested
        self.waiting: list[Callable[[], None]] = []
        self.caches = Caches()
        self.executed = 0
        ticks = count()
        program = BatchProgram(Evaluate(tested.forward), LAYOUT, full_batch)
        self.model = PlannedModel(
            graphs={SIZE: tested.graph},
            weights=Weights(tested.flat.constants, {}),
            forward=forward or tested.forward,
            inputs=("image",),
            outputs=tested.forward.outputs,
            explained=tested.forward.outputs,
            samples={SIZE: Sample(LAYOUT, (0, 1), 1)},
            programs={SIZE: program},
            max_batch_size=None,
            allowance=allowance,
        )
        self.preparations = Preparations(
            self.model,
            run=self.run,
            background=self.waiting.append,
            budget=CacheBudget(limit, self.caches),
            time_slice=1000,
            clock=clock or (lambda: float(next(ticks))),
            resident=lambda: 0,
        )

    def run(self, execute: Callable[[], Any]) -> Any:
        self.executed += 1
        return execute()

    def prepare(self) -> None:
        while self.waiting:
            self.waiting.pop(0)()

    def program(self, grid: WindowGrid = GRID) -> IncrementalProgram | None:
        return self.preparations.program(SIZE, grid)

    def reason(self, grid: WindowGrid = GRID) -> str:
        return self.preparations.reason(SIZE, grid)


def prepared(bench: Bench) -> IncrementalProgram:
    assert bench.program() is None
    bench.prepare()
    program = bench.program()
    assert program is not None, bench.reason()
    return program


def rows(subject: Subject, windows: NDArray[np.int32]) -> OccludeRows:
    return OccludeRows(subject, "output_0", windows)


def test_a_grid_is_prepared_in_the_background_and_served_from_then_on(tested: Net) -> None:
    bench = Bench(tested)

    assert bench.reason() == "it was never asked for"
    assert bench.program() is None
    assert bench.reason() == "it is being prepared"
    assert bench.program() is None
    assert len(bench.waiting) == 1
    assert bench.executed == 0
    bench.prepare()
    assert bench.executed > 0
    assert bench.reason() == ""
    first, second = bench.program(), bench.program()
    assert first is not None
    assert first is not second
    assert first.batch_size == 14


def test_a_map_in_batches_that_are_padded(tested: Net) -> None:
    """The bits are the same however the rows come, and those of the full forward up to rounding."""
    program = prepared(Bench(tested))
    subject, windows = tested.subject("image"), all_windows(GRID)
    whole = np.concatenate(
        [program.execute([rows(subject, windows[start : start + 14])])[0].outputs for start in (0, 14)]
    )
    again = np.concatenate(
        [program.execute([rows(subject, windows[start : start + 14])])[0].outputs for start in (0, 14)]
    )

    assert len(whole) == len(windows) == 26
    assert whole.tobytes() == again.tobytes()
    assert differences({"output_0": whole}, tested.fully(subject, windows)) <= 1e-5


def test_the_tables_are_made_once_for_an_image(tested: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    program = prepared(Bench(tested))
    made: list[Subject] = []
    tables = Evaluator.tables

    def counted(self: Evaluator, subject: Subject) -> Any:
        made.append(subject)
        return tables(self, subject)

    monkeypatch.setattr(Evaluator, "tables", counted)
    subject, windows = tested.subject(), all_windows(GRID)
    for start in (0, 8, 16):
        program.execute([rows(subject, windows[start : start + 8])])

    assert made == [subject]


def test_caches_are_budgeted_and_given_back(tested: Net) -> None:
    needed = 4 * (2 + 20 * 20) * 3 + 4 * (2 + 20 * 20) * 8  # the image and the activations
    bench = Bench(tested, limit=2 * needed)
    first = prepared(bench)
    second = bench.program()

    assert bench.caches.sizes == [0, needed, 2 * needed]
    assert bench.program() is None  # in full: there is no room for a third
    assert bench.reason() == ""
    first.close()
    first.close()
    assert bench.caches.sizes[-1] == needed
    assert bench.program() is not None
    assert second is not None


def test_a_plan_that_could_never_be_kept_is_not_prepared(tested: Net) -> None:
    bench = Bench(tested, limit=1000)
    bench.program()
    bench.prepare()

    assert bench.program() is None
    assert bench.reason().endswith("--incremental-cache-bytes allows 1000")
    assert bench.executed == 0


def test_few_windows_are_not_worth_it(tested: Net) -> None:
    bench, few = Bench(tested), grid_of(SIZE, (4, 20), (4, 20))

    assert bench.program(few) is None
    assert not bench.waiting
    assert bench.reason(few) == "there are fewer than 8 windows"


def test_a_plan_that_saves_little_is_refused_with_what_stands_in_the_way() -> None:
    def transposed(image: Tensor) -> Tensor:
        return tf.nn.conv2d(tf.transpose(image, [0, 2, 1, 3]), kernel(3, 3, 3, 4), 1, "SAME")

    whole = net(transposed, SIZE)
    bench = Bench(whole)
    bench.program()
    bench.prepare()

    assert bench.program() is None
    assert "1.00 times fewer multiplications" in bench.reason()
    assert "(Transpose)" in bench.reason()


def test_the_oldest_grid_is_forgotten(tested: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparations, "MOST_GRIDS", 2)
    bench = Bench(tested)
    grids = [grid_of(SIZE, (size, size), (size, size)) for size in (3, 4, 5)]
    for grid in grids:
        bench.program(grid)
        bench.prepare()

    assert bench.reason(grids[0]) == "it was never asked for"
    assert bench.reason(grids[2]) == ""


def test_a_closed_version_prepares_nothing(tested: Net) -> None:
    bench = Bench(tested)
    bench.program()
    bench.preparations.close()
    bench.prepare()

    assert bench.executed == 0
    assert bench.program() is None


def test_a_plan_that_cannot_be_prepared_says_so(
    tested: Net, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise ValueError("no such thing")

    monkeypatch.setattr(preparations, "make_plan", broken)
    bench = Bench(tested)
    bench.program()
    bench.prepare()

    assert bench.program() is None
    assert bench.reason() == "it could not be prepared: ValueError: no such thing"
    assert caplog.messages == ["a plan for incremental occlusion could not be made"]


def test_a_version_that_goes_while_a_plan_is_made_is_no_failure(
    tested: Net, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench(tested)

    def gone(*_: object) -> None:
        bench.preparations.close()
        raise Unavailable("the server is shutting down")

    monkeypatch.setattr(preparations, "make_plan", gone)
    bench.program()
    bench.prepare()

    assert bench.program() is None
    assert caplog.messages == []


def test_out_of_memory_halves_the_batch_here_and_later(tested: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(tested)
    program = prepared(bench)
    monkeypatch.setattr(Evaluator, "outputs", exhausted)
    windows = all_windows(GRID)
    with pytest.raises(OutOfMemory):
        program.execute([rows(tested.subject(), windows[:14])])
    assert program.halve()
    assert program.batch_size == 7
    later = bench.program()
    assert later is not None
    assert later.batch_size == 7
    while program.halve():
        pass
    with pytest.raises(OutOfMemory):
        program.execute([rows(tested.subject(), windows[:1])])
    assert bench.program() is None
    assert bench.reason() == "it ran out of memory with a single window"


def exhausted(*_: object) -> None:
    raise OutOfMemory


def fitting_only(most: int) -> Any:
    """Return what evaluates at most so many windows at a time."""
    outputs = Evaluator.outputs

    def scarce(
        self: Evaluator, tables: Any, subject: Subject, windows: NDArray[np.int32], wanted: Collection[str]
    ) -> Any:
        if len(windows) > most:
            raise OutOfMemory
        return outputs(self, tables, subject, windows, wanted)

    return scarce


def test_rows_that_ran_out_of_memory_are_computed_in_smaller_batches(
    tested: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = prepared(Bench(tested))
    monkeypatch.setattr(Evaluator, "outputs", fitting_only(9))
    subject, windows = tested.subject("image"), all_windows(GRID)
    with pytest.raises(OutOfMemory):
        program.execute([rows(subject, windows[:14])])
    assert program.halve()
    parts = [windows[start : start + 7] for start in range(0, len(windows), 7)]
    whole = np.concatenate([program.execute([rows(subject, part)])[0].outputs for part in parts])

    assert len(whole) == len(windows)
    assert differences({"output_0": whole}, tested.fully(subject, windows)) <= 1e-5


def test_a_failure_ends_the_plan(tested: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(tested)
    program = prepared(bench)

    def failing(*_: object) -> None:
        raise RuntimeError("the graph is broken")

    monkeypatch.setattr(Evaluator, "outputs", failing)
    with pytest.raises(RuntimeError):
        program.execute([rows(tested.subject(), all_windows(GRID)[:14])])
    assert bench.program() is None
    assert bench.reason() == "it failed: RuntimeError: the graph is broken"


def verdict(
    tested: Net,
    *,
    forward: ForwardFunction | None = None,
    seconds: Callable[[], float] | None = None,
    time_slice: float = 1000.0,
    full_batch: int = 2,
) -> Any:
    ticks = count()
    trial = Trial(
        tested.evaluator(tested.plan(GRID)),
        forward or tested.forward,
        ("output_0",),
        LAYOUT,
        lambda execute: execute(),
        seconds or (lambda: float(next(ticks))),
    )
    return trial.verdict(tested.subject(), largest=16, time_slice=time_slice, full_batch=full_batch)


def test_a_plan_that_gives_other_numbers_is_refused(tested: Net) -> None:
    def wrong(arrays: Arrays, wanted: Collection[str]) -> Mapping[str, NDArray[Any]]:
        return {
            name: each.astype(np.float32) * np.float32(1.001)
            for name, each in tested.forward(arrays, wanted).items()
        }

    found = verdict(tested, forward=wrong)

    assert found.reason.startswith("it differs from the full forward by 1.0e-03 of the largest output")
    assert verdict(tested).reason == ""


def test_a_noisy_forward_may_differ_by_its_noise(tested: Net) -> None:
    """Its numbers depend on the batch size, by 1e-4; so may ours."""

    def noisy(arrays: Arrays, wanted: Collection[str]) -> Mapping[str, NDArray[np.generic]]:
        factor = np.float32(1 + 1e-4 / len(arrays["image"]))
        return {
            name: each.astype(np.float32) * factor for name, each in tested.forward(arrays, wanted).items()
        }

    found = verdict(tested, forward=noisy)

    assert found.reason == ""
    assert found.error == pytest.approx(1e-4 / 2, rel=0.3)
    assert found.noise == pytest.approx(1e-4 / 2, rel=0.3)


@pytest.mark.parametrize(("full_batch", "sizes"), [(1, {1, 2}), (3, {1, 3}), (40, {1, 40})])
def test_the_full_forward_is_tried_in_the_batches_that_it_serves(
    tested: Net, full_batch: int, sizes: set[int]
) -> None:
    """Larger ones would take memory that nothing else needs; the other size is for the noise."""
    found: list[int] = []

    def forward(arrays: Arrays, wanted: Collection[str]) -> Mapping[str, NDArray[np.generic]]:
        found.append(len(arrays["image"]))
        return tested.forward(arrays, wanted)

    verdict(tested, forward=forward, full_batch=full_batch)
    assert set(found) == sizes


def test_a_plan_that_is_slow_is_refused(tested: Net) -> None:
    """By a clock on which batches of windows take as long per row as full ones do."""
    now = [0.0]
    outputs = Evaluator.outputs

    def slow(self: Evaluator, *arguments: Any) -> Any:
        now[0] += 7.0
        return outputs(self, *arguments)

    def full(arrays: Arrays, wanted: Collection[str]) -> Mapping[str, NDArray[np.generic]]:
        now[0] += 1.0
        return tested.forward(arrays, wanted)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Evaluator, "outputs", slow)
        found = verdict(tested, forward=full, seconds=lambda: now[0])

    assert found.reason == "it was measured 1.00 times as fast as the full forward"


def test_a_trial_keeps_the_tables_of_one_image_once(tested: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are as large as its maps; what the allocator once grew by for others it would keep."""
    made: list[list[weakref.ref[Any]]] = []
    alive: set[int] = set()
    tables, outputs = Evaluator.tables, Evaluator.outputs

    def noted(self: Evaluator, subject: Subject) -> Any:
        found = tables(self, subject)
        made.append([weakref.ref(each) for each in found])
        return found

    def counted(self: Evaluator, *arguments: Any) -> Any:
        alive.add(sum(any(each() is not None for each in some) for some in made))
        return outputs(self, *arguments)

    monkeypatch.setattr(Evaluator, "tables", noted)
    monkeypatch.setattr(Evaluator, "outputs", counted)
    prepared(Bench(tested))
    assert len(made) > 1
    assert alive == {1}


def test_a_plan_that_was_measured_slow_is_tried_again_later_and_later(
    tested: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A minute in which the machine is busy costs a grid its speed for some minutes, and not for good."""
    now, batch = [0.0], [14.0]
    outputs = Evaluator.outputs

    def measured(self: Evaluator, *arguments: Any) -> Any:
        now[0] += batch[0]
        return outputs(self, *arguments)

    def full(arrays: Arrays, wanted: Collection[str]) -> Mapping[str, NDArray[np.generic]]:
        now[0] += 1.0
        return tested.forward(arrays, wanted)

    def tried() -> bool:
        """Ask for the grid."""
        assert bench.program() is None
        asked = bool(bench.waiting)
        bench.prepare()
        return asked

    monkeypatch.setattr(Evaluator, "outputs", measured)
    bench = Bench(tested, forward=full, clock=lambda: now[0])
    assert tried()
    for wait in (60.0, 120.0, 240.0):
        assert bench.reason() == "it was measured 1.00 times as fast as the full forward"
        now[0] += wait - 1
        assert not tried()
        now[0] += 1
        assert tried()
    monkeypatch.setattr(preparations, "LONGEST_WAIT", 300.0)
    now[0] += 480
    assert tried()
    now[0] += 299
    assert not tried()
    batch[0] = 7.0
    now[0] += 1
    assert tried()
    assert bench.reason() == ""
    program = bench.program()
    assert program is not None


def test_a_plan_that_is_wrong_is_not_tried_again(tested: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = Evaluator.outputs

    def wrong(self: Evaluator, *arguments: Any) -> Any:
        return {name: values + 1 for name, values in outputs(self, *arguments).items()}

    monkeypatch.setattr(Evaluator, "outputs", wrong)
    now = [0.0]
    bench = Bench(tested, clock=lambda: now[0])
    assert bench.program() is None
    bench.prepare()
    assert "it differs from the full forward" in bench.reason()
    now[0] += 1e9
    assert bench.program() is None
    assert not bench.waiting


def test_the_batch_fits_the_time_slice(tested: Net) -> None:
    """By a clock on which every batch takes a second: the fewest batches win, those of 14 windows, since
    of 16 there would be two as well. If the first ones that are tried, of four, take too long, so do all."""
    assert verdict(tested, time_slice=1.0).batch_size == 14
    assert verdict(tested, time_slice=0.9).batch_size == 3
    assert verdict(tested, time_slice=0.1).batch_size == 1


def test_a_batch_that_takes_longer_than_the_slice_ends_the_search(
    tested: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock on which a window takes a second."""
    now, tried = [0.0], set()
    outputs = Evaluator.outputs

    def measured(
        self: Evaluator, tables: Any, subject: Subject, windows: NDArray[np.int32], *rest: Any
    ) -> Any:
        now[0] += len(windows)
        tried.add(len(windows))
        return outputs(self, tables, subject, windows, *rest)

    monkeypatch.setattr(Evaluator, "outputs", measured)
    found = verdict(tested, seconds=lambda: now[0], time_slice=6.0)
    assert found.batch_size == 4  # 28 s for 26 rows; with 5 and 6 they take 30
    assert max(tried) == 7


@pytest.mark.parametrize(
    ("seconds", "rows", "size"),
    [
        ({4: 0.4, 8: 0.8}, 32, 4),  # as fast, and earlier
        ({4: 0.4, 8: 0.78}, 32, 8),
        ({4: 0.4, 8: 0.79}, 32, 4),  # one per cent is not worth it
        (
            {10: 1.0, 16: 1.5},
            50,
            10,
        ),  # five batches of 1 s against four of 1.5 s, the last one with 2 windows
        ({10: 1.0, 16: 1.5}, 160, 16),
        ({4: 0.004, 8: 0.008}, 32, 8),  # 2 ms around each batch count
    ],
)
def test_the_batch_that_a_map_takes_the_least_time_with(
    seconds: dict[int, float], rows: int, size: int
) -> None:
    assert cheapest(seconds, rows) == size


@pytest.mark.parametrize(
    ("fitting", "batch", "reason"), [(5, 4, ""), (0, 1, "there is not enough memory for it")]
)
def test_a_trial_that_runs_out_of_memory_goes_on_with_smaller_batches(
    tested: Net, monkeypatch: pytest.MonkeyPatch, fitting: int, batch: int, reason: str
) -> None:
    monkeypatch.setattr(Evaluator, "outputs", fitting_only(fitting))
    found = verdict(tested)

    assert (found.batch_size, found.reason) == (batch, reason)


def test_the_windows_that_are_tried_hold_the_corners() -> None:
    windows = example_windows(GRID.rows, GRID.columns, 16)

    assert windows.shape == (16, 4)
    assert windows[:5].tolist() == [
        [0, 0, 0, 0],
        [0, 0, 4, 4],
        [16, 16, 20, 20],
        [0, 16, 4, 20],
        [16, 0, 20, 4],
    ]
    assert {tuple(each) for each in windows[5:].tolist()} <= {
        tuple(each) for each in all_windows(GRID).tolist()
    }


@pytest.mark.parametrize(
    ("found", "apart"),
    [
        ([1.0, 2.0, np.nan], 0.0),
        ([1.0, 2.5, np.nan], 0.25),
        ([1.0, np.nan, np.nan], np.inf),
        ([1.0, 2.0, 3.0], np.inf),
        ([1.0, 2.0, np.inf], np.inf),
    ],
)
def test_differences(found: list[float], apart: float) -> None:
    expected = {"y": np.array([[1.0, 2.0, np.nan]])}

    assert difference(expected, {"y": np.array([found])}) == apart


def test_outputs_that_are_all_zero_must_stay_so() -> None:
    zeros = {"y": np.zeros((1, 2))}

    assert difference(zeros, {"y": np.zeros((1, 2))}) == 0
    assert difference(zeros, {"y": np.array([[0, 1e-30]])}) == np.inf


def test_models_without_a_limit_and_with_one(tested: Net) -> None:
    bench = Bench(tested)
    bench.preparations._model = replace(bench.model, max_batch_size=3)
    program = prepared(bench)

    assert program.batch_size == 3
