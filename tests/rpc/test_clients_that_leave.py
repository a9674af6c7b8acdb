"""Clients that cancel, die, run out of time or stop reading: what they held is free again, others go on."""

import asyncio
import itertools
import logging
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from fakes.models import Linear, picture, weights
from fakes.serving import Gate, Offer, Scrape, Served, served
from fakes.wide import Plain
from vitrail.v1 import explanation_pb2 as pb
from vitrail.v1.explanation_pb2_grpc import ExplanationServiceStub

from .messages import MIB, event_of, indices, occlusion, piece, refused, spec, start, whole

SHAPE = (6, 8, 3)
IMAGE = picture(0, SHAPE)
SPEC = spec("m", IMAGE, occlusion=occlusion(1))
"""48 windows and the whole image: 13 batches of 4."""

TESTS = Path(__file__).resolve().parents[1]


@asynccontextmanager
async def held_back(directory: Path, **settings: Any) -> AsyncIterator[tuple[Served, Gate]]:
    """Run a server with models whose batches wait for the test, and one too large to be read at once."""
    gate = Gate(is_open=False)
    offers = {
        "m": Offer(model=Linear(weights(0, 2, SHAPE)), gate=gate),
        "long": Offer(model=Plain((64, 64, 1), 1), gate=gate),
        "large": Offer(model=Plain((256, 256, 3), 64)),
    }
    async with served(directory, offers, **settings) as running:
        yield running, gate


async def left(running: Served, gate: Gate, ended: int) -> Scrape:
    """Return the metrics once everybody has left, and check that nobody left anything behind."""
    scrape = await running.at_rest(ended)
    gate.open()
    for name in running.offers:
        await running.server.manager.unload(name)  # returns once the last handle is given back
    assert all(offer.servables[1].closed == 1 for offer in running.offers.values())
    evaluations = sum(event.announced for event in running.metrics.ended)
    assert scrape.total("vitrail_explanation_evaluations_total") == evaluations
    return scrape


def upload_given_up(running: Served) -> bool:
    """Say whether an upload ended; that its client has gone may be seen as the end of the pieces first."""
    outcomes = {event.outcome for event in running.metrics.ended if not event.model}
    return len(outcomes) == 1 and outcomes <= {"cancelled", "invalid_argument"}


def no_errors(caplog: pytest.LogCaptureFixture) -> bool:
    return not [record for record in caplog.records if record.levelno >= logging.ERROR and record.exc_info]


@pytest.mark.parametrize("read", [0, 1, 2])
async def test_a_cancelled_stream_of_tiles(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, read: int
) -> None:
    """Cancelled before its plan, after it, and after a tile."""
    async with held_back(tmp_path) as (running, gate):
        call = running.explanations.ExplainTiles(pb.ExplainTilesRequest(spec=SPEC))
        await gate.reached(1)
        gate.let_through(read > 0)
        for _ in range(read):
            await call.read()
        call.cancel()
        scrape = await left(running, gate, 1)

    assert scrape.total("vitrail_explanations_total", outcome="cancelled", model="m") == 1
    assert scrape.total("vitrail_explanation_evaluations_total", result="done") == 4 * (read > 0)
    assert scrape.total("vitrail_explanation_evaluations_total", result="dropped") == 45 * (read > 0)
    assert ("ExplainTiles", "CANCELLED") in running.metrics.handled
    assert no_errors(caplog)


