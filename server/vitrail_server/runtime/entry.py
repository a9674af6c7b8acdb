"""A Run among others, and the batches that are made of several: the words of the scheduler and the device."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from vitrail_server.explainers.run import Run, Work
from vitrail_server.runtime.fairness import Turn
from vitrail_server.runtime.queueing import Queueing
from vitrail_server.servable import Program

DEFAULT_PRIORITY = 100
"""The priority of a request that names none."""


@dataclass(slots=True, eq=False)
class Entry:
    """A Run among others: what the policy knows of it.

    Once the scheduler has it, the scheduler alone changes it (`Scheduler.pause`, `isolate`, `returned`), but
    for `cancelled`.
    """

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
    """Nobody wants it any more, and whoever says so removes it from the scheduler in the same breath. Read on
    the device's thread for the rows that are out, where late is only wasteful."""
    dry: bool = False
    """It gave fewer rows than it was asked for: nothing waits until some of its rows come back."""
    queueing: Queueing | None = None
    """The terms on which an inference waits. None: it joins the next batch."""
    begun: bool = False
    """Some of its rows are or were in a batch: it waits for nothing but its turn."""
    turn: Turn = field(default_factory=Turn)
    """Its place among the Runs of its caller."""
    number: int = 0
    """How many came to the scheduler before it."""

    @property
    def queued(self) -> Queueing | None:
        """The terms on which it still waits; None once it has begun, or has failed in company."""
        return None if self.begun or self.alone else self.queueing

    def expired(self, now: float) -> bool:
        """Whether a batch that begins `now` would end after the time budget."""
        return self.ends is not None and now + self.program.seconds > self.ends


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """The rows of one Run in a batch."""

    entry: Entry
    work: Work
    charged: float
    """Seconds of the device charged for it."""
    was_begun: bool
    """Whether its Run had begun before it."""
    was_fresh: tuple[bool, bool]
    """Whether its Run and its caller were fresh before it; see `Turn`."""

    def __len__(self) -> int:
        return len(self.work.tag)


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Rows of several Runs for one call of one Program."""

    program: Program
    parts: tuple[Part, ...]
    waited: Mapping[int, float]
    """Since when the priorities served by it had waited for it."""

    @property
    def rows(self) -> int:
        """How many of the program's rows are used."""
        return sum(len(part) for part in self.parts)
