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
from typing import Any, Generic, Protocol, TypeVar

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


class Member(Protocol):
    """One of the equals."""

    turn: Turn


M = TypeVar("M", bound=Member)


class Turns(Generic[M]):
    """The turns of equals. Whoever changes a `Turn` from outside says so (`touch`)."""

    def __init__(self) -> None:
        self._clock = 0.0
        self._active: set[M] = set()
        self._touched: dict[M, None] = {}
        self._waiting: Ordered[M] = Ordered()
        """Those with a place, by what they have had."""
        self._fresh: Ordered[M] = Ordered()
        """The fresh ones of them, by their ties alone."""
        self._ahead: Ordered[M] = Ordered()
        """The active ones that want nothing, by what they have had."""

    def __contains__(self, member: M) -> bool:
        """Whether it is active."""
        return member in self._active

    @property
    def behind(self) -> bool:
        """Whether somebody with a place has had less than the clock says."""
        return self._waiting.below(self._clock) > 0

    def touch(self, member: M) -> None:
        """Have a look at a member before the next decision."""
        self._touched[member] = None

    def look(self) -> list[M]:
        """Note who wants rows computed now; return who has become inactive."""
        gone = []
        for member in self._touched:
            if member.turn.wants:
                self._place(member)
            elif member in self._active:
                self._waiting.drop(member)
                self._fresh.drop(member)
                if member.turn.served > self._clock:
                    self._ahead.put(member, member.turn.served, id(member))
                else:
                    self._ahead.drop(member)
                    gone.append(member)
        self._touched.clear()
        for member in self._ahead.until(self._clock):
            self._ahead.drop(member)
            gone.append(member)
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

    def in_order(self, batch: float) -> Iterator[tuple[Place, M]]:
        """Yield those with a place by rank, as `rank` says, and by tie."""
        overtaken = self._waiting.below(self._clock - batch)
        for served, tie, member in self._waiting.between(0, overtaken):
            yield ((0, served), tie), member
        for _, tie, member in self._fresh.between(0, None):
            if member.turn.served >= self._clock - batch:
                yield ((1, 0.0), tie), member
        for served, tie, member in self._waiting.between(overtaken, None):
            if not member.turn.fresh:
                yield ((2, served), tie), member

    def begin(self, member: M) -> None:
        """Let `member` go first: nobody with rows to give has had less, so the clock is not behind it."""
        self._clock = max(self._clock, member.turn.served)

    def charge(self, member: M, seconds: float) -> None:
        """Charge `member` for a part of a batch; a negative charge is a refund."""
        member.turn.served += seconds
        member.turn.fresh = False
        self._clock += seconds / max(1, len(self._active))
        self.touch(member)

    def _place(self, member: M) -> None:
        """Put a member that wants rows computed where it belongs."""
        turn = member.turn
        if member in self._active:
            self._ahead.drop(member)
        else:
            self._active.add(member)
            turn.served = max(turn.served, self._clock)
            turn.fresh = True
        if turn.tie is None:
            self._waiting.drop(member)
            self._fresh.drop(member)
            return
        self._waiting.put(member, turn.served, turn.tie)
        if turn.fresh:
            self._fresh.put(member, 0.0, turn.tie)
        else:
            self._fresh.drop(member)
