"""Which rows of which Runs form the next batch: pure policy, without threads, TensorFlow or a clock.

Continuous batching: a batch is filled with rows of one Program from as many Runs as it takes, and a Run
that arrives takes part in the very next batch.

Who goes first is decided in this order:

0. Inferences wait for company as their model's dynamic batching says (`queueing.py`); once a batch of them is
   worth running, or there is room in somebody else's, they take part.
1. Priority, 1 before 2. A priority whose Runs all wait gains one level every `AGEING` seconds, so a
   stream of more urgent work starves nobody.
2. Within a priority the callers take turns, by the seconds of the device that each has had (`fairness.py`).
3. The Runs of one caller take turns in the same way, and at last in the order of arrival.

A batch is charged to its Runs when it is formed, by their share of its rows and the Program's measured
seconds, and corrected when its real duration is known.

The order is not made anew for every decision: it is kept, by priority, caller and Run, and whatever changes
the state of a Run comes through here (`_note`), so that a decision costs what it changes.
"""

from collections.abc import Iterable, Iterator
from copy import copy
from itertools import chain, islice, tee
from operator import attrgetter

from vitrail.errors import DeadlineExceeded
from vitrail_server.explainers.run import Work
from vitrail_server.runtime.entry import Batch, Entry, Part
from vitrail_server.runtime.priority import Priority
from vitrail_server.runtime.queueing import Queueing, rows_to_run
from vitrail_server.runtime.timing import Timing
from vitrail_server.servable import Program

_seconds = attrgetter("seconds")


