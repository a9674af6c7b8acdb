"""The scheduler's policy said straightforwardly: look at everybody, sort, take. What it decides is right.

The scheduler under test keeps its order from one decision to the next; this one makes it anew each time.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from vitrail.errors import DeadlineExceeded
from vitrail_server.explainers.run import Work
from vitrail_server.runtime.entry import Batch, Entry, Part
from vitrail_server.runtime.fairness import Turn
from vitrail_server.runtime.priority import AGEING
from vitrail_server.runtime.queueing import Queueing, rows_to_run

_Rank = tuple[int, float]
_Place = tuple[int, int, bool, _Rank, _Rank, float]


@dataclass(slots=True, eq=False)
class _Turns:
    """Fair queueing among equals (Demers, Keshav and Shenker, SIGCOMM 1989).

    The clock says how many seconds each of the active ones should have had, so it advances by the
    seconds computed over their number. Whoever begins to want (arrives, or goes on after a pause)
    starts at the clock, neither owed for its absence nor in debt; whoever is ahead of the clock stays
    active, and thereby known, until the clock has caught up, even if it has left.
    """

    clock: float = 0.0
    active: set[Turn] = field(default_factory=set)

    def want(self, turns: set[Turn]) -> None:
        """Note who wants rows computed now."""
        for turn in turns - self.active:
            turn.served = max(turn.served, self.clock)
            turn.fresh = True
        self.active = turns | {turn for turn in self.active if turn.served > self.clock}

    def rank(self, turn: Turn, batch: float) -> _Rank:
        """Return the place of `turn` in the order, the lowest first; `batch` is the longest batch's seconds.

        The first rows of somebody fresh come at once, but a stream of newcomers overtakes nobody by more
        than a batch. Everybody else is served by who has had least.
        """
        if turn.served < self.clock - batch:
            return 0, turn.served
        return (1, 0.0) if turn.fresh else (2, turn.served)

    def begin(self, turn: Turn) -> None:
        """Let `turn` go first: nobody with rows to give has had less, so the clock is not behind it."""
        self.clock = max(self.clock, turn.served)

    def charge(self, turn: Turn, seconds: float) -> None:
        """Charge `turn` for a part of a batch; a negative charge is a refund."""
        turn.served += seconds
        turn.fresh = False
        self.clock += seconds / max(1, len(self.active))


@dataclass(slots=True, eq=False)
class _Caller:
    turn: Turn = field(default_factory=Turn)
    runs: _Turns = field(default_factory=_Turns)


@dataclass(slots=True, eq=False)
class _Priority:
    waiting_since: float
    """When it last got rows into a batch, or had none to give."""
    turns: _Turns = field(default_factory=_Turns)
    callers: dict[str, _Caller] = field(default_factory=dict)
    """Those with Runs, and those that left ahead of the clock."""

    def want(self, runs: Mapping[str, set[Turn]], now: float) -> None:
        """Note which Runs of each caller want rows computed now, and forget who left and owes nothing."""
        if not any(runs.values()):
            self.waiting_since = now
        for name, turns in runs.items():
            self.callers[name].runs.want(turns)
        self.turns.want({self.callers[name].turn for name, turns in runs.items() if turns})
        self.callers = {
            name: caller
            for name, caller in self.callers.items()
            if name in runs or caller.turn in self.turns.active
        }


class StraightforwardScheduler:
    """The Runs in progress and the order in which they are served."""

    def __init__(self) -> None:
        self._entries: dict[Entry, None] = {}
        """In the order of arrival; a dictionary, because most leave from the middle."""
        self._timed: dict[Entry, None] = {}
        """Those of them that time alone may end, or let begin: with a time budget, or in a queue."""
        self._priorities: dict[int, _Priority] = {}
        self._in_priority: Counter[int] = Counter()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def waiting(self) -> int:
        """How many Runs have rows that wait for a place in a batch."""
        return sum(not entry.dry and self._ready(entry) for entry in self._entries)

    @property
    def timed_out(self) -> list[Entry]:
        """The Runs that time alone has ended, and that nobody has removed yet."""
        return [entry for entry in self._timed if entry.run.finished]

    def add(self, entry: Entry) -> None:
        """Take in a Run; it may be served from the next batch on."""
        self._entries[entry] = None
        if entry.ends is not None or entry.queueing is not None:
            self._timed[entry] = None
        self._in_priority[entry.priority] += 1
        priority = self._priorities.setdefault(entry.priority, _Priority(entry.arrived))
        priority.callers.setdefault(entry.caller, _Caller())

    def remove(self, entry: Entry) -> None:
        """Forget a Run that is finished, failed or cancelled; forgetting it twice does nothing."""
        if entry not in self._entries:
            return
        del self._entries[entry]
        self._timed.pop(entry, None)
        self._in_priority[entry.priority] -= 1
        if not self._in_priority[entry.priority]:
            del self._in_priority[entry.priority], self._priorities[entry.priority]

    def pause(self, entry: Entry, *, paused: bool) -> None:
        """Ask a Run for no more rows until its reader has caught up, or ask it again."""
        entry.paused = paused

    def isolate(self, entry: Entry) -> None:
        """Let a Run share no more batches, because one with its rows failed."""
        entry.alone = True

    def returned(self, entry: Entry) -> None:
        """Note that rows of a Run came back from the device, so that it may have others to give."""
        entry.dry = False

    def next_batch(self, now: float) -> Batch | None:
        """Return the next batch, or None if no Run has rows to give.

        `now` is the time on the clock of `Entry.arrived`.
        """
        self.expire(now)
        ready = [entry for entry in self._entries if self._ready(entry)]
        self._note_who_wants(ready, now)
        order = sorted(ready, key=self._rank(ready, now))
        wait: set[int] = set()
        for entry in order:
            size = entry.program.batch_size  # once: running out of memory may halve it meanwhile
            most = size
            if entry.queued is not None:
                if id(entry.program) in wait:
                    continue
                group = (each.queued for each in order if each.program is entry.program)
                rows = rows_to_run((each for each in group if each is not None), size, now)
                if rows is None:
                    wait.add(id(entry.program))
                    continue
                most = rows
            work = _take(entry, most)
            if work is not None:
                others = (each for each in order if each is not entry)
                return self._filled(entry, work, others, size, most, now)
        return None

    def expire(self, now: float) -> None:
        """End what has no more time: a time budget is spent, or a queue's timeout has passed."""
        for entry in self._timed:
            if entry.expired(now):
                entry.run.stop()
            elif entry.queued is not None and entry.queued.rejected(now) and self._ready(entry):
                entry.run.fail(DeadlineExceeded("Request timeout expired"))

    def wakes(self, now: float) -> float | None:
        """Return when the answer of `expire` or `next_batch` may change by itself; None: never."""
        times = []
        for entry in self._timed:
            if entry.queued is not None and self._ready(entry):
                times += [entry.queued.times_out, entry.queued.wants_company_until]
        return min((each for each in times if each is not None and each > now), default=None)

    def full(self, queueing: Queueing) -> bool:
        """Whether the queue that a request would wait in has no room left."""
        most = queueing.policy.max_queue_size
        return (
            0
            < most
            <= sum(
                entry.queued is not None
                and entry.queued.queue is queueing.queue
                and entry.queued.level == queueing.level
                and self._ready(entry)
                for entry in self._timed
            )
        )

    def withdraw(self, batch: Batch) -> None:
        """Forget a batch that has not begun, so that the next decision is made afresh.

        Who was first in it is so again, unless somebody comes before. The rows are given back by the caller.
        """
        for part in reversed(batch.parts):  # the first of a caller's Runs knows whether the caller was fresh
            self._charge(part.entry, -part.charged)
            part.entry.begun = part.was_begun
            if place := self._place(part.entry):
                part.entry.turn.fresh, place[1].turn.fresh = part.was_fresh
        for number, since in batch.waited.items():
            if number in self._priorities:
                self._priorities[number].waiting_since = since

    def settle(self, batch: Batch, seconds: float) -> None:
        """Correct what was charged for `batch` to the `seconds` it really took."""
        for part in batch.parts:
            self._charge(part.entry, seconds * len(part) / batch.rows - part.charged)

    def _filled(
        self, first: Entry, work: Work, others: Iterable[Entry], size: int, most: int, now: float
    ) -> Batch:
        """Return a batch of at most `size` rows; at most `most` of them are of inferences that waited."""
        program = first.program
        chosen = [(first, work)]
        free, waited = size - len(work.tag), most - len(work.tag)
        for entry in others:
            if free <= 0 or first.alone:
                break
            room = min(free, waited) if entry.queued is not None and first.queued is not None else free
            if room > 0 and entry.program is program and not entry.alone:
                more = _take(entry, room)
                if more is not None:
                    chosen.append((entry, more))
                    free -= len(more.tag)
                    waited -= len(more.tag) if entry.queued is not None else 0
        caller = self._priorities[first.priority].callers[first.caller]
        caller.runs.begin(first.turn)
        self._priorities[first.priority].turns.begin(caller.turn)
        parts = []
        since = {entry.priority: self._priorities[entry.priority].waiting_since for entry, _ in chosen}
        for entry, rows in chosen:
            charged = program.seconds * len(rows.tag) / (size - free)
            priority = self._priorities[entry.priority]
            fresh = entry.turn.fresh, priority.callers[entry.caller].turn.fresh
            self._charge(entry, charged)
            priority.waiting_since = now
            parts.append(Part(entry, rows, charged, entry.begun, fresh))
            entry.begun = True
        return Batch(program, tuple(parts), since)

    def _charge(self, entry: Entry, seconds: float) -> None:
        if place := self._place(entry):
            priority, caller = place
            caller.runs.charge(entry.turn, seconds)
            priority.turns.charge(caller.turn, seconds)

    def _place(self, entry: Entry) -> tuple[_Priority, _Caller] | None:
        """Return the priority and the caller of a Run; None if they are forgotten."""
        priority = self._priorities.get(entry.priority)
        caller = priority.callers.get(entry.caller) if priority else None
        return (priority, caller) if priority and caller else None

    def _ready(self, entry: Entry) -> bool:
        return not (entry.paused or entry.cancelled or entry.run.finished)

    def _note_who_wants(self, ready: Sequence[Entry], now: float) -> None:
        wanting: dict[int, dict[str, set[Turn]]] = {number: {} for number in self._priorities}
        for entry in self._entries:
            callers = wanting[entry.priority]
            if entry.caller not in callers:
                callers[entry.caller] = set()
        for entry in ready:
            wanting[entry.priority][entry.caller].add(entry.turn)
        for number, callers in wanting.items():
            self._priorities[number].want(callers, now)

    def _rank(self, ready: Sequence[Entry], now: float) -> Callable[[Entry], _Place]:
        longest = max((entry.program.seconds for entry in ready), default=0.0)
        shared: dict[tuple[int, str], tuple[int, _Rank, _Turns]] = {}

        def of_caller(entry: Entry) -> tuple[int, _Rank, _Turns]:
            """Return what is the same for all Runs of a caller: level, rank, and the turns among them."""
            key = entry.priority, entry.caller
            if (found := shared.get(key)) is None:
                priority = self._priorities[entry.priority]
                caller = priority.callers[entry.caller]
                found = shared[key] = (
                    entry.priority - int((now - priority.waiting_since) / AGEING),
                    priority.turns.rank(caller.turn, longest),
                    caller.runs,
                )
            return found

        def rank(entry: Entry) -> _Place:
            level, of_callers, turns = of_caller(entry)
            return (
                level,
                entry.priority,
                entry.queued is not None and entry.queued.delayed(now),
                of_callers,
                turns.rank(entry.turn, longest),
                entry.arrived,
            )

        return rank


def _take(entry: Entry, rows: int) -> Work | None:
    """Take at most `rows` rows from a Run; None if it has none to give."""
    work = entry.run.take(rows)
    found = work if isinstance(work, Work) else None
    entry.dry = found is None or len(found.tag) < rows
    return found
