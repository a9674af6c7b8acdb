"""The device: executes batches on one thread and keeps it busy.

Everything here runs on the event loop except `_execute`, which runs on the device's lane. One assembled
batch always waits behind the running one, so the device never idles while there is work. Until it begins it
is no more than a proposal: when a Run arrives it is taken apart and assembled anew, so that the newcomer
has its place in it. The rows of explanations that nobody wants any more are left out when its turn comes.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from vitrail.errors import Internal, ResourceExhausted, Unavailable, VitrailError
from vitrail_server.events import BatchExecuted, DeviceEvents
from vitrail_server.explainers.run import Explanation, Plan, Run, Summary, Tile
from vitrail_server.runtime.entry import DEFAULT_PRIORITY, Batch, Entry, Part
from vitrail_server.runtime.lane import Lane
from vitrail_server.runtime.queueing import Queueing
from vitrail_server.runtime.scheduler import Scheduler
from vitrail_server.servable import Program
from vitrail_server.wording import reason_of
from vitrail_server.work import OutOfMemory, Result

T = TypeVar("T")
R = TypeVar("R", bound=Run)
log = logging.getLogger(__name__)

IN_FLIGHT = 2
"""Batches on the device's lane: the running one and the one behind it."""

BACKLOG = 4
"""Batches whose tiles may wait for a slow reader before its Run takes no more rows."""

PATIENCE = 2.0
"""Seconds that a housekeeping call (warm-up, measuring) waits for a quiet moment before it is run anyway: so
long that of a hundred batches of a busy device hardly one has to wait for such a call."""

SHORT = 8
"""A call that takes no longer than a batch disturbs little: it waits so many times its own duration instead,
so that a load on a busy device ends in time."""


class Held(Protocol):
    """What a submission keeps alive until its last row is absorbed: the handle of a servable."""

    def close(self) -> None:
        """Let go."""


class Tally(Protocol):
    """Counts the batches of one version in which some of its rows were."""

    def executed(self, rows: int, seconds: float) -> None:
        """Count a batch with so many rows of those that the tally is for."""


class Submission(Generic[R]):
    """A Run on its way through the device, as the rpc layer sees it.

    `on_change` is called on the event loop whenever there may be a plan, tiles or the end to read. `backlog`
    is how many batches may wait for the reader; None: any number.
    """

    def __init__(
        self,
        device: "Device",
        run: R,
        entry: Entry,
        held: Held,
        on_change: Callable[[], None],
        backlog: int | None,
        tally: Tally | None,
    ) -> None:
        self.run = run
        self.tally = tally
        self._device = device
        self._entry = entry
        self._most = backlog
        self._held: Held | None = held
        self._on_change = on_change
        self._backlog = 0
        self._out = 0
        self.queue_seconds = 0.0
        """Seconds from the request's arrival until its first batch began."""
        self.device_seconds = 0.0
        """Its share, by rows, of the seconds that its batches took."""
        self.batch_seconds = 0.0
        """The seconds that its batches took, whoever's rows were in them."""

    @property
    def plan(self: "Submission[Explanation]") -> Plan | None:
        """The Run's plan; None until the model has answered for the unperturbed image."""
        return self.run.plan

    @property
    def error(self) -> VitrailError | None:
        """Why it failed; None if it did not."""
        return self._entry.run.error

    @property
    def finished(self) -> bool:
        """No more tiles will come than `tiles` returns now."""
        return self._entry.run.finished

    def tiles(self: "Submission[Explanation]") -> Sequence[Tile]:
        """Return what is new for the reader, who has thereby caught up."""
        self._backlog = 0
        if self._entry.paused:
            self._device.pause(self, paused=False)
            self._device.fill()
        return self.run.tiles()

    def summary(self: "Submission[Explanation]") -> Summary:
        """Return how it went; once finished, without error."""
        return self.run.summary()

    def cancel(self) -> None:
        """Drop all work that has not begun. Does nothing once finished."""
        self._entry.cancelled = True
        self._device.withdraw(self)
        if not self._out:
            self._release()

    def dispatched(self) -> None:
        """Note that some of its rows are in a batch."""
        self._out += 1

    def returned(self, part: Part, outcome: "_Outcome | None") -> None:
        """Take its rows of a batch back: computed (`outcome`), or to be done again (None)."""
        self._out -= 1
        entry = self._entry
        if entry.cancelled or entry.run.error:
            pass  # nobody asks for these rows any more
        elif outcome is None:
            entry.run.give_back(part.work)
        else:
            if not self.device_seconds:
                self.queue_seconds = outcome.began - entry.arrived
            self.device_seconds += outcome.seconds * len(part) / outcome.rows
            self.batch_seconds += outcome.seconds
            self._backlog += 1
            self._device.pause(self, paused=self._most is not None and self._backlog >= self._most)
            self._absorb(part, outcome.results[id(part)])
        self._settle()

    def failed(self, error: VitrailError) -> None:
        """End the Run: its rows of a batch could not be computed."""
        self._out -= 1
        self.end(error)

    def end(self, error: VitrailError) -> None:
        """End the Run with `error`; rows of it that are still at the device are left out."""
        if not self._entry.cancelled:
            self._entry.run.fail(error)
            self._entry.cancelled = True
        self._settle()

    def _absorb(self, part: Part, result: Result) -> None:
        try:
            self._entry.run.absorb(part.work, result)
        except Exception:
            log.exception("a run could not absorb its results")
            self._entry.run.fail(Internal("the server could not take in what the model computed"))
            self._entry.cancelled = True

    def _settle(self) -> None:
        run = self._entry.run
        if run.finished or self._entry.cancelled:
            self._device.withdraw(self)
            if not self._out:
                self._release()
        self._on_change()

    def _release(self) -> None:
        if self._held is not None:
            self._held.close()
            self._held = None


