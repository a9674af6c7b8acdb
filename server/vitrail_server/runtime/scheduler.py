"""Which rows of which Runs form the next batch: pure policy, without threads, TensorFlow or a clock.

Continuous batching: a batch is filled with rows of one Program from as many Runs as it takes, and a Run
that arrives takes part in the very next batch.

Who goes first is decided in this order:

1. Priority, 1 before 2. A Run that waits gains one level every `AGEING` seconds, so nobody starves.
2. The caller that has had the least of the device so far, in seconds (start-time fair queueing: Goyal,
   Vin and Cheng, SIGCOMM 1996). A caller that arrives starts level with whoever is served, neither
   owed for its absence nor in debt; short work of a new caller therefore enters at the next batch.
3. Among the Runs of one caller the same rule, then the order of arrival.

A batch is charged to its Runs when it is formed, by their share of its rows and the Program's measured
seconds, and corrected when its real duration is known.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from vitrail_server.explainers.run import Run, Work
from vitrail_server.servable import Program

AGEING = 1.0
"""Seconds of waiting that are worth one level of priority."""

DEFAULT_PRIORITY = 100
"""The priority of a request that names none."""


@dataclass(slots=True, eq=False)
class Entry:
    """A Run among others: what the policy knows of it."""

    run: Run
    program: Program
    caller: str
    arrived: float
    """When the request arrived, in seconds of the scheduler's clock."""
    priority: int = DEFAULT_PRIORITY
    ends: float | None = None
    """When the time budget is spent, on the same clock. None: never."""
    paused: bool = False
    """Its reader is behind: it takes no more rows until that has caught up."""
    alone: bool = False
    """A batch with its rows failed: it shares no more batches, so that it can only fail alone."""
    cancelled: bool = False
    """Nobody wants it any more. Read on the device's thread too, where late is only wasteful."""
    served: float = 0.0
    """Seconds of the device charged to it, on its caller's scale."""
    last_served: float = field(default=0.0)
    """When it last got rows into a batch, or arrived."""

    def __post_init__(self) -> None:
        self.last_served = self.arrived


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """The rows of one Run in a batch."""

    entry: Entry
    work: Work
    charged: float
    """Seconds of the device charged for it."""

    def __len__(self) -> int:
        return len(self.work.tag)


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Rows of several Runs for one call of one Program."""

    program: Program
    parts: tuple[Part, ...]

    @property
    def rows(self) -> int:
        """How many of the program's rows are used."""
        return sum(len(part) for part in self.parts)


@dataclass(slots=True)
class _Caller:
    served: float
    """Seconds of the device, on the scheduler's virtual scale."""
    clock: float = 0.0
    """The same among its own Runs: `served` of the one served last."""
    entries: int = 0


class Scheduler:
    """The Runs in progress and the order in which they are served."""

    def __init__(self) -> None:
        self._entries: list[Entry] = []
        self._callers: dict[str, _Caller] = {}
        self._clock = 0.0

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, entry: Entry) -> None:
        """Take in a Run; it may be served from the next batch on."""
        caller = self._callers.setdefault(entry.caller, _Caller(self._clock))
        caller.served = max(caller.served, self._clock)
        caller.entries += 1
        entry.served = caller.clock
        self._entries.append(entry)

    def remove(self, entry: Entry) -> None:
        """Forget a Run that is finished, failed or cancelled; forgetting it twice does nothing."""
        if entry not in self._entries:
            return
        self._entries.remove(entry)
        self._callers[entry.caller].entries -= 1
        # What a caller got ahead of the others is remembered until they have caught up.
        self._callers = {
            name: caller
            for name, caller in self._callers.items()
            if caller.entries or caller.served > self._clock
        }

    def next_batch(self, now: float) -> Batch | None:
        """Return the next batch, or None if no Run has rows to give.

        `now` is the time on the clock of `Entry.arrived`.
        """
        for entry in self._entries:
            if entry.ends is not None and now + entry.program.seconds > entry.ends:
                entry.run.stop()
        order = sorted((entry for entry in self._entries if self._ready(entry)), key=self._rank(now))
        for position, entry in enumerate(order):
            work = entry.run.take(entry.program.batch_size)
            if isinstance(work, Work):
                return self._filled(entry, work, order[position + 1 :], now)
        return None

    def settle(self, batch: Batch, seconds: float) -> None:
        """Correct what was charged for `batch` to the `seconds` it really took."""
        for part in batch.parts:
            self._charge(part.entry, seconds * len(part) / batch.rows - part.charged)

    def _filled(self, first: Entry, work: Work, others: Iterable[Entry], now: float) -> Batch:
        program = first.program
        chosen = [(first, work)]
        free = program.batch_size - len(work.tag)
        for entry in others:
            if free <= 0 or first.alone:
                break
            if entry.program is program and not entry.alone:
                more = entry.run.take(free)
                if isinstance(more, Work):
                    chosen.append((entry, more))
                    free -= len(more.tag)
        self._clock = max(self._clock, self._callers[first.caller].served)
        rows = program.batch_size - free
        parts = []
        for entry, rows_of_it in chosen:
            charged = program.seconds * len(rows_of_it.tag) / rows
            self._callers[entry.caller].clock = max(self._callers[entry.caller].clock, entry.served)
            self._charge(entry, charged)
            entry.last_served = now
            parts.append(Part(entry, rows_of_it, charged))
        return Batch(program, tuple(parts))

    def _charge(self, entry: Entry, seconds: float) -> None:
        entry.served += seconds
        if entry.caller in self._callers:
            self._callers[entry.caller].served += seconds

    def _ready(self, entry: Entry) -> bool:
        return not (entry.paused or entry.cancelled or entry.run.finished)

    def _rank(self, now: float) -> Callable[[Entry], tuple[int, float, float, float]]:
        def rank(entry: Entry) -> tuple[int, float, float, float]:
            level = entry.priority - int((now - entry.last_served) / AGEING)
            return level, self._callers[entry.caller].served, entry.served, entry.arrived

        return rank