class Scheduler:
    """The Runs in progress and the order in which they are served."""

    def __init__(self) -> None:
        self._entries: set[Entry] = set()
        self._added = 0
        self._priorities: dict[int, Priority] = {}
        self._in_program: dict[Program, int] = {}
        """How many Runs may be asked for rows of each program."""
        self._waiting: set[Entry] = set()
        """The Runs with rows that wait for a place in a batch."""
        self._timing = Timing()
        self._timed_out: dict[Entry, None] = {}
        self._asked: dict[Entry, None] = {}
        """The Runs that were asked for rows in this decision."""

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def waiting(self) -> int:
        """How many Runs have rows that wait for a place in a batch."""
        return len(self._waiting)

    @property
    def timed_out(self) -> list[Entry]:
        """The Runs that time alone has ended, and that nobody has removed yet."""
        return list(self._timed_out)

    def add(self, entry: Entry) -> None:
        """Take in a Run; it may be served from the next batch on."""
        entry.number = self._added
        self._added += 1
        self._entries.add(entry)
        self._timing.add(entry)
        if entry.priority not in self._priorities:
            self._priorities[entry.priority] = Priority(entry.priority, entry.arrived)
        self._priorities[entry.priority].add(entry)
        self._note(entry)

    def remove(self, entry: Entry) -> None:
        """Forget a Run that is finished, failed or cancelled; forgetting it twice does nothing."""
        if entry not in self._entries:
            return
        self._entries.remove(entry)
        self._note(entry)
        self._timing.remove(entry)
        priority = self._priorities[entry.priority]
        priority.remove(entry)
        if not len(priority):
            del self._priorities[entry.priority]

    def pause(self, entry: Entry, *, paused: bool) -> None:
        """Ask a Run for no more rows until its reader has caught up, or ask it again."""
        if entry.paused != paused:
            entry.paused = paused
            self._note(entry)

    def isolate(self, entry: Entry) -> None:
        """Let a Run share no more batches, because one with its rows failed."""
        entry.alone = True
        self._note(entry)

    def returned(self, entry: Entry) -> None:
        """Note that rows of a Run came back from the device, so that it may have others to give."""
        entry.dry = False
        self._note(entry)

    def next_batch(self, now: float) -> Batch | None:
        """Return the next batch, or None if no Run has rows to give.

        `now` is the time on the clock of `Entry.arrived`.
        """
        self.expire(now)
        batch = self._formed(_Once(self._in_order(now)), now)
        for entry in self._asked:
            self._note(entry)
        self._asked.clear()
        return batch

    def expire(self, now: float) -> None:
        """End what has no more time: a time budget is spent, or a queue's timeout has passed."""
        for entry in self._timing.overdue(now):
            entry.run.stop()
            self._note(entry)
        for entry in self._timing.rejected(now):
            entry.run.fail(DeadlineExceeded("Request timeout expired"))
            self._note(entry)

    def wakes(self, now: float) -> float | None:
        """Return when the answer of `expire` or `next_batch` may change by itself; None: never."""
        return self._timing.wakes(now)

    def full(self, queueing: Queueing) -> bool:
        """Whether the queue that a request would wait in has no room left."""
        return 0 < queueing.policy.max_queue_size <= self._timing.size(queueing)

    def withdraw(self, batch: Batch) -> None:
        """Forget a batch that has not begun, so that the next decision is made afresh.

        Who was first in it is so again, unless somebody comes before. The rows are given back by the caller.
        """
        for part in reversed(batch.parts):  # the first of a caller's Runs knows whether the caller was fresh
            entry = part.entry
            if (priority := self._priorities.get(entry.priority)) is not None:
                priority.refund(entry, part.charged, part.was_fresh)
            entry.begun = part.was_begun
            self._note(entry)
        for number, since in batch.waited.items():
            if number in self._priorities:
                self._priorities[number].waiting_since = since

    def settle(self, batch: Batch, seconds: float) -> None:
        """Correct what was charged for `batch` to the `seconds` it really took."""
        for part in batch.parts:
            self._charge(part.entry, seconds * len(part) / batch.rows - part.charged)

    def _in_order(self, now: float) -> Iterator[Entry]:
        """Return the Runs that may be asked for rows, in the order in which they are served."""
        longest = max(map(_seconds, self._in_program), default=0.0)
        for entry in self._timing.delayed(now):
            self._priorities[entry.priority].set_delayed(entry, delayed=True)
        for priority in self._priorities.values():
            priority.look(now, longest)
        by_level = sorted(self._priorities.values(), key=lambda each: (each.level(now), each.number))
        return chain.from_iterable(each.in_order() for each in by_level)

    def _formed(self, order: Iterable[Entry], now: float) -> Batch | None:
        """Return a batch for the first who has rows to give, and for whom it is worth running."""
        wait: set[Program] = set()
        for entry in order:
            program = entry.program
            size = program.batch_size  # once: running out of memory may halve it meanwhile
            most = size
            if entry.queued is not None:
                if program in wait:
                    continue
                group = (each.queued for each in self._sharing(order, program))
                rows = rows_to_run((each for each in group if each is not None), size, now)
                if rows is None:
                    wait.add(program)
                    continue
                most = rows
            work = self._take(entry, most)
            if work is not None:
                others = (each for each in self._sharing(order, program) if each is not entry)
                return self._filled(entry, work, others, size, most, now)
        return None

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
            if room > 0 and not entry.alone:
                more = self._take(entry, room)
                if more is not None:
                    chosen.append((entry, more))
                    free -= len(more.tag)
                    waited -= len(more.tag) if entry.queued is not None else 0
        self._priorities[first.priority].begin(first)
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

    def _sharing(self, order: Iterable[Entry], program: Program) -> Iterator[Entry]:
        """Yield the Runs with rows for `program`, and look no further than the last of them."""
        return islice((each for each in order if each.program is program), self._in_program[program])

    def _take(self, entry: Entry, rows: int) -> Work | None:
        """Take at most `rows` rows from a Run; None if it has none to give."""
        self._asked[entry] = None
        work = entry.run.take(rows)
        found = work if isinstance(work, Work) else None
        entry.dry = found is None or len(found.tag) < rows
        return found

    def _charge(self, entry: Entry, seconds: float) -> None:
        if (priority := self._priorities.get(entry.priority)) is not None:
            priority.charge(entry, seconds)

    def _note(self, entry: Entry) -> None:
        """Bring what is kept about a Run up to date: called whenever its state may have changed."""
        here, finished = entry in self._entries, entry.run.finished
        ready = here and not (entry.paused or finished)
        if ready != entry.turn.wants:
            self._priorities[entry.priority].set_ready(entry, ready=ready)
            self._count(entry.program, 1 if ready else -1)
        if entry.queueing is not None:
            if ready and entry.queued is not None:
                self._timing.enqueue(entry, entry.queueing)
            elif self._timing.dequeue(entry):
                self._priorities[entry.priority].set_delayed(entry, delayed=False)
        if ready and not entry.dry:
            self._waiting.add(entry)
        else:
            self._waiting.discard(entry)
        if here and finished and (entry.ends is not None or entry.queueing is not None):
            self._timed_out[entry] = None
        else:
            self._timed_out.pop(entry, None)

    def _count(self, program: Program, change: int) -> None:
        """Note that one Run more, or less, may be asked for rows of `program`."""
        total = self._in_program.get(program, 0) + change
        if total:
            self._in_program[program] = total
        else:
            del self._in_program[program]


class _Once:
    """What an iterator yields, as often as it is asked for, without asking the iterator twice or too far."""

    def __init__(self, entries: Iterator[Entry]) -> None:
        (self._entries,) = tee(entries, 1)

    def __iter__(self) -> Iterator[Entry]:
        return copy(self._entries)
