"""A device with everything around it in the test's hands: the clock, each batch's turn, and who reads."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import Any

from fakes.canvas import Canvas
from vitrail_server.events import BatchExecuted
from vitrail_server.explainers.run import Run
from vitrail_server.runtime.device import Device, Submission
from vitrail_server.runtime.entry import DEFAULT_PRIORITY
from vitrail_server.servable import Program
from vitrail_server.work import Kind, Result, Rows

MOST_CHANGES = 10_000
"""More than any Run of these tests has."""


class Clock:
    """Seconds that pass only when a test, or a program, says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Handle:
    """Counts how often it is closed."""

    def __init__(self) -> None:
        self.closed = 0

    def close(self) -> None:
        self.closed += 1


class Recorder:
    """Every event of the device, in order."""

    def __init__(self) -> None:
        self.executed: list[BatchExecuted] = []
        self.failed: list[bool] = []
        """Out of memory or not."""
        self.dropped = 0
        self.queue = (0, 0)
        self.devices: list[str] = []

    def device_added(self, name: str) -> None:
        self.devices.append(name)

    def batch_executed(self, event: BatchExecuted) -> None:
        self.executed.append(event)

    def batch_failed(self, kind: Kind, *, out_of_memory: bool) -> None:
        self.failed.append(out_of_memory)

    def rows_dropped(self, kind: Kind, rows: int) -> None:
        self.dropped += rows

    def queue_changed(self, waiting: int, batches: int) -> None:
        self.queue = (waiting, batches)


class Held:
    """A Program that begins each batch only when the test lets it."""

    def __init__(self, inner: Program, clock: Clock) -> None:
        self.inner = inner
        self.kind = inner.kind
        self.batch_size = inner.batch_size
        self.seconds = inner.seconds
        self.clock = clock
        self.executed: list[int] = []
        """Rows of the batches that were let through."""
        self._loop = asyncio.get_running_loop()
        self._arrivals: asyncio.Queue[int] = asyncio.Queue()
        self._permits = threading.Semaphore(0)

    def execute(self, parts: Sequence[Rows]) -> list[Result]:
        rows = sum(map(len, parts))
        assert rows <= self.batch_size
        self._loop.call_soon_threadsafe(self._arrivals.put_nowait, rows)
        self._permits.acquire()
        self.executed.append(rows)
        self.clock.now += self.seconds
        return self.inner.execute(parts)

    def halve(self) -> bool:
        halved = self.inner.halve()
        self.batch_size = self.inner.batch_size
        return halved

    async def begun(self) -> int:
        """Return the rows of the next batch that has begun, once it has."""
        return await self._arrivals.get()

    def let(self, batches: int = 1) -> None:
        """Let batches through, those to come included."""
        self._permits.release(batches)

    def open(self) -> None:
        """Let everything through."""
        self.let(10_000)


class Request:
    """A Run at the device, and who waits for it."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.handle = Handle()
        self.changes = 0
        self.canvas: Canvas | None = None
        self._changed = asyncio.Event()
        self._thread = threading.get_ident()
        self.submission: Submission[Any]

    def on_change(self) -> None:
        assert threading.get_ident() == self._thread
        self.changes += 1
        self._changed.set()

    def read(self) -> None:
        """Paste what is new."""
        tiles = self.submission.tiles()
        if tiles and self.canvas is None:
            assert self.submission.plan is not None
            self.canvas = Canvas(self.submission.plan.map_shape)
        if self.canvas is not None:
            self.canvas.paste_all(tiles)

    async def until(self, reached: Callable[[], bool]) -> None:
        """Return when `reached`, which is asked after every change.

        A device that hands out the same rows for ever is told here: the event loop, which it keeps busy,
        swallows what a time limit raises.
        """
        for _ in range(MOST_CHANGES):
            if reached():
                return
            await self._changed.wait()
            self._changed.clear()
        raise AssertionError("it changes and changes, and the end is not reached")

    async def let_go(self) -> None:
        """Return when the handle is closed."""
        await self.until(lambda: self.handle.closed > 0)

    async def end(self, *, reads: bool = True) -> None:
        """Return when it is finished, reading all the while."""

        def finished() -> bool:
            if reads:
                self.read()
            return self.submission.finished

        await self.until(finished)
        self.read()


class Stage:
    """The device under test."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.events = Recorder()
        self.device = Device(self.events, self.clock)
        self.programs: list[Held] = []

    def held(self, inner: Program) -> Held:
        """Return `inner`, with its batches in the test's hands."""
        self.programs.append(Held(inner, self.clock))
        return self.programs[-1]

    def submit(
        self,
        run: Run,
        program: Program,
        *,
        caller: str = "caller",
        priority: int = DEFAULT_PRIORITY,
        time_budget: float | None = None,
    ) -> Request:
        """Hand a Run to the device as the rpc layer does."""
        request = Request(run)
        request.submission = self.device.submit(
            run,
            program,
            request.handle,
            request.on_change,
            caller=caller,
            arrived=self.clock.now,
            priority=priority,
            time_budget=time_budget,
        )
        return request

    def close(self) -> None:
        """End the device's thread, whatever it was waiting for."""
        for program in self.programs:
            program.open()
        self.device.close()
