"""What the network sees of a reload: models, health, metrics and maps, while it goes on and when it fails."""

from pathlib import Path
from typing import Any

import pytest
from grpc_health.v1 import health_pb2

from fakes.models import Linear, picture, weights
from fakes.serving import Offer, Served, served
from vitrail.errors import Internal, InvalidArgument
from vitrail.v1 import explanation_pb2 as pb
from vitrail.v1 import model_pb2
from vitrail_server.rpc.health import MODEL_PREFIX

from .messages import spec

SERVING = health_pb2.HealthCheckResponse.SERVING
IMAGE = picture(0, (4, 4, 1))
State = model_pb2.ModelVersion.State


def offer() -> Offer:
    return Offer(model=Linear(weights(0, 1, (4, 4, 1))))


async def explain(running: Served) -> pb.ExplainResponse:
    return await running.explanations.Explain(pb.ExplainRequest(spec=spec("m", IMAGE)))


async def health(running: Served, name: str) -> int:
    answer = await running.health.Check(health_pb2.HealthCheckRequest(service=name))
    return int(answer.status)


async def version(running: Served) -> model_pb2.ModelVersion:
    answer = await running.models.GetModel(model_pb2.GetModelRequest(name="m"))
    (found,) = answer.model.versions
    return found


async def completed(running: Served) -> float:
    scrape = await running.scrape()
    labels = {"model": "m", "version": "1", "method": "occlusion", "outcome": "complete"}
    return scrape.value("vitrail_explanations_total", **labels)


def fail() -> None:
    raise InvalidArgument("wrong dims")


async def test_a_reload_of_the_same_version_keeps_its_series_and_its_health(tmp_path: Path) -> None:
    async with served(tmp_path, {"m": offer()}) as running:
        first = await explain(running)
        before = running.offers["m"].servables[1]
        states: list[tuple[int, int]] = []

        async def look() -> None:
            states.append((await health(running, ""), await health(running, MODEL_PREFIX + "m")))

        await look()
        await running.server.manager.load("m", force=True)
        await look()
        second = await explain(running)
        assert running.offers["m"].servables[1] is not before
        assert before.closed == 1
        assert first.values == second.values
        assert states == [(SERVING, SERVING)] * 2
        assert (await version(running)).state == State.STATE_AVAILABLE
        scrape = await running.at_rest(2)
        assert await completed(running) == 2
        of = {"model": "m", "version": "1"}
        assert scrape.value("vitrail_model_state", state="AVAILABLE", **of) == 1
        assert scrape.total("vitrail_model_state", **of) == 1
        assert scrape.value("vitrail_model_reloads_total", model="m", outcome="ok") == 1


async def test_a_failed_reload_shows_its_reason_and_takes_nothing_away(tmp_path: Path) -> None:
    async with served(tmp_path, {"m": offer()}) as running:
        await explain(running)
        running.offers["m"].on_load = fail
        with pytest.raises(Internal):
            await running.server.manager.load("m", force=True)
        found = await version(running)
        assert (found.state, found.reason) == (State.STATE_AVAILABLE, "wrong dims")
        assert found.inputs
        assert await health(running, "") == SERVING
        assert await health(running, MODEL_PREFIX + "m") == SERVING
        await explain(running)
        scrape = await running.at_rest(2)
        assert await completed(running) == 2
        of = {"model": "m", "version": "1"}
        assert scrape.value("vitrail_model_state", state="AVAILABLE", **of) == 1
        assert scrape.value("vitrail_model_reloads_total", model="m", outcome="failed") == 1
        assert scrape.value("vitrail_model_load_duration_seconds_count", model="m", outcome="failed") == 1

        running.offers["m"].on_load = lambda: None
        await running.server.manager.load("m", force=True)
        assert (await version(running)).reason == ""


async def test_a_configuration_that_cannot_be_served_shows_its_reason_beside_what_serves(
    tmp_path: Path,
) -> None:
    async with served(tmp_path, {"m": offer()}) as running:
        (tmp_path / "repository" / "m" / "config.pbtxt").write_text("max_batch_size: -1")
        with pytest.raises(Internal):
            await running.server.manager.load("m")
        answer = await running.models.GetModel(model_pb2.GetModelRequest(name="m"))
        assert answer.model.reason == (
            "m/config.pbtxt: 'max_batch_size' must be non-negative value for m, not -1"
        )
        assert [each.state for each in answer.model.versions] == [State.STATE_AVAILABLE]
        assert await health(running, MODEL_PREFIX + "m") == SERVING
        await explain(running)
        scrape = await running.at_rest(1)
        assert scrape.total("vitrail_model_refused") == 0


async def test_a_polling_server_takes_up_what_changes(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"model_control_mode": "poll", "load_model": (), "repository_poll_secs": 0.02}
    async with served(tmp_path, {"m": offer(), "n": offer()}, **settings) as running:
        directory = tmp_path / "repository"
        reloads = running.metrics.reload_finished
        ended: list[bool] = []

        def reload_finished(name: str, *, ok: bool) -> None:
            reloads(name, ok=ok)
            ended.append(ok)
            running.metrics._changed.set()

        running.metrics.reload_finished = reload_finished  # type: ignore[method-assign]
        saved_model = directory / "m" / "1" / "model.savedmodel" / "saved_model.pb"
        saved_model.write_text("new")
        await running.metrics.until(lambda: ended == [True])
        await explain(running)
        running.offers["m"].on_load = fail
        saved_model.write_text("newer")
        await running.metrics.until(lambda: ended == [True, False])
        assert (await version(running)).reason == "wrong dims"
        await explain(running)
