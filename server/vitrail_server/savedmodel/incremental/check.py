"""Tries a new plan against the full forward: the same numbers, and faster, or not used at all."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from vitrail_server.savedmodel.incremental.evaluator import Evaluator, Tables
from vitrail_server.savedmodel.measure import AROUND
from vitrail_server.savedmodel.probe import Run
from vitrail_server.savedmodel.programs import ForwardFunction
from vitrail_server.savedmodel.rows import RowBuffer, RowLayout
from vitrail_server.work import OutOfMemory, Subject

T = TypeVar("T")

LARGEST_BATCH = 16
"""Windows in a batch; more gained nothing on a CPU, where their maps no longer fit its caches."""

BATCHES = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, LARGEST_BATCH)
"""The sizes tried: close together, because a batch of a large network has room for few windows, each of which
shares the reading of its weights, and because a small grid should fill its last batch."""

ABOUT = 0.02
"""How much longer a map may take with smaller batches: its first tiles come earlier, and others wait less."""

TOLERANCE = 1e-5
"""How far outputs may be from the full forward's, as a part of the largest."""

NOISE = 10
"""Or how many times as far as the full forward is from itself in another batch size."""

LEAST_SPEEDUP = 1.1
ROUNDS = 3
"""How often both are timed, in turn; the fastest counts."""

