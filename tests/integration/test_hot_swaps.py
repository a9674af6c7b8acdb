"""Real models are replaced while they are asked: no call fails, no answer mixes two models, nothing stays.

A model's weights are a number times the same pattern, so every map and every prediction is that number times
the same values, and tells which content of which version it came from.
"""

import asyncio
import gc
import shutil
import weakref
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest
import tritonclient.grpc.aio as triton_aio
from numpy.typing import NDArray

import saved_models
from fakes.serving import ADDRESS, settings_of
from rpc.messages import occlusion, spec
from vitrail.errors import Internal
from vitrail.v1 import explanation_pb2 as pb
from vitrail.v1.explanation_pb2_grpc import ExplanationServiceStub
from vitrail_server.repository.state import IndexEntry
from vitrail_server.servable import Servable
from vitrail_server.server import Server

PATTERN = saved_models.numbers(4, 6, 3, 2, seed=8)
IMAGE = saved_models.numbers(4, 6, 3, seed=9)
SWAPS = 20
BROKEN = 7
"""The swap that fails."""
METHODS = ("gradient", "occlusion", "infer")


def write(version: Path, factor: float) -> None:
    """Write a SavedModel at another place, and put it into the repository in one step."""
    made = version.parent.parent.parent / "made"
    saved_models.linear(made, PATTERN * factor, np.zeros(2, np.float32))
    version.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(version / "model.savedmodel", ignore_errors=True)
    made.rename(version / "model.savedmodel")


@asynccontextmanager
async def running(repository: Path) -> AsyncIterator[tuple[Server, grpc.aio.Channel]]:
    async with Server(settings_of(repository)) as server:
        await server.load()
        async with grpc.aio.insecure_channel(f"{ADDRESS}:{server.grpc_port}") as channel:
            yield server, channel


async def ask(
    method: str, channel: grpc.aio.Channel, triton: triton_aio.InferenceServerClient
) -> tuple[int, NDArray[np.float32]]:
    """Return the version that answered, and the values of the map or of the prediction."""
    if method == "infer":
        tensor = triton_aio.InferInput("image", [1, *IMAGE.shape], "FP32")
        tensor.set_data_from_numpy(IMAGE[np.newaxis])
        result = await triton.infer("m", [tensor])
        return int(result.get_response().model_version), result.as_numpy("y").ravel()
    how = {"gradient": pb.Gradient()} if method == "gradient" else {"occlusion": occlusion(2)}
    answer = await ExplanationServiceStub(channel).Explain(pb.ExplainRequest(spec=spec("m", IMAGE, **how)))
    return answer.plan.model_version, np.frombuffer(answer.values, "<f4")


async def test_a_flood_of_requests_goes_through_twenty_hot_swaps(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    model = repository / "m"
    write(model / "1", 1)
    contents: defaultdict[int, set[int]] = defaultdict(set, {1: {1}})
    answers: list[tuple[str, int, NDArray[np.float32]]] = []
    swapping = True

    async def flood(method: str) -> None:
        while swapping:
            answers.append((method, *await ask(method, channel, triton)))

    async with (
        running(repository) as (server, channel),
        triton_aio.InferenceServerClient(f"{ADDRESS}:{server.grpc_port}") as triton,
    ):
        patterns = {method: (await ask(method, channel, triton))[1] for method in METHODS}
        lives = [served_now(server, 1)]
        flooding = [asyncio.create_task(flood(method)) for method in METHODS]
        number = 1
        for swap in range(1, SWAPS + 1):
            number += swap % 2  # every other swap has a new version, the others new content of the same
            await asyncio.to_thread(write, model / str(number), swap + 1)
            if swap == BROKEN:
                (model / str(number) / "model.savedmodel" / "saved_model.pb").write_bytes(b"no model")
                with pytest.raises(Internal, match="load failed for model 'm': version"):
                    await server.manager.load("m")
                shutil.rmtree(model / str(number))
                number -= 1
                continue
            contents[number].add(swap + 1)
            await server.manager.load("m")
            lives.append(served_now(server, number))
        swapping = False
        await asyncio.gather(*flooding)
        await server.manager._models["m"].left()  # type: ignore[index]
        assert await server.manager.index(ready=True) == [IndexEntry("m", str(number), "READY", "")]
        gc.collect()
        assert [life() is None for life in lives] == [True] * (SWAPS - 1) + [False]

    for method in METHODS:
        seen = set()
        for version, values in ((each[1], each[2]) for each in answers if each[0] == method):
            pattern = patterns[method]
            factor = round(float(values @ pattern) / float(pattern @ pattern))
            expected = pattern * factor
            np.testing.assert_allclose(values, expected, rtol=0, atol=1e-5 * float(abs(expected).max()))
            assert factor in contents[version]
            seen.add(factor)
        assert len(seen) > SWAPS // 2  # the flood went on all the time
        assert BROKEN + 1 not in seen


def served_now(server: Server, number: int) -> "weakref.ref[Servable]":
    """Return what serves now, without holding it."""
    with server.manager.handle("m", number) as handle:
        return weakref.ref(handle.servable)


WARMUP = """
    model_warmup {{
      name: "photos" batch_size: 3 count: 2
      inputs {{ key: "image" value {{ data_type: TYPE_FP32 dims: [ 4, 6, 3 ] {} }} }}
    }}
"""


async def test_a_version_answers_its_warm_up_samples_before_it_is_available(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    write(repository / "m" / "1", 1)
    (repository / "m" / "warmup").mkdir()
    (repository / "m" / "warmup" / "photo").write_bytes(IMAGE.tobytes())
    (repository / "m" / "config.pbtxt").write_text(WARMUP.format('input_data_file: "photo"'))
    async with running(repository) as (server, _):
        assert await server.manager.index() == [IndexEntry("m", "1", "READY", "")]
        (repository / "m" / "warmup" / "photo").write_bytes(IMAGE.tobytes()[:100])
        with pytest.raises(Internal) as caught:
            await server.manager.load("m", force=True)
        reason = (
            "failed to run warmup sample 'photos': warmup setting expects 288 bytes, but the data provided "
            "from photo only has 100 bytes"
        )
        assert caught.value.message == (
            f"load failed for model 'm': version 1 is at UNAVAILABLE state: Failed precondition: {reason};"
        )
        assert await server.manager.index() == [IndexEntry("m", "1", "READY", reason)]