async def test_a_cancelled_unary_call(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with held_back(tmp_path) as (running, gate):
        call = running.explanations.Explain(pb.ExplainRequest(spec=SPEC))
        await gate.reached(1)
        call.cancel()
        scrape = await left(running, gate, 1)

    assert scrape.total("vitrail_explanations_total", outcome="cancelled") == 1
    assert no_errors(caplog)


async def test_a_cancelled_conversation(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One id is being computed, one waits, one is being uploaded."""
    async with held_back(tmp_path) as (running, gate):
        call = running.explanations.ExplainStream()
        await call.write(start("running", SPEC))
        await gate.reached(1)
        await call.write(start("waiting", spec("m", IMAGE)))
        upload = spec("m", b"")
        await call.write(start("upload", upload, 1000))
        await call.write(piece("upload", bytes(500)))
        gate.let_through()
        assert isinstance(event_of(await call.read()), pb.Plan)
        await running.metrics.until(lambda: running.metrics.received["ExplainStream"] == 4)
        call.cancel()
        scrape = await left(running, gate, 3)

    assert scrape.total("vitrail_explanations_total", outcome="cancelled", model="m") == 2
    assert upload_given_up(running)
    assert ("ExplainStream", "CANCELLED") in running.metrics.handled
    assert no_errors(caplog)


async def test_many_calls_cancelled_at_every_point(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with held_back(tmp_path, max_explanations=200) as (running, gate):
        gate.open()
        before = len(running.metrics.ended)
        for i in range(60):
            call = running.explanations.ExplainTiles(pb.ExplainTilesRequest(spec=SPEC))
            for _ in range(i % 6):
                await call.read()
            call.cancel()
        answer = await running.explanations.Explain(pb.ExplainRequest(spec=SPEC))
        await running.metrics.until(lambda: running.server._admission.in_flight == 0)
        await left(running, gate, before)

    assert answer.summary.measured_fraction == 1
    assert {event.outcome for event in running.metrics.ended} <= {"cancelled", "complete"}
    assert no_errors(caplog)


@asynccontextmanager
async def another_process(*command: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a module of the tests; killed at the end at the latest."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", *command, cwd=TESTS, stdin=pipe, stdout=pipe
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def one_by_one(gate: Gate) -> None:
    """Let batches through as they come, for as long as this runs."""
    for batches in itertools.count(1):
        gate.let_through()
        await gate.reached(batches + 1)


async def test_a_client_that_is_killed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with (
        held_back(tmp_path) as (running, gate),
        another_process("fakes.reading_client", running.target) as client,
    ):
        assert client.stdin is not None
        assert client.stdout is not None
        long = spec("long", picture(0, (64, 64, 1)), occlusion=occlusion(1))
        client.stdin.write(long.SerializeToString().hex().encode() + b"\n")
        stepping = asyncio.create_task(one_by_one(gate))  # a little of the 2049 batches
        assert await client.stdout.readline() == b"read\n"
        stepping.cancel()
        assert (await running.scrape()).value("vitrail_explanations_in_flight") == 2
        client.kill()
        scrape = await left(running, gate, 3)

    assert scrape.total("vitrail_explanations_total", outcome="cancelled", model="long") == 2
    assert upload_given_up(running)
    assert no_errors(caplog)


@pytest.mark.parametrize("seconds", [0.15, 0.1234])
async def test_a_deadline_that_passes_while_the_map_is_computed(tmp_path: Path, seconds: float) -> None:
    """gRPC rounds deadlines on their way, 0.1234 s among them: the client is always a little ahead."""
    async with held_back(tmp_path) as (running, gate):
        gate.let_through(2)
        tiles = running.explanations.ExplainTiles(pb.ExplainTilesRequest(spec=SPEC), timeout=seconds)
        stream = running.explanations.ExplainStream(timeout=seconds)
        await stream.write(start("a", SPEC))
        refusals = await asyncio.gather(refused(whole(tiles)), refused(_drained(stream)))
        scrape = await left(running, gate, 2)

    assert {each.code for each in refusals} == {grpc.StatusCode.DEADLINE_EXCEEDED}
    assert {event.outcome for event in running.metrics.ended} == {"deadline_exceeded"}
    assert set(running.metrics.handled) == {
        ("ExplainTiles", "DEADLINE_EXCEEDED"),
        ("ExplainStream", "DEADLINE_EXCEEDED"),
    }
    assert scrape.total("grpc_server_handled_total", grpc_code="DEADLINE_EXCEEDED") == 2


def larger_than_what_is_on_its_way() -> pb.ExplanationSpec:
    """Return a request for a map that a connection does not hold, so that it is written to a reader only."""
    assert 40 * MIB < 64 * 256 * 256 * 3 * 4
    return spec(
        "large",
        np.ones((256, 256, 3), np.float32),
        targets=pb.Targets(all=pb.AllTargets()),
        gradient=pb.Gradient(channel_reduction=pb.Gradient.CHANNEL_REDUCTION_NONE),
    )


async def test_a_reader_that_stops_is_cut_off_and_nobody_else_notices(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    large = larger_than_what_is_on_its_way()
    async with held_back(tmp_path, write_timeout_secs=0.2) as (running, gate):
        gate.open()
        async with grpc.aio.insecure_channel(running.target) as channel:
            tiles = ExplanationServiceStub(channel).ExplainTiles(pb.ExplainTilesRequest(spec=large))
            stream = ExplanationServiceStub(channel).ExplainStream()
            await stream.write(start("a", large))
            await stream.write(start("b", large))
            await tiles.wait_for_connection()
            # Others, on the same connection too, are answered while these two stand still.
            for stub in (ExplanationServiceStub(channel), running.explanations):
                answer = await stub.Explain(pb.ExplainRequest(spec=SPEC))
                assert answer.summary.measured_fraction == 1
            await running.at_rest(5)
            outcomes = sorted(event.outcome for event in running.metrics.ended)
            late = await refused(whole(tiles))
            await left(running, gate, 5)

    assert outcomes == ["cancelled", "cancelled", "cancelled", "complete", "complete"]
    assert late.code is grpc.StatusCode.CANCELLED
    assert late.message == "the reader took no message for 0.2 s; the explanation was dropped"
    assert no_errors(caplog)


async def test_readers_that_stop_and_then_leave(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The message that is on its way fails before the server hears that its reader has gone."""
    async with held_back(tmp_path) as (running, gate):
        gate.open()
        async with grpc.aio.insecure_channel(running.target) as channel:
            stub = ExplanationServiceStub(channel)
            tiles = stub.ExplainTiles(pb.ExplainTilesRequest(spec=larger_than_what_is_on_its_way()))
            stream = stub.ExplainStream()
            await stream.write(start("a", larger_than_what_is_on_its_way()))
            await tiles.wait_for_connection()
            for _ in range(2):
                await stub.Explain(pb.ExplainRequest(spec=SPEC))
            tiles.cancel()
            stream.cancel()
        await left(running, gate, 4)

    outcomes = sorted(event.outcome for event in running.metrics.ended)
    assert outcomes == ["cancelled", "cancelled", "complete", "complete"]
    assert no_errors(caplog)


async def test_a_reader_that_is_slow_gets_everything(tmp_path: Path) -> None:
    """What waits is merged, so that it gets fewer messages, and the same map."""
    many = spec("m", IMAGE, occlusion=occlusion(2, 1, order=pb.Occlusion.ORDER_PROGRESSIVE))
    async with held_back(tmp_path) as (running, gate):
        call = running.explanations.ExplainTiles(pb.ExplainTilesRequest(spec=many))
        gate.open()
        await running.metrics.until(lambda: bool(running.metrics.ended))
        answer = await whole(call)
        expected = await running.explanations.Explain(pb.ExplainRequest(spec=many))

    assert answer.values.tobytes() == expected.values


async def test_a_failure_that_nobody_reads_holds_nothing(tmp_path: Path) -> None:
    async with held_back(tmp_path) as (running, gate):
        gate.open()
        wrong = pb.ExplainTilesRequest(spec=spec("m", IMAGE, targets=indices(7)))
        call = running.explanations.ExplainTiles(wrong)
        await left(running, gate, 1)
        call.cancel()

    assert ("ExplainTiles", "INVALID_ARGUMENT") in running.metrics.handled


async def _drained(call: Any) -> None:
    while await call.read() is not grpc.aio.EOF:
        pass