@dataclass(frozen=True, slots=True, eq=False)
class _Outcome:
    """What the device's lane made of a batch."""

    began: float
    seconds: float = 0.0
    rows: int = 0
    """Computed."""
    dropped: int = 0
    """Left out, because nobody wants them any more or their time is over."""
    results: dict[int, Result] = field(default_factory=dict)
    """By id of the part. Missing: what was left out, and everything if the batch was too large."""
    out_of_memory: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class _Dispatched:
    """A batch on the device's lane."""

    batch: Batch
    owners: Sequence[Submission[Any]]
    future: Future[_Outcome]


@dataclass(frozen=True, slots=True, eq=False)
class _Chore:
    """A housekeeping call that another thread waits for."""

    asked: float
    run: Callable[[], None]
    refuse: Callable[[], None]


class Device:
    """One device with its thread, its queue and its scheduler."""

    def __init__(
        self, events: DeviceEvents, clock: Callable[[], float] = time.monotonic, *, name: str = "CPU:0"
    ) -> None:
        self._events = events
        self._clock = clock
        self._lane = Lane(f"device {name}")
        self._scheduler = Scheduler()
        self._submissions: dict[int, Submission[Any]] = {}
        self._chores: deque[_Chore] = deque()
        self._chore_seconds = PATIENCE  # how long the last one took
        self._batch_seconds = 0.0
        self._in_flight = 0
        self._alarm: asyncio.TimerHandle | None = None
        self._batches: list[_Dispatched] = []
        self._loop = asyncio.get_running_loop()
        self._closed = False

    @property
    def runs(self) -> int:
        """How many Runs are in progress."""
        return len(self._submissions)

    def submit(
        self,
        run: R,
        program: Program,
        held: Held,
        on_change: Callable[[], None],
        *,
        caller: str,
        arrived: float,
        priority: int = DEFAULT_PRIORITY,
        time_budget: float | None = None,
        backlog: int | None = BACKLOG,
        tally: Tally | None = None,
        queueing: Queueing | None = None,
    ) -> Submission[R]:
        """Take a Run in; its rows may be part of the next batch that begins.

        `held` is closed when the last row is absorbed. `arrived` is on the device's clock, and
        `time_budget` is in seconds from then. `backlog` is how many batches may wait for the reader; None:
        nobody reads before the end. `tally` counts its batches, together with those of others that have it.
        `queueing` is how an inference waits.

        Raises:
            ResourceExhausted: the queue that it would wait in is full.

        """
        if queueing is not None and self._scheduler.full(queueing):
            raise ResourceExhausted("Exceeds maximum queue size", retry_delay=1.0)
        entry = Entry(
            run=run,
            program=program,
            caller=caller,
            arrived=arrived,
            priority=priority,
            ends=None if time_budget is None else arrived + time_budget,
            queueing=queueing,
        )
        submission = Submission(self, run, entry, held, on_change, backlog, tally)
        self._submissions[id(entry)] = submission
        self._scheduler.add(entry)
        if self._closed:
            submission.end(_shutting_down())
        else:
            self._reconsider()
        self.fill()
        return submission

    def call(self, chore: Callable[[], T]) -> T:
        """Run `chore` on the device's thread when the device is quiet, and return its result.

        For warm-up and measuring, which are less urgent than any explanation. Blocks: to be called
        from another thread than the event loop's.
        """
        done: Future[T] = Future()

        def run() -> None:
            try:
                done.set_result(chore())
            except BaseException as error:  # noqa: BLE001 - it belongs to the thread that waits
                done.set_exception(error)

        def refuse() -> None:
            done.set_exception(_shutting_down())

        self._loop.call_soon_threadsafe(self._add_chore, run, refuse)
        return done.result()

    def withdraw(self, submission: Submission[Any]) -> None:
        """Hand out no more rows of this submission."""
        entry = submission._entry  # noqa: SLF001 - the two classes are one mechanism
        self._scheduler.remove(entry)
        self._submissions.pop(id(entry), None)
        self._report_queue()

    def pause(self, submission: Submission[Any], *, paused: bool) -> None:
        """Hand out no rows of this submission, which goes on, or hand out rows again."""
        self._scheduler.pause(submission._entry, paused=paused)  # noqa: SLF001 - one mechanism, as above

    def fill(self) -> None:
        """Keep the device busy: called whenever there may be work that it could not take before."""
        while self._in_flight < IN_FLIGHT and not self._closed:
            now = self._clock()
            if self._chores and now - self._chores[0].asked >= self._patience():
                self._dispatch_chore()
            elif batch := self._scheduler.next_batch(now):
                self._dispatch(batch)
            elif self._chores and not self._in_flight:
                self._dispatch_chore()
            else:
                break
        self._scheduler.expire(self._clock())
        self._end_stopped()
        self._set_alarm()
        self._report_queue()

    def close(self) -> None:
        """Stop: the running batch ends, and whatever wanted more of the device ends with `Unavailable`."""
        self._closed = True
        self._set_alarm()
        while self._chores:
            self._chores.popleft().refuse()
        self._lane.close()
        for submission in list(self._submissions.values()):
            submission.end(_shutting_down())

    def _set_alarm(self) -> None:
        """Come back when a request has waited long enough, for company or at all."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        now = self._clock()
        wakes = None if self._closed else self._scheduler.wakes(now)
        if wakes is not None:
            self._alarm = self._loop.call_later(wakes - now, self.fill)

    def _dispatch(self, batch: Batch) -> None:
        owners = [self._submissions[id(part.entry)] for part in batch.parts]
        for owner in owners:
            owner.dispatched()
        self._in_flight += 1
        dispatched = _Dispatched(batch, owners, self._lane.submit(self._execute, batch))
        self._batches.append(dispatched)
        dispatched.future.add_done_callback(
            lambda _: self._loop.call_soon_threadsafe(self._completed, dispatched)
        )

    def _reconsider(self) -> None:
        """Take back the batch that waits for its turn, unless it has begun meanwhile."""
        if not self._batches or not self._batches[-1].future.cancel():
            return
        withdrawn = self._batches.pop()
        self._in_flight -= 1
        self._scheduler.withdraw(withdrawn.batch)
        self._again(withdrawn)

    def _execute(self, batch: Batch) -> _Outcome:
        """Compute a batch, without the rows that nobody wants any more. On the device's thread."""
        began, program = self._clock(), batch.program
        parts = [part for part in batch.parts if not (part.entry.cancelled or part.entry.expired(began))]
        rows = sum(len(part) for part in parts)
        dropped = batch.rows - rows
        if not rows or rows > program.batch_size:  # too large: the size was halved after it was assembled
            return _Outcome(began, dropped=dropped)
        try:
            results = program.execute([part.work.rows for part in parts])
        except OutOfMemory:
            if not program.halve():
                raise
            log.warning("out of memory; batches of %d from now on", program.batch_size)
            return _Outcome(began, self._clock() - began, dropped=dropped, out_of_memory=True)
        by_part = {id(part): result for part, result in zip(parts, results, strict=True)}
        return _Outcome(began, self._clock() - began, rows, dropped, by_part)

    def _completed(self, dispatched: _Dispatched) -> None:
        if dispatched not in self._batches:
            return  # it was withdrawn
        self._in_flight -= 1
        self._batches.remove(dispatched)
        batch, owners, done = dispatched.batch, dispatched.owners, dispatched.future
        error = None if done.cancelled() else done.exception()
        if done.cancelled():
            self._again(dispatched)
        elif error is None:
            self._take_in(batch, owners, done.result())
        else:
            self._events.batch_failed(batch.program.kind, out_of_memory=isinstance(error, OutOfMemory))
            if len(batch.parts) > 1:
                # One image may have made the whole batch fail: from now on each fails for itself only.
                for part in batch.parts:
                    self._scheduler.isolate(part.entry)
                self._again(dispatched)
            else:
                owners[0].failed(_refusal(error))
        self.fill()

    def _take_in(self, batch: Batch, owners: Sequence[Submission[Any]], outcome: _Outcome) -> None:
        kind, size = batch.program.kind, batch.program.batch_size
        self._scheduler.settle(batch, outcome.seconds)
        if outcome.rows:
            self._batch_seconds = outcome.seconds
        if outcome.rows:
            self._events.batch_executed(BatchExecuted(kind, outcome.rows, size, outcome.seconds))
        if outcome.dropped:
            self._events.rows_dropped(kind, outcome.dropped)
        if outcome.out_of_memory:
            self._events.batch_failed(kind, out_of_memory=True)
        _count(batch, owners, outcome)
        for part, owner in zip(batch.parts, owners, strict=True):
            self._scheduler.returned(part.entry)
            owner.returned(part, outcome if id(part) in outcome.results else None)

    def _again(self, dispatched: _Dispatched) -> None:
        for part, owner in zip(dispatched.batch.parts, dispatched.owners, strict=True):
            self._scheduler.returned(part.entry)
            owner.returned(part, None)

    def _report_queue(self) -> None:
        self._events.queue_changed(self._scheduler.waiting, len(self._batches))

    def _end_stopped(self) -> None:
        """Tell the owners of Runs that ended without a batch: their time budget was spent in the queue."""
        for entry in self._scheduler.timed_out:
            self._submissions[id(entry)]._settle()  # noqa: SLF001 - the two classes are one mechanism

    def _add_chore(self, run: Callable[[], None], refuse: Callable[[], None]) -> None:
        if self._closed:
            refuse()
            return
        self._chores.append(_Chore(self._clock(), run, refuse))
        self.fill()

    def _dispatch_chore(self) -> None:
        chore = self._chores.popleft()
        self._in_flight += 1

        def timed() -> float:
            began = self._clock()
            chore.run()
            return self._clock() - began

        def done(future: Future[float]) -> None:
            if future.cancelled():
                chore.refuse()
            self._loop.call_soon_threadsafe(self._chore_done, future)

        self._lane.submit(timed).add_done_callback(done)

    def _chore_done(self, future: Future[float]) -> None:
        self._in_flight -= 1
        if not future.cancelled():
            self._chore_seconds = future.result()
        self.fill()

    def _patience(self) -> float:
        """Return how long the next chore waits for a quiet moment, if it is like the last one."""
        if self._chore_seconds <= self._batch_seconds:
            return min(PATIENCE, SHORT * self._chore_seconds)
        return PATIENCE


def _count(batch: Batch, owners: Sequence[Submission[Any]], outcome: _Outcome) -> None:
    """Tell each tally once of a batch, however many of its requests were in it."""
    rows: dict[int, int] = {}
    tallies: dict[int, Tally] = {}
    for part, owner in zip(batch.parts, owners, strict=True):
        if owner.tally is not None and id(part) in outcome.results:
            tallies[id(owner.tally)] = owner.tally
            rows[id(owner.tally)] = rows.get(id(owner.tally), 0) + len(part)
    for key, tally in tallies.items():
        tally.executed(rows[key], outcome.seconds)


def _shutting_down() -> Unavailable:
    return Unavailable("the server is shutting down; ask another one, or again later")


def _refusal(error: BaseException) -> VitrailError:
    """Return what the caller is told of a failed batch: no stack trace, one line."""
    if isinstance(error, VitrailError):
        return error
    if isinstance(error, OutOfMemory):
        return ResourceExhausted(
            "the device ran out of memory for a single row; use a smaller image or input"
        )
    log.error("a batch failed", exc_info=error)
    return Internal(f"the model failed while it computed: {reason_of(error)}")
