"""The plans of one version: made in the background when a grid is first asked for, and kept for the next.

An explanation never waits for a plan. As long as there is none, or none that pays, it runs in full; which of
the two it is, is decided when it begins and never changes.

Plans take memory, a version at most its `allowance`. Where there is no room for another plan, one that was
not used for long makes way; but of grids that take turns one stays planned, and the others run in full.
"""

import logging
import math
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

from vitrail_server.savedmodel.incremental.allowance import charge
from vitrail_server.savedmodel.incremental.budget import CacheBudget
from vitrail_server.savedmodel.incremental.check import LARGEST_BATCH, Trial
from vitrail_server.savedmodel.incremental.evaluator import Evaluator, table_bytes
from vitrail_server.savedmodel.incremental.graph import SizedGraph
from vitrail_server.savedmodel.incremental.plan import FEWEST_WINDOWS, Plan, make_plan
from vitrail_server.savedmodel.incremental.program import IncrementalProgram, Prepared
from vitrail_server.savedmodel.incremental.weights import Weights
from vitrail_server.savedmodel.memory import release_memory, settled_bytes
from vitrail_server.savedmodel.probe import Run, Sample
from vitrail_server.savedmodel.products import Products
from vitrail_server.savedmodel.programs import ForwardFunction
from vitrail_server.servable import ImageSize, Program, WindowGrid
from vitrail_server.turns import one_at_a_time
from vitrail_server.wording import reason_of

MOST_GRIDS = 64
"""Grids of one version that are remembered, planned or not; one more forgets one not asked for longest."""

MOST_PATIENCE = 64
"""How often a grid has to be asked for at most, before another that was not asked for meanwhile makes way."""

FIRST_WAIT, LONGEST_WAIT = 60.0, 86400.0
"""Seconds after which a plan that was measured slow is tried again; twice as many each time, up to a day."""

TYPICAL_WINDOWS = 14
"""Windows along each side of the image by which a version is judged when it is loaded: 16 pixels of 224."""

NO_ROOM = "there is no room for its plan beside those of other grids, which are asked for more often"

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
    allowance: int
    """The bytes that the version may take with its plans; it may always have one."""
    products: Products = nullcontext
    """How its functions are to be run."""


@dataclass(frozen=True, slots=True, eq=False)
class _Outcome:
    """What became of making a plan and trying it."""

    reason: str = ""
    """Why there is none to use."""
    prepared: Prepared | None = None
    size: int = 0
    """The bytes that it takes."""
    slow: bool = False
    """It would be used, had it been measured faster."""


@dataclass(slots=True, eq=False)
class _Entry:
    """What became of a grid: nothing yet, something that can be used, or a reason."""

    prepared: Prepared | None = None
    reason: str = NO_ROOM
    preparing: bool = False
    refused_until: float = 0.0
    """A plan was tried, or would have been, and is of no use; by the clock. Infinite: for good."""
    wait: float = 0.0
    """Seconds that it was refused for when it was last measured slow, which may have been the machine."""
    size: int = 0
    """The bytes that its plan takes."""
    users: int = 0
    """Explanations that are computed by its plan."""
    forgotten: int = 0
    """How often its plan made way for another."""
    asked: deque[int] = field(default_factory=lambda: deque(maxlen=MOST_PATIENCE))
    """When it was last asked for, in requests of all grids."""

    @property
    def patience(self) -> int:
        """How often it has to be asked for before another makes way: more often each time that it did."""
        return int(min(2 << self.forgotten, MOST_PATIENCE))

    def take(self, outcome: _Outcome, now: float) -> None:
        """Keep what became of preparing it; what was measured slow is refused longer each time."""
        self.preparing = False
        self.prepared, self.size, self.reason = outcome.prepared, outcome.size, outcome.reason
        if outcome.slow:
            self.wait = min(2 * self.wait or FIRST_WAIT, LONGEST_WAIT)
            self.refused_until = now + self.wait
        else:
            self.wait, self.refused_until = 0.0, 0.0 if outcome.prepared else math.inf

    def outlasts(self, other: "_Entry") -> bool:
        """Return whether it was asked for so often since the other one was."""
        return sum(each > other.asked[-1] for each in self.asked) >= self.patience


