"""`vitrail-server` and `vitrail-healthcheck` as processes: how they start, drain and stop."""

import asyncio
import os
import signal
import socket
import sys
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from fakes.serving import ADDRESS, served
from vitrail.v1 import explanation_pb2 as pb
from vitrail.v1.explanation_pb2_grpc import ExplanationServiceStub

from .messages import extent, refusal_of, spec, start

TESTS = Path(__file__).resolve().parents[1]
LOCAL = ("--grpc-address", ADDRESS, "--metrics-address", ADDRESS, "--grpc-port", "0", "--metrics-port", "0")
WITH_FAKES = (sys.executable, "-m", "fakes.server_process")
PIPE = asyncio.subprocess.PIPE


def installed(command: str) -> str:
    """Return the path of a command of the package."""
    return str(Path(sys.executable).with_name(command))


class Running:
    """A server process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.log: list[str] = []

    @property
    def target(self) -> str:
        """Where it listens."""
        return next(line for line in self.log if "rpcs on " in line).partition("rpcs on ")[2].strip()

    async def logs(self, text: str) -> None:
        """Return when a line with this text was logged."""
        assert self.process.stderr is not None
        while not any(text in line for line in self.log):
            line = await self.process.stderr.readline()
            assert line, f"the server ended before it said {text!r}: {self.log}"
            self.log.append(line.decode())

    async def computes(self) -> None:
        """Return when a batch waits to be let through."""
        assert self.process.stdout is not None
        assert await self.process.stdout.readexactly(1) == b"."

    def let_through(self, batches: int) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(b"x" * batches)


@asynccontextmanager
async def server(
    repository: Path, *arguments: str, command: Sequence[str] = WITH_FAKES
) -> AsyncIterator[Running]:
    """Run a server process, until it ends by itself or the block does."""
    process = await asyncio.create_subprocess_exec(
        *command,
        *("--model-repository", str(repository)),
        *LOCAL,
        *arguments,
        cwd=TESTS,
        stdin=PIPE,
        stdout=PIPE,
        stderr=PIPE,
    )
    running = Running(process)
    try:
        await running.logs("metrics on http://")
        yield running
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


def with_model(directory: Path) -> Path:
    saved_model = directory / "sum" / "1" / "model.savedmodel"
    saved_model.mkdir(parents=True)
    (saved_model / "saved_model.pb").touch()
    return directory


SPEC = spec("sum", np.ones((4, 4, 1), np.float32), occlusion=pb.Occlusion(patch=extent(4, 2)))
"""Two windows and the image itself: three batches of one row."""


async def test_the_installed_commands_start_ask_and_stop(tmp_path: Path) -> None:
    async with server(tmp_path, command=(installed("vitrail-server"),)) as running:
        port = running.target.rpartition(":")[2]
        health = await asyncio.create_subprocess_exec(
            installed("vitrail-healthcheck"), env={**os.environ, "VITRAIL_GRPC_PORT": port}, stdout=PIPE
        )
        said, _ = await health.communicate()
        running.process.send_signal(signal.SIGINT)
        status = await running.process.wait()

    assert (health.returncode, said) == (0, b"SERVING\n")
    assert status == 0
    assert not [line for line in running.log if "Traceback" in line]


async def test_a_port_in_use_is_said_in_one_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind((ADDRESS, 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        command = (
            installed("vitrail-server"),
            "--model-repository",
            str(tmp_path),
            *LOCAL,
            "--grpc-port",
            port,
        )
        process = await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=PIPE)
        out, err = await process.communicate()

    (line,) = err.decode().splitlines()
    assert (process.returncode, out) == (1, b"")
    assert line.startswith(f"vitrail-server: --grpc-port: {ADDRESS}:{port} cannot be had")


async def test_the_first_signal_drains_what_is_in_flight(tmp_path: Path) -> None:
    repository = with_model(tmp_path)
    async with (
        server(repository) as running,
        grpc.aio.insecure_channel(running.target) as channel,
    ):
        await running.logs("AVAILABLE")
        stub = ExplanationServiceStub(channel)
        watch = HealthStub(channel).Watch(HealthCheckRequest(service="models/sum"))
        assert (await watch.read()).status == HealthCheckResponse.SERVING
        stream = stub.ExplainStream()
        await stream.write(start("early", SPEC))
        await running.computes()
        running.process.send_signal(signal.SIGTERM)
        assert (await watch.read()).status == HealthCheckResponse.NOT_SERVING
        await stream.write(start("late", SPEC))
        late: Any = await stream.read()
        async with grpc.aio.insecure_channel(running.target) as other:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await ExplanationServiceStub(other).Explain(pb.ExplainRequest(spec=SPEC))
        running.let_through(3)
        events: list[Any] = []
        while not events or events[-1].WhichOneof("event") != "summary":
            events.append(await stream.read())
        await stream.done_writing()
        status = await running.process.wait()

    assert refusal_of(late.error).code is grpc.StatusCode.UNAVAILABLE
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    assert events[-1].summary.completion == pb.Summary.COMPLETION_COMPLETE
    assert status == 0


async def test_what_does_not_end_in_time_is_cut_off(tmp_path: Path) -> None:
    repository = with_model(tmp_path)
    async with (
        server(repository, "--exit-timeout-secs", "0.1") as running,
        grpc.aio.insecure_channel(running.target) as channel,
    ):
        await running.logs("AVAILABLE")
        call = ExplanationServiceStub(channel).Explain(pb.ExplainRequest(spec=SPEC))
        await running.computes()
        running.process.send_signal(signal.SIGTERM)
        code = await call.code()
        running.let_through(3)  # the batch that is being computed cannot be stopped
        status = await running.process.wait()

    assert code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
    assert status == 0


async def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    repository = with_model(tmp_path)
    async with (
        server(repository, "--exit-timeout-secs", "1000") as running,
        grpc.aio.insecure_channel(running.target) as channel,
    ):
        await running.logs("AVAILABLE")
        watch = HealthStub(channel).Watch(HealthCheckRequest())
        call = ExplanationServiceStub(channel).Explain(pb.ExplainRequest(spec=SPEC))
        await running.computes()
        statuses = [(await watch.read()).status]
        running.process.send_signal(signal.SIGTERM)
        while statuses[-1] != HealthCheckResponse.NOT_SERVING:
            statuses.append((await watch.read()).status)
        running.process.send_signal(signal.SIGTERM)
        status = await running.process.wait()
        code = await call.code()

    assert status == -signal.SIGTERM
    assert code is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
async def test_a_second_signal_does_not_need_the_event_loop(tmp_path: Path, second: signal.Signals) -> None:
    """It may wait for a batch that hangs."""
    command = (sys.executable, "-m", "fakes.hanging_server", "--model-repository", str(tmp_path))
    process = await asyncio.create_subprocess_exec(*command, cwd=TESTS, stdin=PIPE, stdout=PIPE)
    assert process.stdout is not None
    assert process.stdin is not None
    assert await process.stdout.readexactly(1) == b"."
    process.send_signal(signal.SIGTERM)
    assert await process.stdout.readexactly(1) == b"."
    process.send_signal(second)
    process.stdin.close()  # else one that hears nothing would hang for ever

    assert await process.wait() == -second


async def test_a_lane_that_hangs_does_not_keep_the_server_from_hearing_a_second_signal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A repository on a file system that is away, for example."""
    released, loop = threading.Event(), asyncio.get_running_loop()
    async with served(tmp_path, {}) as running:
        lane = running.server._repository
        close = lane.close

        def closing() -> None:
            loop.call_soon_threadsafe(released.set)  # as a signal comes: once the event loop is free
            close()

        monkeypatch.setattr(lane, "close", closing)
        hanging = lane.submit(released.wait, 5)
    assert hanging.result(), "nothing was heard until it gave up"
