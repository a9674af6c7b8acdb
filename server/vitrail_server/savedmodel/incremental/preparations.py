"""The plans of one version: made in the background when a grid is first asked for, and kept for the next.

An explanation never waits for a plan. As long as there is none, or none that pays, it runs in full; which of
the two it is, is decided when it begins and never changes.
"""

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

from vitrail_server.savedmodel.incremental.budget import CacheBudget
from vitrail_server.savedmodel.incremental.check import LARGEST_BATCH, Trial
from vitrail_server.savedmodel.incremental.evaluator import Evaluator, table_bytes
from vitrail_server.savedmodel.incremental.graph import SizedGraph
from vitrail_server.savedmodel.incremental.plan import FEWEST_WINDOWS, Plan, make_plan
from vitrail_server.savedmodel.incremental.program import IncrementalProgram, Prepared
from vitrail_server.savedmodel.incremental.weights import Weights
from vitrail_server.savedmodel.memory import release_memory
from vitrail_server.savedmodel.probe import Run, Sample
from vitrail_server.savedmodel.products import Products
from vitrail_server.savedmodel.programs import ForwardFunction
from vitrail_server.servable import ImageSize, Program, WindowGrid
from vitrail_server.wording import reason_of

MOST_PLANS = 16
"""Grids of one version that are remembered; one more forgets the one that was not used for longest."""

TYPICAL_WINDOWS = 14
"""Windows along each side of the image by which a version is judged when it is loaded: 16 pixels of 224."""

log = logging.getLogger(__name__)

Background = Callable[[Callable[[], None]], object]
"""Runs something on a thread that is neither the event loop's nor the device's, when it gets to it."""


@dataclass(frozen=True, slots=True)
class PlannedModel:
    """What plans are made of: one version's forward."""

    graphs: Mapping[ImageSize, SizedGraph]
    weights: Weights
    forward: ForwardFunction
    inputs: Sequence[str]
    outputs: tuple[str, ...]
    """The names of the graph's outputs, in order."""
    explained: tuple[str, ...]
    """Those with a row of numbers per image."""
    samples: Mapping[ImageSize, Sample]
    programs: Mapping[ImageSize, Program]
    """The full forwards."""
    max_batch_size: int | None
    """The largest batch that the model's configuration allows. None: no limit."""
    products: Products = nullcontext
    """How its functions are to be run."""


@dataclass(slots=True)
class _Entry:
    """What became of a grid: nothing yet, something that can be used, or a reason."""

    prepared: Prepared | None = None
    reason: str = "it is being prepared"


class Preparations:
    """Plans by image size and grid. `program` is for the event loop; the rest happens in the background."""

    def __init__(
        self,
        model: PlannedModel,
        *,
        run: Run,
        background: Background,
        budget: CacheBudget,
        time_slice: float,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._model: PlannedModel | None = model
        self._run = run
        self._background = background
        self._budget = budget
        self._time_slice = time_slice
        self._clock = clock
        self._entries: OrderedDict[tuple[ImageSize, WindowGrid], _Entry] = OrderedDict()

    def program(self, size: ImageSize, grid: WindowGrid) -> IncrementalProgram | None:
        """Return a program for one explanation, to be closed after it; None if it is to run in full.

        A grid that was never asked for is prepared in the background for the next time.
        """
        if self._model is None or len(grid) < FEWEST_WINDOWS:
            return None
        key = size, grid
        if key not in self._entries:
            entry = self._entries[key] = _Entry()
            while len(self._entries) > MOST_PLANS:
                self._entries.popitem(last=False)
            self._background(lambda: self._prepare(size, grid, entry))
            return None
        self._entries.move_to_end(key)
        prepared = self._entries[key].prepared
        if prepared is None or prepared.failure:
            return None
        give_back = self._budget.take(prepared.evaluator.table_bytes)
        return None if give_back is None else IncrementalProgram(prepared, give_back, self._clock)

    def reason(self, size: ImageSize, grid: WindowGrid) -> str:
        """Return why explanations of this grid run in full; empty if they do not have to."""
        if len(grid) < FEWEST_WINDOWS:
            return f"there are fewer than {FEWEST_WINDOWS} windows"
        entry = self._entries.get((size, grid))
        if entry is None:
            return "it was never asked for"
        return entry.prepared.failure if entry.prepared else entry.reason

    def close(self) -> None:
        """Prepare nothing more, and forget everything."""
        self._model = None
        self._entries.clear()

    def _prepare(self, size: ImageSize, grid: WindowGrid, entry: _Entry) -> None:
        model = self._model
        if model is None:
            return
        try:
            entry.prepared, entry.reason = self._prepared(model, size, grid)
        except Exception as error:  # whatever it is, the full forward still works
            if self._model is not None:  # else it was taken away from under this
                log.exception("a plan for incremental occlusion could not be made")
            entry.reason = f"it could not be prepared: {reason_of(error)}"
        if self._model is None:  # unloaded meanwhile
            entry.prepared = model = None
            release_memory()

    def _prepared(
        self, model: PlannedModel, size: ImageSize, grid: WindowGrid
    ) -> tuple[Prepared | None, str]:
        graph = model.graphs[size]
        plan = make_plan(graph, grid)
        if not plan.worthwhile:
            return None, obstacle_of(plan)
        needed = table_bytes(graph, plan)
        if needed > self._budget.limit:
            return None, (
                f"its activations take {needed} bytes, and --incremental-cache-bytes allows "
                f"{self._budget.limit}"
            )
        sample, full = model.samples[size], model.programs[size]
        image_input = sample.layout.image_input
        evaluator = Evaluator(
            graph,
            plan,
            model.weights,
            model.inputs,
            image_input,
            model.outputs,
            products=model.products,
        )
        trial = Trial(evaluator, model.forward, model.explained, sample.layout, self._run, self._clock)
        verdict = trial.verdict(
            sample.subjects[0],
            largest=min(LARGEST_BATCH, model.max_batch_size or LARGEST_BATCH),
            time_slice=self._time_slice,
            full_batch=full.batch_size,
        )
        log.info(
            "incremental occlusion of %d windows: %s (%.2f times as fast, error %.1e, noise %.1e)",
            len(grid),
            verdict.reason or f"batches of {verdict.batch_size}",
            verdict.speedup,
            verdict.error,
            verdict.noise,
        )
        if verdict.reason:
            return None, verdict.reason
        return Prepared(evaluator, verdict.batch_size, verdict.seconds), ""


def typical_grid(size: ImageSize) -> WindowGrid:
    """Return windows side by side, `TYPICAL_WINDOWS` along each side of an image."""
    height, width = size
    return WindowGrid(_side_by_side(height), _side_by_side(width))


def obstacle_of(plan: Plan) -> str:
    """Return why a plan is not worthwhile."""
    behind = f": {plan.obstacle} needs its whole input" if plan.obstacle else ""
    return f"a window needs only {plan.gain:.2f} times fewer multiplications than a forward{behind}"


def _side_by_side(extent: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    patch = max(1, extent // TYPICAL_WINDOWS)
    starts = tuple(range(0, extent, patch))
    return starts, tuple(min(start + patch, extent) for start in starts)
