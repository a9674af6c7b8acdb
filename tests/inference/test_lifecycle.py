"""Models that come and go under inferences: Triton's lifecycle and server status suites over the wire.

What concerns the repository alone is in tests/repository.
"""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.utils import InferenceServerException

from fakes.serving import Gate, Served, served

from .models import simple
from .wire import infer, outputs
from .wire import simple as asked

Client = triton_aio.InferenceServerClient
ALL = "version_policy { all {} }"


def inputs(rows: int = 2) -> list[Any]:
    tensors = []
    for name in ("INPUT0", "INPUT1"):
        tensors.append(triton.InferInput(name, [rows, 16], "INT32"))
        tensors[-1].set_data_from_numpy(np.ones((rows, 16), np.int32))
    return tensors


async def refused(call: Any) -> InferenceServerException:
    with pytest.raises(InferenceServerException) as refusal:
        await call
    return refusal.value


async def counts(client: Any, name: str = "simple", version: str = "") -> dict[str, int]:
    """Return the requests that were answered, by version."""
    found = (await client.get_inference_statistics(name, version)).model_stats
    return {each.version: each.inference_stats.success.count for each in found}


async def received(running: Served, messages: int) -> None:
    await running.metrics.until(lambda: running.metrics.received["ModelInfer"] >= messages)
    await asyncio.sleep(0)  # the handler goes on to where it waits


async def test_what_runs_and_what_waits_ends_on_a_model_that_was_unloaded(tmp_path: Path) -> None:
    gate = Gate(is_open=False)
    async with served(tmp_path, {"simple": simple(gate)}) as running, Client(running.target) as client:
        (servable,) = running.offers["simple"].servables.values()
        runs = asyncio.create_task(infer(running, asked(id="runs")))
        await gate.reached(1)
        waits = asyncio.create_task(infer(running, asked(id="waits")))
        await received(running, 2)
        await client.unload_model("simple")
        assert not await client.is_model_ready("simple")
        (entry,) = (await client.get_model_repository_index()).models
        assert entry.state == "UNLOADING"
        late = await refused(client.infer("simple", inputs()))
        assert late.status() == "StatusCode.NOT_FOUND"
        assert late.message().endswith("Request for unknown model: 'simple' has no available versions")
        assert servable.closed == 0
        gate.open()
        for task in (runs, waits):
            assert (outputs(await task)["OUTPUT0"] == 4).all()
        await running.server.manager.unload("simple")
        assert servable.closed == 1
        (entry,) = (await client.get_model_repository_index()).models
        assert (entry.state, entry.reason) == ("UNAVAILABLE", "unloaded")


async def test_what_is_in_flight_when_the_server_stops_is_answered(tmp_path: Path) -> None:
    gate = Gate(is_open=False)
    async with served(tmp_path, {"simple": simple(gate)}) as running:
        runs = asyncio.create_task(infer(running, asked()))
        await gate.reached(1)
        waits = asyncio.create_task(infer(running, asked()))
        await received(running, 2)
        stopping = asyncio.create_task(running.server._drain())
        await asyncio.sleep(0)
        assert running.server._admission.draining
        gate.open()
        for task in (runs, waits):
            assert (outputs(await task)["OUTPUT0"] == 4).all()
        await stopping


async def test_statistics_are_those_of_what_is_loaded(tmp_path: Path) -> None:
    """Each version has its own, and one that is loaded again begins anew."""
    offers = {"simple": simple(versions=(1, 3), config=ALL), "other": simple()}
    async with served(tmp_path, offers) as running, Client(running.target) as client:
        for version in ("1", "3", "3"):
            await client.infer("simple", inputs(), model_version=version)
        assert await counts(client) == {"1": 1, "3": 2}
        assert await counts(client, version="3") == {"3": 2}
        assert len((await client.get_inference_statistics()).model_stats) == 3
        (tmp_path / "repository" / "simple" / "3" / "model.savedmodel" / "saved_model.pb").write_text("new")
        await client.load_model("simple")
        assert await counts(client) == {"1": 1, "3": 0}
        await client.unload_model("simple")
        missing = await refused(client.get_inference_statistics("simple"))
        assert missing.message() == "requested model 'simple' is not available"
        assert [each.name for each in (await client.get_inference_statistics()).model_stats] == ["other"]
        await client.load_model("simple")
        assert await counts(client) == {"1": 0, "3": 0}


@pytest.mark.parametrize("version", ["latest", "0", "-1", "1.0", "9" * 30])
async def test_a_version_that_is_no_number_is_refused_everywhere(tmp_path: Path, version: str) -> None:
    async with served(tmp_path, {"simple": simple()}) as running, Client(running.target) as client:
        for call in (
            client.is_model_ready("simple", version),
            client.get_model_metadata("simple", version),
            client.get_model_config("simple", version),
            client.get_inference_statistics("simple", version),
            client.infer("simple", inputs(), model_version=version),
        ):
            refusal = await refused(call)
            assert refusal.status() == "StatusCode.INVALID_ARGUMENT"
            assert (
                f"failed to get model version from specified version string '{version}'" in refusal.message()
            )


async def test_a_model_is_not_ready_before_it_is_warm(tmp_path: Path) -> None:
    """Nor is anything of it answered, while another model answers."""
    gate = Gate(is_open=False)
    warms = simple(on_load=gate.pass_through)
    offers = {"warms": warms, "other": simple()}
    async with served(tmp_path, offers, load_model=("other",)) as running, Client(running.target) as client:
        loading = asyncio.create_task(client.load_model("warms"))
        await gate.reached(1)
        assert not await client.is_model_ready("warms")
        assert (await refused(client.infer("warms", inputs()))).status() == "StatusCode.UNAVAILABLE"
        index = {each.name: each.state for each in (await client.get_model_repository_index()).models}
        assert index == {"warms": "LOADING", "other": "READY"}
        await client.infer("other", inputs())
        gate.open()
        await loading
        assert await client.is_model_ready("warms")
        await client.infer("warms", inputs())


async def test_many_loads_and_unloads_at_once_end_as_the_last_one_says(tmp_path: Path) -> None:
    async with served(tmp_path, {"simple": simple()}) as running, Client(running.target) as client:
        calls = [client.load_model("simple"), client.unload_model("simple")] * 20
        ends = await asyncio.gather(*calls, return_exceptions=True)
        for end in ends:
            if end is not None:
                assert isinstance(end, InferenceServerException)
                assert "current load operation is out-dated" in str(end)
        await client.load_model("simple")
        await client.infer("simple", inputs())
        await client.unload_model("simple")
        await running.server.manager.unload("simple")
        (entry,) = (await client.get_model_repository_index()).models
        assert entry.state == "UNAVAILABLE"
