"""Several devices: where a Run goes, and that what happens on one stays there."""

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence

import numpy as np
import pytest

from fakes.models import Linear, picture, weights
from fakes.questions import ask
from fakes.runs import CostedProgram, CountedRun
from fakes.servables import FakeProgram, describe
from runtime.stage import Clock, Handle, Held, Recorder, Request
from vitrail.errors import Unavailable
from vitrail_server.explainers.occlusion import OcclusionParameters, OcclusionRun
from vitrail_server.explainers.run import Run
from vitrail_server.runtime.devices import FIRST, Devices, Instance, Replicated
from vitrail_server.servable import Description, ImageSize, OwnProgram, Program, WindowGrid
from vitrail_server.work import Kind, PredictRows

SHAPE = (6, 6, 1)
MODEL = Linear(weights(5, 2, SHAPE))


class OneProgram:
    """A version that has one program, whatever is asked of it."""

    def __init__(self, program: Program) -> None:
        self.description: Description = describe(SHAPE, 2)
        self.only = program
        self.handle = Handle()

    def program(self, kind: Kind, image_size: ImageSize) -> Program:
        return self.only

    def incremental(self, image_size: ImageSize, grid: WindowGrid) -> OwnProgram | None:
        return None

    def predictor(self, rows: PredictRows) -> Program:
        return self.only

    def close(self) -> None:
        self.handle.close()


class Rig:
    """Devices under test, with every batch in the test's hands."""

    def __init__(self) -> None:
        self.events, self.clock = Recorder(), Clock()
        self.devices = Devices(self.events, self.clock)
        self.programs: list[Held] = []

    def version(self, inner: Sequence[Program], names: Sequence[str]) -> Replicated:
        """Return a version with an instance on each of the devices, which runs this program."""
        held = [Held(each, self.clock) for each in inner]
        self.programs += held
        return Replicated(
            [Instance(name, OneProgram(program)) for name, program in zip(names, held, strict=True)]
        )

    def submit(self, run: Run, version: Replicated, *, priority: int = 100) -> Request:
        request = Request(run)
        device, instance = self.devices.place(version)
        request.submission = device.submit(
            run,
            instance.program(Kind.FORWARD, SHAPE[:2]),
            request.handle,
            request.on_change,
            caller="caller",
            arrived=self.clock.now,
            priority=priority,
        )
        return request

    def close(self) -> None:
        for program in self.programs:
            program.open()
        self.devices.close()


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    rig = Rig()
    yield rig
    rig.close()


def costed(count: int) -> list[CostedProgram]:
    return [CostedProgram(4, 0.1) for _ in range(count)]


async def test_runs_go_to_the_device_that_has_fewest_and_compute_at_the_same_time(rig: Rig) -> None:
    version = rig.version(costed(2), ["GPU:0", "GPU:1"])
    first, second = rig.submit(CountedRun(4), version), rig.submit(CountedRun(3), version)
    assert await rig.programs[0].begun() == 4
    assert await rig.programs[1].begun() == 3, "while the first one is still computing"
    third = rig.submit(CountedRun(2), version)
    rig.programs[1].open()
    await second.end()
    fourth = rig.submit(CountedRun(1), version)
    assert await rig.programs[1].begun() == 1
    rig.programs[0].open()
    for request in (first, third, fourth):
        await request.end()
    assert [program.executed for program in rig.programs] == [[4, 2], [3, 1]]
    assert {event.device for event in rig.events.executed} == {"GPU:0", "GPU:1"}


async def test_a_run_stays_on_its_device(rig: Rig) -> None:
    version = rig.version(costed(2), ["GPU:0", "GPU:1"])
    rig.programs[0].open()
    request = rig.submit(CountedRun(40), version)
    await request.end()
    assert rig.programs[1].executed == []
    assert sum(rig.programs[0].executed) == 40


async def test_versions_share_the_devices_they_have_in_common(rig: Rig) -> None:
    both, second_only = rig.version(costed(2), ["GPU:0", "GPU:1"]), rig.version(costed(1), ["GPU:1"])
    one = rig.submit(CountedRun(4), second_only)
    other = rig.submit(CountedRun(4), both)
    assert await rig.programs[0].begun() == 4, "the GPU that is free"
    for program in rig.programs:
        program.open()
    await one.end()
    await other.end()
    assert rig.events.devices == ["GPU:1", "GPU:0"], "each is set up when it is first needed, and once"


async def test_a_version_that_names_no_device_is_on_the_first_one(rig: Rig) -> None:
    device, instance = rig.devices.place(OneProgram(costed(1)[0]))
    assert device is rig.devices.device(FIRST)
    assert isinstance(instance, OneProgram)


async def test_running_out_of_memory_on_one_device_halves_the_batches_there_and_loses_nothing(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    inner = [
        FakeProgram(MODEL, Kind.FORWARD, batch_size=16, fits=5),
        FakeProgram(MODEL, Kind.FORWARD, batch_size=16),
    ]
    version = rig.version(inner, ["GPU:0", "GPU:1"])
    requests = [
        rig.submit(OcclusionRun(ask(MODEL, picture(seed, SHAPE)), OcclusionParameters((1, 1))), version)
        for seed in range(2)
    ]
    for program in rig.programs:
        program.open()
    for seed, request in enumerate(requests):
        await request.end()
        assert request.canvas
        expected = MODEL.weights[..., 0] * picture(seed, SHAPE)[..., 0]
        np.testing.assert_allclose(request.canvas.values, expected, atol=1e-6)
    assert [each.batch_size for each in inner] == [4, 16]
    assert "out of memory" in caplog.text


async def test_the_queue_of_all_devices_is_reported_together(rig: Rig) -> None:
    version = rig.version(costed(2), ["GPU:0", "GPU:1"])
    requests = [rig.submit(CountedRun(9), version) for _ in range(4)]
    await rig.programs[0].begun()
    await rig.programs[1].begun()
    assert rig.events.queue == (4, 4), "on each one batch runs, one waits, and two Runs have rows left"
    for program in rig.programs:
        program.open()
    for request in requests:
        await request.end()
    assert rig.events.queue == (0, 0)


async def test_warm_up_runs_on_the_thread_of_the_device_that_is_meant(rig: Rig) -> None:
    def thread() -> str:
        return threading.current_thread().name

    names = [await asyncio.to_thread(rig.devices.call_on, name, thread) for name in ("GPU:1", "CPU:0")]
    assert [name.rpartition("_")[0] for name in names] == ["device GPU:1", "device CPU:0"]


async def test_closing_closes_every_instance_and_every_device(rig: Rig) -> None:
    version = rig.version(costed(2), ["GPU:0", "GPU:1"])
    version.close()
    servables = [each.servable for each in version.instances]
    assert [each.handle.closed for each in servables if isinstance(each, OneProgram)] == [1, 1]
    rig.devices.device("GPU:0")
    rig.devices.close()
    for name in ("GPU:0", "GPU:1"):
        with pytest.raises(Unavailable, match="shutting down"):
            await asyncio.to_thread(rig.devices.call_on, name, int)
