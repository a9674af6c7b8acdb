"""What time alone changes: which Runs end by it, which come last, and when somebody has to look again."""

from collections import Counter

from vitrail_server.runtime.entry import Entry
from vitrail_server.runtime.ordered import Ordered
from vitrail_server.runtime.queueing import Queueing
from vitrail_server.servable import Program


class Timing:
    """The time budgets of Runs, and the inferences that wait in a queue."""

    def __init__(self) -> None:
        self._budgets: dict[Program, Ordered[Entry]] = {}
        """By their ends. Per program, because how early a Run has to stop depends on it alone."""
        self._queued: dict[Entry, Queueing] = {}
        self._sizes: Counter[tuple[int, int]] = Counter()
        """How many wait in each queue, by its id and its level."""
        self._company: Ordered[Entry] = Ordered()
        """Those in a queue, by how long they want company."""
        self._rejected: Ordered[Entry] = Ordered()
        """Those in a queue that are refused once they have waited too long, by when that is."""
        self._delayed: Ordered[Entry] = Ordered()
        """Those in a queue that come last once they have waited too long, until then."""

    def add(self, entry: Entry) -> None:
        """Take in a Run."""
        if entry.ends is not None:
            self._budgets.setdefault(entry.program, Ordered()).put(entry, entry.ends, entry.number)

    def remove(self, entry: Entry) -> None:
        """Forget a Run that is in no queue any more."""
        if (ordered := self._budgets.get(entry.program)) is not None:
            ordered.drop(entry)
            if not ordered:
                del self._budgets[entry.program]

    def enqueue(self, entry: Entry, queueing: Queueing) -> None:
        """Note that a Run waits in its queue."""
        if entry in self._queued:
            return
        self._queued[entry] = queueing
        self._sizes[id(queueing.queue), queueing.level] += 1
        self._company.put(entry, queueing.wants_company_until, entry.number)
        if (times_out := queueing.times_out) is not None:
            late = self._rejected if queueing.policy.timeout_action == "REJECT" else self._delayed
            late.put(entry, times_out, entry.number)

    def dequeue(self, entry: Entry) -> bool:
        """Note that a Run waits in no queue; return whether it did."""
        if (queueing := self._queued.pop(entry, None)) is None:
            return False
        place = id(queueing.queue), queueing.level
        self._sizes[place] -= 1
        if not self._sizes[place]:
            del self._sizes[place]
        for ordered in (self._company, self._rejected, self._delayed):
            ordered.drop(entry)
        return True

    def size(self, queueing: Queueing) -> int:
        """Return how many wait in a queue."""
        return self._sizes[id(queueing.queue), queueing.level]

    def overdue(self, now: float) -> list[Entry]:
        """Return, once, those of which a batch that begins `now` would end after the time budget."""
        found = [
            entry
            for program, ordered in self._budgets.items()
            for entry in ordered.under(now + program.seconds)
        ]
        for entry in found:
            self.remove(entry)
        return found

    def rejected(self, now: float) -> list[Entry]:
        """Return those in a queue that are refused for having waited too long."""
        return self._rejected.until(now)

    def delayed(self, now: float) -> list[Entry]:
        """Return, once, those in a queue that come last for having waited too long."""
        found = self._delayed.until(now)
        for entry in found:
            self._delayed.drop(entry)
        return found

    def wakes(self, now: float) -> float | None:
        """Return when something changes for those in a queue; None: never."""
        times = (each.after(now) for each in (self._company, self._rejected, self._delayed))
        return min((each for each in times if each is not None), default=None)
