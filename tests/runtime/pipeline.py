"""The device's pipeline on a virtual clock: one batch runs, one waits, and each arrival changes that one.

The same steps as `runtime/device.py`, without a thread: what the scheduler's laws hold for is what happens.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count

from fakes.runs import CostedProgram, CountedRun
from runtime.simulation import ENDLESS, RESULT
from vitrail_server.runtime.entry import DEFAULT_PRIORITY, Batch, Entry, Part
from vitrail_server.runtime.scheduler import Scheduler

MOST_AT_ONCE = 200
"""More than happens in one moment of any stream of arrivals."""


@dataclass(frozen=True)
class Begun:
    """A batch that began, without the rows that were left out."""

    at: float
    batch: Batch
    parts: tuple[Part, ...]
    waiting: int
    """Runs with rows to give, at that moment."""


@dataclass
class Pipeline:
    """The scheduler under test between a stream of arrivals and a device."""

    scheduler: Scheduler = field(default_factory=Scheduler)
    now: float = 0.0
    begun: list[Begun] = field(default_factory=list)
    idle: list[tuple[float, int]] = field(default_factory=list)
    """When the device had nothing to do, and how many Runs had rows to give then."""
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Seconds of the device by caller, of batches that ended."""
    on_end: Callable[[], None] = lambda: None
    """Called after every batch."""

    def __post_init__(self) -> None:
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._running: Begun | None = None
        self._waiting: Batch | None = None

    def at(self, time: float, happens: Callable[[], None]) -> None:
        """Let something happen at a time to come."""
        heappush(self._events, (time, next(self._order), happens))

    def arrive(
        self,
        caller: str,
        program: CostedProgram,
        rows: int = ENDLESS,
        *,
        priority: int = DEFAULT_PRIORITY,
        budget: float | None = None,
    ) -> Entry:
        """Let a Run of a caller arrive now."""
        entry = Entry(
            run=CountedRun(rows),
            program=program,
            caller=caller,
            arrived=self.now,
            priority=priority,
            ends=None if budget is None else self.now + budget,
        )
        self.scheduler.add(entry)
        if self._waiting is not None:
            withdrawn, self._waiting = self._waiting, None
            self.scheduler.withdraw(withdrawn)
            self._give_back(withdrawn.parts)
        self._fill()
        return entry

    def arrive_at(
        self, time: float, caller: str, program: CostedProgram, rows: int, *, priority: int = DEFAULT_PRIORITY
    ) -> None:
        """Let a Run arrive at a time to come."""

        def arrive() -> None:
            self.arrive(caller, program, rows, priority=priority)

        self.at(time, arrive)

    def cancel(self, entry: Entry) -> None:
        """Let the caller of a Run go away now."""
        entry.cancelled = True
        self.scheduler.remove(entry)

    def run(self, until: float = float("inf")) -> None:
        """Let time pass, until a moment or until nothing more happens."""
        at_once = 0
        while self._events and self._events[0][0] <= until:
            before = self.now
            self.now, _, happens = heappop(self._events)
            happens()
            at_once = at_once + 1 if self.now == before else 0
            assert at_once < MOST_AT_ONCE, "time stands still: the same rows are handed out again and again"

    def _fill(self) -> None:
        if self._running is None:
            self._begin(self._waiting or self.scheduler.next_batch(self.now))
            self._waiting = None
        if self._running is not None and self._waiting is None:
            self._waiting = self.scheduler.next_batch(self.now)

    def _begin(self, batch: Batch | None) -> None:
        if batch is None:
            self.idle.append((self.now, self.scheduler.waiting))
            return
        parts = tuple(
            part for part in batch.parts if not (part.entry.cancelled or part.entry.expired(self.now))
        )
        self._running = Begun(self.now, batch, parts, self.scheduler.waiting)
        if parts:
            self.begun.append(self._running)
        self.at(self.now + (batch.program.seconds if parts else 0.0), self._end)

    def _end(self) -> None:
        assert self._running is not None
        ended, self._running = self._running, None
        seconds = self.now - ended.at
        self.scheduler.settle(ended.batch, seconds)
        self._give_back(part for part in ended.batch.parts if part not in ended.parts)
        rows = sum(map(len, ended.parts))
        for part in ended.parts:
            self.scheduler.returned(part.entry)
            self.seconds[part.entry.caller] += seconds * len(part) / rows
            part.entry.run.absorb(part.work, RESULT)
            if part.entry.run.finished:
                self.scheduler.remove(part.entry)
        self.on_end()
        self._fill()

    def _give_back(self, parts: Iterable[Part]) -> None:
        for part in parts:
            self.scheduler.returned(part.entry)
            part.entry.run.give_back(part.work)