class Preparations:
    """Plans by image size and grid. `program` is for the event loop; what takes long, for the background."""

    def __init__(
        self,
        model: PlannedModel,
        *,
        run: Run,
        background: Background,
        budget: CacheBudget,
        time_slice: float,
        clock: Callable[[], float] = time.perf_counter,
        resident: Callable[[], int] = settled_bytes,
    ) -> None:
        """`resident` returns the memory that the process takes, without what it does not need; 0: unknown."""
        self._model: PlannedModel | None = model
        self._run = run
        self._background = background
        self._budget = budget
        self._time_slice = time_slice
        self._clock = clock
        self._resident = resident
        self._loaded = 0
        self._report: Callable[[int], object] = lambda size: size
        self._requests = 0
        self._largest = 0
        self._lock = one_at_a_time()  # over what follows
        self._entries: OrderedDict[tuple[ImageSize, WindowGrid], _Entry] = OrderedDict()

    def settle(self, loaded: int, report: Callable[[int], object]) -> None:
        """Begin from what the version takes without plans; `report` what it takes, now and at each change."""
        self._loaded = loaded
        self._report = report
        self._changed()

    def program(self, size: ImageSize, grid: WindowGrid) -> IncrementalProgram | None:
        """Return a program for one explanation, to be closed after it; None if it is to run in full.

        A grid that has no plan is prepared in the background for the next time, if there is room for it.
        """
        if len(grid) < FEWEST_WINDOWS:
            return None
        with self._lock:
            if self._model is None:
                return None
            entry = self._asked_for(size, grid)
            if entry.prepared is None:
                refused = self._clock() < entry.refused_until
                if not entry.preparing and not refused and self._makes_room(entry):
                    entry.preparing, entry.reason = True, "it is being prepared"
                    self._background(lambda: self._prepare(size, grid, entry))
                return None
            if reason := entry.prepared.failure:
                if not entry.users:
                    entry.refused_until = math.inf
                    self._forget(entry, reason)
                return None
            give_back = self._budget.take(entry.prepared.evaluator.table_bytes)
            if give_back is None:
                return None
            entry.users += 1
            return IncrementalProgram(entry.prepared, self._ended(entry, give_back), self._clock)

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
        with self._lock:
            self._model = None
            self._entries.clear()

    def _asked_for(self, size: ImageSize, grid: WindowGrid) -> _Entry:
        """Return the entry of a grid, now the last one that was asked for."""
        key = size, grid
        entry = self._entries.setdefault(key, _Entry())
        self._entries.move_to_end(key)
        self._requests += 1
        entry.asked.append(self._requests)
        if len(self._entries) > MOST_GRIDS:
            for oldest, each in list(self._entries.items())[:-1]:
                if not each.users and not each.preparing:
                    self._forget(each, NO_ROOM)
                    del self._entries[oldest]
                    break
        return entry

    def _makes_room(self, entry: _Entry) -> bool:
        """Return whether a plan may be made, and forget those that make way for it.

        It is expected to be as large as the largest so far.
        """
        model = self._model
        others = [each for each in self._entries.values() if each.prepared or each.preparing]
        excess = self._excess(1 + sum(each.preparing for each in others))
        going: list[_Entry] = []
        for each in others:  # those not asked for longest first
            if excess > 0 and each.prepared and not each.users and entry.outlasts(each):
                going.append(each)
                excess -= each.size
        if model is None or (excess > 0 and len(going) < len(others)):
            return False
        for each in going:
            self._forget(each, NO_ROOM)
        return True

    def _excess(self, coming: int = 0) -> int:
        """Return the bytes by which the version takes too much, with so many plans more."""
        allowed = self._model.allowance if self._model else 0
        return self._taken() + coming * self._largest - allowed

    def _taken(self) -> int:
        return self._loaded + sum(each.size for each in self._entries.values())

    def _forget(self, entry: _Entry, reason: str) -> None:
        """Let go of a plan that nobody uses, if there is one."""
        if entry.prepared is None:
            return
        gone = [entry.prepared]
        entry.prepared, entry.size, entry.reason = None, 0, reason
        entry.forgotten += 1
        self._changed()

        def let_go() -> None:
            gone.clear()
            release_memory()

        self._background(let_go)

    def _keep_within(self) -> None:
        """Forget plans, those not asked for longest first, until the others have room or one is left."""
        planned = [each for each in self._entries.values() if each.prepared]
        for each in planned[:-1]:
            if self._excess() > 0 and not each.users:
                self._forget(each, NO_ROOM)

    def _ended(self, entry: _Entry, give_back: Callable[[], None]) -> Callable[[], None]:
        """Return what is called when an explanation that uses a plan is over."""
        using = [entry]  # emptied by the first call

        def ended() -> None:
            give_back()
            with self._lock:
                while using:
                    using.pop().users -= 1
                    self._keep_within()

        return ended

    def _changed(self) -> None:
        """Report what the version takes; once it is closed, nobody asks."""
        if self._model is not None:
            self._report(self._taken())

    def _prepare(self, size: ImageSize, grid: WindowGrid, entry: _Entry) -> None:
        model = self._model
        if model is None:
            return
        outcome = _Outcome()
        try:
            outcome = self._outcome(model, size, grid)
        except Exception as error:  # whatever it is, the full forward still works
            if self._model is not None:  # else it was taken away from under this
                log.exception("a plan for incremental occlusion could not be made")
            outcome = _Outcome(f"it could not be prepared: {reason_of(error)}")
        with self._lock:
            if self._model is not None:
                entry.take(outcome, self._clock())
                self._largest = max(self._largest, entry.size)
                self._changed()
                self._keep_within()
                return
        outcome = model = None  # type: ignore[assignment]  # it was unloaded meanwhile
        release_memory()

    def _outcome(self, model: PlannedModel, size: ImageSize, grid: WindowGrid) -> _Outcome:
        """Make a plan and try it."""
        graph = model.graphs[size]
        plan = make_plan(graph, grid)
        if not plan.worthwhile:
            return _Outcome(obstacle_of(plan))
        needed = table_bytes(graph, plan)
        if needed > self._budget.limit:
            return _Outcome(
                f"its activations take {needed} bytes, and --incremental-cache-bytes allows "
                f"{self._budget.limit}"
            )
        before = self._resident()
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
        grown = charge(evaluator.operations, before, self._resident())
        log.info(
            "incremental occlusion of %d windows: %s (%.2f times as fast, error %.1e, noise %.1e, %.1f MiB)",
            len(grid),
            verdict.reason or f"batches of {verdict.batch_size}",
            verdict.speedup,
            verdict.error,
            verdict.noise,
            grown / 2**20,
        )
        if verdict.reason:
            # Speed is measured last, of a plan that is right in everything else.
            return _Outcome(verdict.reason, slow=verdict.speedup > 0)
        return _Outcome("", Prepared(evaluator, verdict.batch_size, verdict.seconds), grown)


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
