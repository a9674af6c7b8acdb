"""One priority: its callers, who take turns, and their Runs, who take turns among themselves."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import islice

from vitrail_server.runtime.entry import Entry
from vitrail_server.runtime.fairness import Place, Rank, Turn, Turns

AGEING = 1.0
"""Seconds of waiting that are worth one level of priority."""

_Opened = list[tuple[tuple[Rank, Place], Entry, Iterator[tuple[Place, Entry]]]]


@dataclass(slots=True, eq=False)
class Caller:
    """A caller and its Runs of one priority."""

    name: str
    turn: Turn = field(default_factory=Turn)
    """Its `tie` is the place of the first of its Runs among them, so that Runs of equal callers mix."""
    runs: Turns[Entry] = field(default_factory=Turns)
    entries: int = 0
    """How many Runs it has."""
    ready: int = 0
    """How many of them may be asked for rows."""
    first: Entry | None = None
    """The first of them in order; None: none has a place."""


class Priority:
    """The Runs of one priority in the order in which they are served."""

    def __init__(self, number: int, since: float) -> None:
        self.number = number
        self.waiting_since = since
        """When it last got rows into a batch, or had none to give."""
        self.turns: Turns[Caller] = Turns()
        self.callers: dict[str, Caller] = {}
        """Those with Runs, and those that left ahead of the clock."""
        self._entries = 0
        self._ready = 0
        """How many of its Runs may be asked for rows."""
        self._delayed: dict[Entry, None] = {}
        """Those that come after all others."""
        self._touched: dict[Caller, None] = {}
        self._left: dict[Caller, None] = {}
        """Those whose last Run left since the last decision."""
        self._behind: dict[Caller, None] = {}
        """Those whose first Run depends on how long the longest batch is."""
        self._longest = 0.0

    def __len__(self) -> int:
        return self._entries

    def level(self, now: float) -> int:
        """Return how urgent it is, the lowest first, after having waited until `now`."""
        return self.number - int((now - self.waiting_since) / AGEING)

    def add(self, entry: Entry) -> None:
        """Take in a Run."""
        caller = self.callers.get(entry.caller)
        if caller is None:
            caller = self.callers[entry.caller] = Caller(entry.caller)
            caller.turn.of = caller
        caller.entries += 1
        self._entries += 1
        entry.turn.tie = entry.arrived, entry.number
        entry.turn.of = entry
        self._touched[caller] = None

    def remove(self, entry: Entry) -> None:
        """Forget a Run that is not ready any more."""
        caller = self.callers[entry.caller]
        caller.entries -= 1
        self._entries -= 1
        self._touched[caller] = None
        if not caller.entries:
            self._left[caller] = None
        entry.turn.of = None  # the turn may be remembered for long, but not what has an image
        if caller.first is entry:
            caller.first = None

    def set_ready(self, entry: Entry, *, ready: bool) -> None:
        """Note whether a Run may be asked for rows, which was not so before."""
        caller, change = self.callers[entry.caller], 1 if ready else -1
        caller.ready += change
        self._ready += change
        entry.turn.wants = ready
        self._touch(caller, entry)
        if caller.turn.wants != (caller.ready > 0):
            caller.turn.wants = caller.ready > 0
            self.turns.touch(caller.turn)

    def set_delayed(self, entry: Entry, *, delayed: bool) -> None:
        """Note whether a Run comes after all that are not delayed."""
        if delayed == (entry in self._delayed):
            return
        if delayed:
            self._delayed[entry] = None
        else:
            del self._delayed[entry]
        entry.turn.tie = None if delayed else (entry.arrived, entry.number)
        self._touch(self.callers[entry.caller], entry)

    def begin(self, entry: Entry) -> None:
        """Let a Run and its caller go first."""
        caller = self.callers[entry.caller]
        caller.runs.begin(entry.turn)
        self.turns.begin(caller.turn)

    def charge(self, entry: Entry, seconds: float) -> None:
        """Charge a Run and its caller, if that is still known, for a part of a batch."""
        if (caller := self.callers.get(entry.caller)) is not None:
            caller.runs.charge(entry.turn, seconds)
            self.turns.charge(caller.turn, seconds)
            self._touched[caller] = None

    def refund(self, entry: Entry, seconds: float, fresh: tuple[bool, bool]) -> None:
        """Undo a charge; `fresh` is whether the Run and its caller were so before."""
        self.charge(entry, -seconds)
        if (caller := self.callers.get(entry.caller)) is not None:
            entry.turn.fresh, caller.turn.fresh = fresh

    def look(self, now: float, longest: float) -> None:
        """Note for a decision who wants rows computed now, and forget who left and owes nothing.

        `longest` is the seconds of the longest batch.
        """
        if not self._ready:
            self.waiting_since = now
        if longest != self._longest:
            self._touched |= self._behind
            self._longest = longest
        for caller in self._touched:
            self._look_at(caller)
        self._touched.clear()
        inactive = [turn.of for turn in self.turns.look()]
        for caller in (*inactive, *self._left):
            if not caller.entries and caller.turn not in self.turns:
                self.callers.pop(caller.name, None)
        self._left.clear()

    def in_order(self) -> Iterator[Entry]:
        """Yield the Runs that were ready when it looked, by the turns of callers and Runs, delayed ones last.

        The first Run of each caller is known; the others are looked up once that was taken, so whoever asks
        for a few pays for a few.
        """
        opened: _Opened = []
        for place, caller in self.turns.in_order(self._longest):
            while opened and opened[0][0] < place:
                yield _next(opened)
            if caller.first is not None:
                yield caller.first
            if caller.ready > 1:
                _open(opened, place[0], islice(caller.runs.in_order(self._longest), 1, None))
        while opened:
            yield _next(opened)
        yield from sorted(self._delayed, key=self._place)

    def _touch(self, caller: Caller, entry: Entry) -> None:
        caller.runs.touch(entry.turn)
        self._touched[caller] = None

    def _look_at(self, caller: Caller) -> None:
        self._behind.pop(caller, None)
        if not caller.entries:
            return
        caller.runs.look()
        place, caller.first = next(caller.runs.in_order(self._longest), (None, None))
        if place != caller.turn.tie:
            caller.turn.tie = place
            self.turns.touch(caller.turn)
        if caller.runs.behind:
            self._behind[caller] = None

    def _place(self, entry: Entry) -> tuple[Rank, Rank, float, int]:
        caller = self.callers[entry.caller]
        of_caller = self.turns.rank(caller.turn, self._longest)
        return of_caller, caller.runs.rank(entry.turn, self._longest), entry.arrived, entry.number


def _open(opened: _Opened, of_caller: Rank, runs: Iterator[tuple[Place, Entry]]) -> None:
    """Let the next Run of a caller take part, if there is one."""
    following = next(runs, None)
    if following is not None:
        heappush(opened, ((of_caller, following[0]), following[1], runs))


def _next(opened: _Opened) -> Entry:
    """Return the first of the Runs that take part, and let the next of its caller do so."""
    (of_caller, _), entry, runs = heappop(opened)
    _open(opened, of_caller, runs)
    return entry