Answers = Mapping[str, NDArray[np.generic]]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What trying a plan showed."""

    reason: str
    """Why it is not used; empty if it is."""
    batch_size: int = 1
    seconds: float = 0.0
    """How long a batch takes."""
    error: float = 0.0
    """The largest difference to the full forward, as a part of the largest output."""
    noise: float = 0.0
    """The same of the full forward to itself."""
    speedup: float = 0.0
    """Of a whole map over the full forward."""


class Trial:
    """Runs one plan beside the full forward."""

    def __init__(
        self,
        evaluator: Evaluator,
        forward: ForwardFunction,
        outputs: tuple[str, ...],
        layout: RowLayout,
        run: Run,
        clock: Callable[[], float],
    ) -> None:
        self._evaluator = evaluator
        self._forward = forward
        self._names = outputs
        self._layout = layout
        self._run = run
        self._clock = clock

    def verdict(self, subject: Subject, *, largest: int, time_slice: float, full_batch: int) -> Verdict:
        """Choose a batch size of at most `largest` rows, compare, and time.

        `full_batch` is the batch size of the full forward. Every execution goes through `run`. Batches that
        there is no memory for are tried again with half the rows.
        """
        while True:
            try:
                return self._verdict(subject, largest, time_slice, full_batch)
            except OutOfMemory:
                if largest == 1:
                    return Verdict("there is not enough memory for it")
                largest //= 2

    def _verdict(self, subject: Subject, largest: int, time_slice: float, full_batch: int) -> Verdict:
        grid = self._evaluator.plan.grid
        windows = example_windows(grid.rows, grid.columns, LARGEST_BATCH)
        self._timed(lambda: self._evaluator.tables(subject))  # prepares the function; its tables go
        tables, preparing = self._timed(lambda: self._evaluator.tables(subject))
        batch = self._batch_size(tables, subject, windows, largest, time_slice)
        while batch > 1 and not self._slots_alike(tables, subject, windows[:batch]):
            batch = max(size for size in BATCHES if size < batch)
        some = windows[:batch]
        found = self._run(lambda: self._evaluator.outputs(tables, subject, some, self._names))
        expected = self._full(subject, some, full_batch)
        other = self._full(subject, some[:1], 1 if full_batch > 1 else 2)
        error = difference(expected, found)
        noise = difference(first_row(expected), other)
        if not error <= max(TOLERANCE, NOISE * noise):
            return Verdict(
                f"it differs from the full forward by {error:.1e} of the largest output, where the forward "
                f"differs from itself by {noise:.1e}",
                error=error,
                noise=noise,
            )
        full = np.resize(windows, (full_batch, 4))
        seconds, full_seconds = self._side_by_side(tables, subject, some, full)
        rows = len(grid) + 1
        speedup = rows * full_seconds / full_batch / (preparing + rows * seconds / batch)
        reason = ""
        if speedup < LEAST_SPEEDUP:
            reason = f"it was measured {speedup:.2f} times as fast as the full forward"
        return Verdict(reason, batch, seconds, error, noise, speedup)

    def _batch_size(
        self, tables: Tables, subject: Subject, windows: NDArray[np.int32], largest: int, time_slice: float
    ) -> int:
        """Return the size that takes a map the least time, of at most `largest` rows and within the slice."""

        def seconds(size: int) -> float:
            some = windows[:size]
            calls = [
                self._timed(lambda: self._evaluator.outputs(tables, subject, some, self._names))[1]
                for _ in range(ROUNDS)
            ]
            return min(calls[1:])  # the first one prepares the function

        few = min(4, largest)
        measured = {few: seconds(few)}
        if measured[few] > time_slice:
            return max([1, *(size for size in BATCHES if size * measured[few] / few <= time_slice)])
        rows = len(self._evaluator.plan.grid) + 1
        for size in [each for each in BATCHES if few < each <= largest]:
            if -(-rows // size) == -(-rows // max(measured)):
                continue  # as many batches as before, only larger
            taken = seconds(size)
            if taken > time_slice:
                break
            measured[size] = taken
        return cheapest(measured, rows)

    def _slots_alike(self, tables: Tables, subject: Subject, windows: NDArray[np.int32]) -> bool:
        """Return whether windows get the same bits in other places of a batch, as far as this can tell."""
        order = np.random.default_rng(0).permutation(len(windows))
        here, there = (
            self._run(partial(self._evaluator.outputs, tables, subject, each, self._names))
            for each in (windows, windows[order])
        )
        return all(here[name][order].tobytes() == there[name].tobytes() for name in self._names)

    def _side_by_side(
        self, tables: Tables, subject: Subject, some: NDArray[np.int32], full: NDArray[np.int32]
    ) -> tuple[float, float]:
        """Return the seconds of a batch of windows, and of a batch of full forwards."""
        own, others = [], []
        for _ in range(ROUNDS):
            own.append(self._timed(lambda: self._evaluator.outputs(tables, subject, some, self._names))[1])
            others.append(self._timed(lambda: self._forward_on(subject, full))[1])
        return min(own), min(others)

    def _full(self, subject: Subject, windows: NDArray[np.int32], size: int) -> Answers:
        """Return the full forward's outputs, in batches of `size`: another size would take other memory."""
        padded = np.pad(windows, ((0, -len(windows) % size), (0, 0)), "edge")
        batches = [
            self._run(partial(self._forward_on, subject, some))
            for some in np.split(padded, len(padded) // size)
        ]
        return {
            name: np.concatenate([each[name] for each in batches])[: len(windows)] for name in self._names
        }

    def _forward_on(self, subject: Subject, windows: NDArray[np.int32]) -> Answers:
        rows = [(subject, (top, left, bottom, right)) for top, left, bottom, right in windows.tolist()]
        return self._forward(RowBuffer(self._layout, len(rows)).fill(rows), self._names)

    def _timed(self, execute: Callable[[], T]) -> tuple[T, float]:
        """Return the result and the seconds, those of waiting for the device left out."""

        def timed() -> tuple[T, float]:
            began = self._clock()
            result = execute()
            return result, self._clock() - began

        return self._run(timed)


def cheapest(seconds: Mapping[int, float], rows: int) -> int:
    """Return the smallest batch size with which so many rows take about the least time.

    `seconds` are those of a batch of each size. The last batch is filled up, and around each the server has
    other things to do.
    """
    of_map = {size: -(-rows // size) * (each + AROUND) for size, each in seconds.items()}
    return min(size for size, each in of_map.items() if each <= (1 + ABOUT) * min(of_map.values()))


def example_windows(
    rows: tuple[tuple[int, ...], tuple[int, ...]],
    columns: tuple[tuple[int, ...], tuple[int, ...]],
    count: int,
) -> NDArray[np.int32]:
    """Return `count` windows (n, 4) of a grid: none at all, the corners, and some between.

    A small grid is gone through again.
    """
    last_row, last_column = len(rows[0]) - 1, len(columns[0]) - 1
    corners = [(0, 0), (last_row, last_column), (0, last_column), (last_row, 0)]
    random = np.random.default_rng(0)
    between = random.integers(0, (last_row + 1, last_column + 1), (max(0, count - 5), 2)).tolist()
    chosen = [(rows[0][y], columns[0][x], rows[1][y], columns[1][x]) for y, x in [*corners, *between]]
    return np.array([(0, 0, 0, 0), *chosen], np.int32)[:count]


def difference(expected: Answers, found: Answers) -> float:
    """Return the largest difference, as a part of the largest number of its output; inf if a NaN moved."""
    return max((_difference(expected[name], found[name]) for name in expected), default=0.0)


def first_row(answers: Answers) -> Answers:
    """Return the answers for the first row alone."""
    return {name: answer[:1] for name, answer in answers.items()}


def _difference(expected: NDArray[np.generic], found: NDArray[np.generic]) -> float:
    one, other = expected.astype(np.float64), found.astype(np.float64)
    if one.shape != other.shape or not np.array_equal(np.isfinite(one), np.isfinite(other)):
        return np.inf
    finite = np.isfinite(one)
    if not np.array_equal(one[~finite], other[~finite], equal_nan=True):
        return np.inf
    largest = np.abs(one[finite]).max(initial=0.0)
    apart = np.abs(one[finite] - other[finite]).max(initial=0.0)
    return float(apart / largest) if largest else float(np.inf if apart else 0.0)
