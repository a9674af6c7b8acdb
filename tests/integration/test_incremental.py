"""Incremental occlusion from client to client: a real server, a real SavedModel, and the same in full."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

import saved_models
import vitrail
import vitrail.aio
from fakes.serving import settings_of
from vitrail_server.server import Server

PATCH = vitrail.Occlusion(patch=6, stride=5)
LOCAL = "parameters {{ key: 'vitrail.incremental' value {{ string_value: '{}' }} }}"


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models of one SavedModel, one of them always in full, and one that never gains."""
    directory = tmp_path_factory.mktemp("repository")
    for name, choice in (("auto", "AUTO"), ("off", "OFF")):
        (directory / name).mkdir()
        (directory / name / "config.pbtxt").write_text(LOCAL.format(choice))
    saved_models.local(directory / "auto" / "1" / "model.savedmodel")
    saved_models.local(directory / "off" / "1" / "model.savedmodel")
    saved_models.local(directory / "spoiled" / "1" / "model.savedmodel", whole_from_the_start=True)
    return directory


@asynccontextmanager
async def served(repository: Path) -> AsyncIterator[tuple[Server, vitrail.aio.Client]]:
    async with Server(settings_of(repository)) as server:
        assert await server.load()
        async with vitrail.aio.Client(f"127.0.0.1:{server.grpc_port}") as client:
            yield server, client


def pictures(seed: int = 0) -> Any:
    return np.random.default_rng(seed).random((64, 64, 3)).astype(np.float32) * 255


async def settled(client: vitrail.aio.Client, model: str, method: vitrail.Occlusion = PATCH) -> Any:
    """Explain until it is computed incrementally: the first time it is not, while a plan is being made."""
    first = await client.explain(pictures(), model=model, method=method)
    assert execution(first) == "FULL"
    while execution(found := await client.explain(pictures(), model=model, method=method)) == "FULL":
        pass
    return found


def execution(explanation: Any) -> str:
    plan = explanation.plan
    return str(plan.Execution.Name(plan.execution)).removeprefix("EXECUTION_")


def evaluations(explanation: Any) -> Any:
    return explanation.summary.evaluations


def close(one: Any, other: Any) -> bool:
    """Return whether two maps agree to 1e-5 of the largest output, which is what their scores are made of."""
    largest = max(target.output for target in other.plan.targets)
    return bool(np.abs(one.values - other.values).max() <= 1e-5 * largest)


def totals(server: Server, name: str) -> dict[str, float]:
    """Return a metric's values by model and execution."""
    with urlopen(f"http://127.0.0.1:{server.metrics_port}/metrics") as answer:
        text = answer.read().decode()
    return {
        f"{sample.labels.get('model', '')} {sample.labels.get('execution', '')}".strip(): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name
    }


async def test_incremental_maps_are_the_full_ones(repository: Path) -> None:
    """Fills, orders and repetitions; what is said of them; and nothing is kept when they are over."""
    async with served(repository) as (server, client):
        loaded = totals(server, "vitrail_model_memory_bytes")
        await settled(client, "auto")
        planned = totals(server, "vitrail_model_memory_bytes")
        assert planned["auto"] > loaded["auto"]
        assert planned["off"] == loaded["off"]
        fills: list[Any] = [
            0.5,
            (10.0, 20.0, 30.0),
            vitrail.Fill.IMAGE_MEAN,
            vitrail.Fill.blur(2),
            pictures(9),
        ]
        for fill in fills:
            method = vitrail.Occlusion(patch=6, stride=5, fill=fill)
            found = await client.explain(pictures(1), model="auto", method=method, targets="all")
            full = await client.explain(pictures(1), model="off", method=method, targets="all")
            assert (execution(found), execution(full)) == ("INCREMENTAL", "FULL")
            assert np.ptp(full.values) > 1e-4
            assert close(found, full)
            again = await client.explain(pictures(1), model="auto", method=method, targets="all")
            assert again.values.tobytes() == found.values.tobytes()
            assert evaluations(found) == evaluations(full)
        progressive = vitrail.Occlusion(patch=6, stride=5, order="PROGRESSIVE")
        one = await client.explain(pictures(2), model="auto", method=progressive)
        other = await client.explain(pictures(2), model="off", method=PATCH)
        assert execution(one) == "INCREMENTAL"
        assert close(one, other)
        together = [client.explain(pictures(seed), model="auto", method=PATCH) for seed in range(3)]
        for seed, each in enumerate(together):
            assert close(await each, await client.explain(pictures(seed), model="off", method=PATCH))
        plans = totals(server, "vitrail_explanation_plans_total")
        assert plans["auto incremental"] >= 5 * 2 + 1 + 3
        assert plans["off full"] >= 5 + 1 + 3
        assert "off incremental" not in plans
        assert totals(server, "vitrail_incremental_cache_bytes") == {"": 0.0}
        await check_capabilities(client)
        # A plan for other windows is being made when the server is told to stop.
        await client.explain(pictures(), model="auto", method=vitrail.Occlusion(patch=7))


async def check_capabilities(client: vitrail.aio.Client) -> None:
    """Models say whether it applies to them."""
    found = {model.name: model.versions[0].capabilities for model in await client.models()}

    assert found["auto"].incremental
    assert not found["auto"].incremental_reason
    assert not found["off"].incremental
    assert "vitrail.incremental is OFF" in found["off"].incremental_reason
    assert not found["spoiled"].incremental
    assert "1.00 times fewer multiplications" in found["spoiled"].incremental_reason
    assert "(Transpose)" in found["spoiled"].incremental_reason
