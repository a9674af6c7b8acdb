"""The standard health service: one answer for the server, its services and every model; none needs luck."""

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from fakes.models import Linear, picture, weights
from fakes.serving import ADDRESS, FakeLoader, Gate, Offer, Served, served, settings_of
from fakes.wide import Plain
from vitrail.v1 import explanation_pb2 as pb
from vitrail.v1.explanation_pb2_grpc import ExplanationServiceStub
from vitrail_server.server import LAST_WORDS, Server

from .conftest import fail_to_load
from .messages import refusal_of, refused, spec, start

SERVICES = ("", "vitrail.v1.ExplanationService", "vitrail.v1.ModelService")
UNKNOWN, SERVING, NOT_SERVING, SERVICE_UNKNOWN = (
    HealthCheckResponse.UNKNOWN,
    HealthCheckResponse.SERVING,
    HealthCheckResponse.NOT_SERVING,
    HealthCheckResponse.SERVICE_UNKNOWN,
)


async def check(running: Served, service: str) -> int:
    response = await running.health.Check(HealthCheckRequest(service=service))
    return int(response.status)


def watch(running: Served, service: str) -> Any:
    return running.health.Watch(HealthCheckRequest(service=service))


async def test_nothing_is_serving_until_the_models_are_loaded(tmp_path: Path) -> None:
    async with served(tmp_path, {"m": Offer(model=Plain((2, 2, 1), 1))}, load=False) as running:
        before = [await check(running, service) for service in SERVICES]
        await running.server.load()
        after = [await check(running, service) for service in SERVICES]

    assert set(before) == {NOT_SERVING}
    assert set(after) == {SERVING}


async def test_a_broken_model_is_not_serving_and_the_server_is(tmp_path: Path) -> None:
    offers = {
        "good": Offer(model=Plain((2, 2, 1), 1)),
        "unloadable": Offer(model=Plain((2, 2, 1), 1), on_load=fail_to_load),
        "misconfigured": Offer(model=Plain((2, 2, 1), 1), config="nonsense {"),
    }
    async with served(tmp_path, offers) as running:
        states = {name: await check(running, f"models/{name}") for name in offers}
        server = await check(running, "")

    assert states == {"good": SERVING, "unloadable": NOT_SERVING, "misconfigured": NOT_SERVING}
    assert server == SERVING


@pytest.mark.parametrize("service", ["models/none", "models/", "m", "vitrail.v1.Nothing", "x" * 10_000])
async def test_what_does_not_exist_is_not_found_and_its_watcher_is_told_so(
    tmp_path: Path, service: str
) -> None:
    async with served(tmp_path, {"m": Offer(model=Plain((2, 2, 1), 1))}) as running:
        refusal = await refused(running.health.Check(HealthCheckRequest(service=service)))
        call = watch(running, service)
        response = await call.read()
        call.cancel()
        scrape = await running.scrape()

    assert refusal.code is grpc.StatusCode.NOT_FOUND
    assert response.status == SERVICE_UNKNOWN
    assert scrape.total("grpc_server_handled_total", grpc_method="Check", grpc_code="NOT_FOUND") == 1


async def test_watchers_of_one_name_do_not_depend_on_each_other(tmp_path: Path) -> None:
    async with served(tmp_path, {"m": Offer(model=Plain((2, 2, 1), 1))}, load=False) as running:
        first, second = watch(running, ""), watch(running, "")
        assert (await first.read()).status == NOT_SERVING
        assert (await second.read()).status == NOT_SERVING
        first.cancel()
        await running.metrics.until(lambda: ("Watch", "CANCELLED") in running.metrics.handled)
        await running.server.load()
        assert (await second.read()).status == SERVING


async def test_a_watcher_sees_a_model_come_and_go(tmp_path: Path) -> None:
    async with served(tmp_path, {"m": Offer(model=Plain((2, 2, 1), 1))}, load=False) as running:
        call = watch(running, "models/m")
        seen = [(await call.read()).status]
        await running.server.load()
        while seen[-1] != SERVING:
            seen.append((await call.read()).status)
        await running.server.manager.unload("m")
        seen.append((await call.read()).status)

    assert seen[0] == SERVICE_UNKNOWN
    assert seen[-1] == NOT_SERVING
    assert set(seen[1:-2]) <= {NOT_SERVING}


async def test_shutting_down_is_told_to_watchers_and_does_not_wait_for_them(tmp_path: Path) -> None:
    """Load balancers watch for as long as a server lives: it must not wait for them to hang up."""
    gate = Gate(is_open=False)
    offer = Offer(model=Linear(weights(0, 1, (4, 4, 1))), gate=gate)
    offer.write(tmp_path / "m")
    settings = settings_of(tmp_path, exit_timeout_secs=1000.0, upload_timeout_secs=1.2 * LAST_WORDS)
    server = Server(settings, FakeLoader({"m": offer}))
    await server.__aenter__()
    await server.load()
    async with grpc.aio.insecure_channel(f"{ADDRESS}:{server.grpc_port}") as channel:
        watcher = HealthStub(channel).Watch(HealthCheckRequest())
        assert (await watcher.read()).status == SERVING
        idle = ExplanationServiceStub(channel).ExplainStream()
        request = pb.ExplainRequest(spec=spec("m", picture(0, (4, 4, 1))))
        explanation = asyncio.ensure_future(ExplanationServiceStub(channel).Explain(request))
        await gate.reached(1)
        stopping = asyncio.create_task(server.__aexit__(None, None, None))
        assert (await watcher.read()).status == NOT_SERVING
        assert await watcher.read() is grpc.aio.EOF
        await idle.write(start("late", request.spec))
        late = await idle.read()
        await idle.write(start("slow", spec("m", b""), 1000))
        slow = await idle.read()  # after a second and more, in which the explanation is waited for
        gate.open()
        answer = await explanation
        await stopping
        assert await idle.code() is not grpc.StatusCode.OK

    assert isinstance(late, pb.ExplainStreamResponse)
    assert isinstance(slow, pb.ExplainStreamResponse)
    assert refusal_of(slow.error).code is grpc.StatusCode.DEADLINE_EXCEEDED
    refusal = refusal_of(late.error)
    assert refusal.code is grpc.StatusCode.UNAVAILABLE
    assert refusal.message == "the server is shutting down; ask another one"
    assert refusal.retry_delay == 1.0
    assert answer.summary.measured_fraction == 1
