"""One network: its maps computed incrementally and in full, compared, and timed in turn."""

import statistics
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from incremental_maps.networks import IMAGE_RANGES, concrete_function, picture
from vitrail_server.explainers.fills import blurred
from vitrail_server.explainers.grid import windows_along
from vitrail_server.savedmodel.flatten import flatten
from vitrail_server.savedmodel.functions import Forward, flat_forward
from vitrail_server.savedmodel.incremental.check import LARGEST_BATCH, NOISE, TOLERANCE
from vitrail_server.savedmodel.incremental.evaluator import Evaluator
from vitrail_server.savedmodel.incremental.graph import SizedGraph
from vitrail_server.savedmodel.incremental.plan import make_plan
from vitrail_server.savedmodel.incremental.weights import Weights
from vitrail_server.savedmodel.passes import simplify
from vitrail_server.savedmodel.rows import InputLayout, RowBuffer, RowLayout
from vitrail_server.servable import WindowGrid
from vitrail_server.work import Subject

T = TypeVar("T")

FULL_BATCH = 8
"""Images in a batch of full forwards; larger ones are no faster on one core."""

TIME_SLICE = 0.3
"""Seconds that a batch of windows may take, as in the server."""

ROUNDS = 5


@dataclass(frozen=True)
class Case:
    """A grid of windows side by side, and what they show."""

    patch: int
    fill: str


CASES = (Case(16, "constant"), Case(32, "blurred image"))


@dataclass(frozen=True)
class Finding:
    """What was found of one network and one case."""

    network: str
    patch: int
    fill: str
    windows: int
    multiplications_saved: float
    """How many times fewer a window needs than a forward, by the plan."""
    worthwhile: bool
    """Whether the planner takes it."""
    largest_difference: float
    """Between the maps, as a part of the largest output."""
    largest_noise: float
    """Between the full forward in two batch sizes, as a part of the largest output."""
    largest_difference_of_map: float
    """Between the maps, as a part of the full map's span."""
    holds: bool
    speedup: float
    """Of a whole map over the full forward, in processor seconds."""
    batch_size: int
    table_bytes: int

    def as_json(self) -> Mapping[str, Any]:
        """Return it as a JSON object."""
        return asdict(self)


class Proof:
    """A network, ready to be explained in both ways."""

    def __init__(self, name: str) -> None:
        self._name = name
        concrete = concrete_function(name)
        outputs = [f"output_{place}" for place in range(len(concrete.outputs))]
        self._forward: Forward = flat_forward(simplify(flatten(concrete)), ["image"], outputs)
        flat = self._forward.flat
        if flat is None:
            raise RuntimeError("a forward of a flat graph has one")
        self._flat = flat
        self._shape: tuple[int, int, int] = tuple(concrete.inputs[0].shape[1:])
        self._graph = SizedGraph(flat, flat.inputs[0], self._shape[:2])
        self._weights = Weights(flat.constants, self._forward.held)
        self._layout = RowLayout("image", InputLayout(self._shape, np.dtype(np.float32)), {})

    def finding(self, case: Case) -> Finding:
        """Compute every map of a case in both ways."""
        grid, windows = self._windows(case.patch)
        subject = self._subject(case.fill)
        plan = make_plan(self._graph, grid)
        evaluator = Evaluator(self._graph, plan, self._weights, ["image"], "image", self._forward.outputs)
        tables = evaluator.tables(subject)
        names = self._forward.outputs[:1]

        def some(which: NDArray[np.int32]) -> NDArray[np.float32]:
            [output] = evaluator.outputs(tables, subject, which, names).values()
            return output.astype(np.float32)

        def full(which: NDArray[np.int32]) -> NDArray[np.float32]:
            return self._full(subject, which, names)

        batch = self._batch_size(some, windows)
        found, expected = in_batches(some, windows, batch), in_batches(full, windows, FULL_BATCH)
        other = in_batches(full, windows[: 2 * FULL_BATCH], 1)
        scale = float(np.abs(expected).max())
        target = int(expected[0].argmax())
        scores, right = (each[0, target] - each[1:, target] for each in (found, expected))
        difference = float(np.abs(found - expected).max()) / scale
        noise = float(np.abs(other - expected[: len(other)]).max()) / scale
        seconds = self._side_by_side(
            lambda: some(windows[:batch]),
            lambda: full(windows[:FULL_BATCH]),
            lambda: evaluator.tables(subject),
        )
        rows = len(windows)
        return Finding(
            self._name,
            case.patch,
            case.fill,
            rows - 1,
            round(plan.gain, 3),
            plan.worthwhile,
            difference,
            noise,
            float(np.abs(scores - right).max() / (np.ptp(right) or 1.0)),
            difference <= max(TOLERANCE, NOISE * noise),
            round(rows * seconds[1] / FULL_BATCH / (rows * seconds[0] / batch + seconds[2]), 3),
            batch,
            evaluator.table_bytes,
        )

    def _windows(self, patch: int) -> tuple[WindowGrid, NDArray[np.int32]]:
        """Return a grid and its windows, after one that hides nothing."""
        rows, columns = (windows_along(extent, patch, patch, "CLIP").edges for extent in self._shape[:2])
        windows = [(0, 0, 0, 0)] + [
            (top, left, bottom, right)
            for top, bottom in zip(*rows, strict=True)
            for left, right in zip(*columns, strict=True)
        ]
        return WindowGrid(rows, columns), np.array(windows, np.int32)

    def _subject(self, fill: str) -> Subject:
        low, high = IMAGE_RANGES[self._name]
        image = picture(self._shape, (low, high), seed=7)
        middle = np.full((1, 1, 1), (low + high) / 2, np.float32)
        return Subject(image, {}, middle if fill == "constant" else blurred(image, 8).astype(np.float32))

    def _full(
        self, subject: Subject, windows: NDArray[np.int32], names: Collection[str]
    ) -> NDArray[np.float32]:
        rows = [(subject, (top, left, bottom, right)) for top, left, bottom, right in windows.tolist()]
        [output] = self._forward(RowBuffer(self._layout, len(rows)).fill(rows), names).values()
        return output.astype(np.float32)

    def _batch_size(self, some: Callable[[NDArray[np.int32]], object], windows: NDArray[np.int32]) -> int:
        some(windows[:4])
        _, seconds = timed(lambda: some(windows[:4]))
        batch = 1
        while 2 * batch <= LARGEST_BATCH and 2 * batch * seconds / 4 <= TIME_SLICE:
            batch *= 2
        return batch

    def _side_by_side(self, *sides: Callable[[], object]) -> list[float]:
        """Return the processor seconds of each side: medians of rounds in which all take their turn."""
        rounds = [[timed(side)[1] for side in sides] for _ in range(ROUNDS)]
        return [statistics.median(each) for each in zip(*rounds, strict=True)]


def in_batches(
    compute: Callable[[NDArray[np.int32]], NDArray[np.float32]], windows: NDArray[np.int32], size: int
) -> NDArray[np.float32]:
    """Compute all windows in batches of one size, the last one padded as in the server."""
    parts = []
    for start in range(0, len(windows), size):
        part = windows[start : start + size]
        padded = np.pad(part, ((0, size - len(part)), (0, 0)), "edge")
        parts.append(compute(padded)[: len(part)])
    return np.concatenate(parts)


def timed(execute: Callable[[], T]) -> tuple[T, float]:
    """Return the result and the seconds of processor time."""
    began = time.process_time()
    result = execute()
    return result, time.process_time() - began


def use_one_thread() -> None:
    """Let TensorFlow compute with one thread; before anything is computed."""
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
