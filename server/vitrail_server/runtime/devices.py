"""The devices of the machine: each has its own thread and its own queue, and a Run is placed on one of them.

A version has an instance on each device that its configuration names. A Run goes to the one with the fewest
Runs in progress when it is handed in, and stays there: its image crosses once, and its rows share batches
with those of others on that device.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import TypeVar

from vitrail_server.events import BatchExecuted, DeviceEvents
from vitrail_server.runtime.device import Device
from vitrail_server.servable import Description, ImageSize, OwnProgram, Program, Servable, WindowGrid
from vitrail_server.work import Kind, PredictRows

T = TypeVar("T")

FIRST = "CPU:0"
"""The device that every machine has; TensorFlow's name."""


@dataclass(frozen=True, slots=True)
class Instance:
    """A version on one device."""

    device: str
    servable: Servable


class Replicated:
    """A version with an instance on each of several devices, or on one that is named: a `Servable`.

    What is known of it was found on the first one.
    """

    def __init__(self, instances: Sequence[Instance]) -> None:
        self.instances = tuple(instances)
        self.description: Description = self.instances[0].servable.description

    def program(self, kind: Kind, image_size: ImageSize) -> Program:
        """Return the first instance's program."""
        return self.instances[0].servable.program(kind, image_size)

    def incremental(self, image_size: ImageSize, grid: WindowGrid) -> OwnProgram | None:
        """Return the first instance's program."""
        return self.instances[0].servable.incremental(image_size, grid)

    def predictor(self, rows: PredictRows) -> Program:
        """Return the first instance's program."""
        return self.instances[0].servable.predictor(rows)

    def close(self) -> None:
        """Give the memory of all instances back."""
        for each in self.instances:
            each.servable.close()


class Devices:
    """The devices in use; one is set up when it is first needed. For the event loop, but for `call_on`."""

    def __init__(self, events: DeviceEvents, clock: Callable[[], float] = time.monotonic) -> None:
        self._events = events
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._devices: dict[str, Device] = {}
        self._queues: dict[str, tuple[int, int]] = {}
        self._closed = False

    def device(self, name: str) -> Device:
        """Return a device by TensorFlow's name; the same one every time."""
        if name not in self._devices:
            self._devices[name] = Device(
                _EventsOf(name, self._events, self._queue_changed), self._clock, name=name
            )
            self._events.device_added(name)
            if self._closed:
                self._devices[name].close()
        return self._devices[name]

    def place(self, servable: Servable) -> tuple[Device, Servable]:
        """Return the device on which a Run of this version is to go, and the version's instance there."""
        if not isinstance(servable, Replicated):
            return self.device(FIRST), servable
        chosen = min(servable.instances, key=lambda each: self.device(each.device).runs)
        return self.device(chosen.device), chosen.servable

    def call_on(self, name: str, chore: Callable[[], T]) -> T:
        """Run a housekeeping call on a device; see `Device.call`. From another thread than the loop's."""
        found: Future[Device] = Future()
        self._loop.call_soon_threadsafe(lambda: found.set_result(self.device(name)))
        return found.result().call(chore)

    def close(self) -> None:
        """Stop every device, as `Device.close` does."""
        self._closed = True
        for device in self._devices.values():
            device.close()

    def _queue_changed(self, name: str, waiting: int, batches: int) -> None:
        self._queues[name] = waiting, batches
        queues = self._queues.values()
        self._events.queue_changed(sum(each for each, _ in queues), sum(each for _, each in queues))


@dataclass(frozen=True, slots=True)
class _EventsOf:
    """What one device reports: its batches, under its name, and the queue of all devices together."""

    device: str
    events: DeviceEvents
    queue: Callable[[str, int, int], None]

    def device_added(self, name: str) -> None:
        self.events.device_added(name)

    def batch_executed(self, event: BatchExecuted) -> None:
        self.events.batch_executed(replace(event, device=self.device))

    def batch_failed(self, kind: Kind, *, out_of_memory: bool) -> None:
        self.events.batch_failed(kind, out_of_memory=out_of_memory)

    def rows_dropped(self, kind: Kind, rows: int) -> None:
        self.events.rows_dropped(kind, rows)

    def queue_changed(self, waiting: int, batches: int) -> None:
        self.queue(self.device, waiting, batches)
