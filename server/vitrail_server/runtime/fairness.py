"""Fair queueing among equals (Demers, Keshav and Shenker, SIGCOMM 1989): whose turn it is.

A clock says how many seconds of the device each of the active ones should have had, so it advances by the
seconds computed over their number. Whoever begins to want (arrives, or goes on after a pause) starts at the
clock, neither owed for its absence nor in debt; whoever is ahead of the clock stays active, and thereby
known, until the clock has caught up, even if it has left.

Who wants rows computed is looked at once per decision (`Turns.look`), so what changed between two of them
counts as one change. Only what was touched since is looked at, and only whoever changed places is moved, so
that a decision costs nothing for those whom it does not concern.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from vitrail_server.runtime.ordered import Ordered

Rank = tuple[int, float]
"""The place in the order, the lowest first; equals share it."""

Place = tuple[Rank, Any]
"""A rank, and the place among those with the same rank."""


@dataclass(slots=True, eq=False)
class Turn:
    """The place of one among its equals: of a caller among callers, of a Run among its caller's Runs."""

    served: float = 0.0
    """Seconds of the device that it was charged, on the scale of its equals' clock."""
    fresh: bool = False
    """It wants rows computed, and had none computed since it began to want."""
    wants: bool = False
    """It wants rows computed now, which counts from the next decision on."""
    tie: Any = None
    """Its place among those with the same rank. None: it has no place, whatever its rank."""
    of: Any = None
    """Whose turn it is. None: it has left, and nothing of it is kept but how much it was served."""


T = TypeVar("T")


class Turns(Generic[T]):
    """The turns of equals, who are T. Whoever changes a `Turn` from outside says so (`touch`)."""

    def __init__(self) -> None:
        self._clock = 0.0
        self._active: set[Turn] = set()
        self._touched: dict[Turn, None] = {}
        self._waiting: Ordered[Turn] = Ordered()
        """Those with a place, by what they have had."""
        self._fresh: Ordered[Turn] = Ordered()
        """The fresh ones of them, by their ties alone."""
        self._ahead: Ordered[Turn] = Ordered()
        """The active ones that want nothing, by what they have had."""

    def __contains__(self, turn: Turn) -> bool:
        """Whether it is active."""
        return turn in self._active

    @property
    def behind(self) -> bool:
        """Whether somebody with a place has had less than the clock says."""
        lowest = self._waiting.lowest
        return lowest is not None and lowest < self._clock

    def touch(self, turn: Turn) -> None:
        """Have a look at a turn before the next decision."""
        self._touched[turn] = None

    def look(self) -> list[Turn]:
        """Note who wants rows computed now; return who has become inactive."""
        gone = []
        for turn in self._touched:
            if turn.wants:
                self._place(turn)
            elif turn in self._active:
                self._waiting.drop(turn)
                self._fresh.drop(turn)
                if turn.served > self._clock:
                    self._ahead.put(turn, turn.served, id(turn))
                else:
                    self._ahead.drop(turn)
                    gone.append(turn)
        self._touched.clear()
        for turn in self._ahead.until(self._clock):
            self._ahead.drop(turn)
            gone.append(turn)
        self._active.difference_update(gone)
        return gone

    def rank(self, turn: Turn, batch: float) -> Rank:
        """Return the rank of `turn`; `batch` is the longest batch's seconds.

        The first rows of somebody fresh come at once, but a stream of newcomers overtakes nobody by more
        than a batch. Everybody else is served by who has had least.
        """
        if turn.served < self._clock - batch:
            return 0, turn.served
        return (1, 0.0) if turn.fresh else (2, turn.served)

    def in_order(self, batch: float) -> Iterator[tuple[Place, T]]:
        """Yield those with a place by rank, as `rank` says, and by tie."""
        overtaken = self._waiting.below(self._clock - batch)
        for served, tie, turn in self._waiting.between(0, overtaken):
            yield ((0, served), tie), turn.of
        for _, tie, turn in self._fresh.between(0, None):
            if turn.served >= self._clock - batch:
                yield ((1, 0.0), tie), turn.of
        for served, tie, turn in self._waiting.between(overtaken, None):
            if not turn.fresh:
                yield ((2, served), tie), turn.of

    def begin(self, turn: Turn) -> None:
        """Let `turn` go first: nobody with rows to give has had less, so the clock is not behind it."""
        self._clock = max(self._clock, turn.served)

    def charge(self, turn: Turn, seconds: float) -> None:
        """Charge `turn` for a part of a batch; a negative charge is a refund."""
        turn.served += seconds
        turn.fresh = False
        self._clock += seconds / max(1, len(self._active))
        self.touch(turn)

    def _place(self, turn: Turn) -> None:
        """Put a turn that wants rows computed where it belongs."""
        if turn in self._active:
            self._ahead.drop(turn)
        else:
            self._active.add(turn)
            turn.served = max(turn.served, self._clock)
            turn.fresh = True
        if turn.tie is None:
            self._waiting.drop(turn)
            self._fresh.drop(turn)
            return
        self._waiting.put(turn, turn.served, turn.tie)
        if turn.fresh:
            self._fresh.put(turn, 0.0, turn.tie)
        else:
            self._fresh.drop(turn)
