"""A device on a virtual clock: executes what the scheduler says, one batch after the other."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from fakes.runs import CostedProgram, CountedRun
from vitrail_server.runtime.entry import DEFAULT_PRIORITY, Batch, Entry
from vitrail_server.runtime.queueing import Queueing
from vitrail_server.runtime.scheduler import Scheduler
from vitrail_server.work import Result

RESULT = Result(np.zeros((0, 1), np.float32))
ENDLESS = 10**9


@dataclass
class Simulation:
    """The scheduler under test, what it decided, and what everyone got."""

    scheduler: Scheduler = field(default_factory=Scheduler)
    now: float = 0.0
    batches: list[Batch] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Seconds of the device by caller: each batch by the share of its rows."""
    entries: list[Entry] = field(default_factory=list)

    def arrive(
        self,
        caller: str,
        program: CostedProgram,
        rows: int = ENDLESS,
        *,
        priority: int = DEFAULT_PRIORITY,
        ends: float | None = None,
        queueing: Queueing | None = None,
    ) -> Entry:
        """Let a Run of a caller arrive now."""
        entry = Entry(
            run=CountedRun(rows),
            program=program,
            caller=caller,
            arrived=self.now,
            priority=priority,
            ends=ends,
            queueing=queueing,
        )
        self.entries.append(entry)
        self.scheduler.add(entry)
        return entry

    def step(self, seconds: float | None = None) -> Batch | None:
        """Execute the next batch, which takes `seconds` (None: as long as its program says)."""
        batch = self.scheduler.next_batch(self.now)
        if batch is not None:
            self.complete(batch, batch.program.seconds if seconds is None else seconds)
        return batch

    def complete(self, batch: Batch, seconds: float) -> None:
        """Let `batch` take `seconds` and give its results to its Runs."""
        self.now += seconds
        self.batches.append(batch)
        self.scheduler.settle(batch, seconds)
        for part in batch.parts:
            self.seconds[part.entry.caller] += seconds * len(part) / batch.rows
            part.entry.run.absorb(part.work, RESULT)
            if part.entry.run.finished:
                self.scheduler.remove(part.entry)

    def steps(self, count: int) -> Iterator[Batch]:
        """Execute `count` batches, which there must be."""
        for _ in range(count):
            batch = self.step()
            assert batch is not None
            yield batch

    def run_for(self, seconds: float) -> None:
        """Execute batches until the clock has moved on by `seconds`."""
        end = self.now + seconds
        while self.now < end:
            assert self.step() is not None
