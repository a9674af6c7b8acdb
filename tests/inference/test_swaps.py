"""Inferences and explanations of v2 clients through hot swaps: no error, and one version in every answer."""

import asyncio
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio

from fakes.models import Linear
from fakes.serving import FakeServable, Offer, Served, served
from vitrail.errors import FailedPrecondition
from vitrail_server.kserve.v2 import grpc_service_pb2 as pb
from vitrail_server.repository.source import VersionSource

from .wire import call

SWAPS, BROKEN = 20, 8
SHAPE = (4, 4, 1)


@dataclass(kw_only=True)
class Changing(Offer):
    """A model that is another one each time it is loaded: its score is the generation times the sum."""

    generation: int = 0
    loaded: list[FakeServable] = field(default_factory=list)

    def load(self, source: VersionSource) -> FakeServable:
        self.generation += 1
        if self.generation == BROKEN:
            raise FailedPrecondition("this one is broken")
        self.model = Linear(np.full((1, *SHAPE), float(self.generation)))
        self.loaded.append(super().load(source))
        return self.loaded[-1]


async def swap(running: Served) -> bool:
    """Load the model again, and return whether that went well."""
    request = pb.RepositoryModelLoadRequest(model_name="m")
    request.parameters["vitrail_force"].bool_param = True
    try:
        await call(running, "RepositoryModelLoad", request, pb.RepositoryModelLoadResponse)
    except grpc.aio.AioRpcError as error:
        if "this one is broken" in (error.details() or ""):
            return False
        raise
    return True


async def test_a_flood_goes_through_hot_swaps(tmp_path: Path) -> None:
    offer = Changing(model=Linear(np.ones((1, *SHAPE))), batch_size=2)
    images = np.ones((5, *SHAPE), np.float32)
    swapping = True
    seen: set[float] = set()

    def given(array: Any) -> Any:
        return triton.InferInput("image", array.shape, "FP32").set_data_from_numpy(array)

    async def predict(client: Any) -> None:
        while swapping:
            scores = (await client.infer("m", [given(images)])).as_numpy("scores")
            (score,) = set(scores.ravel().tolist())  # all rows are of one generation
            assert score % images[0].size == 0
            seen.add(score)

    async def explain(client: Any) -> None:
        parameters = {"vitrail_method": "occlusion", "vitrail_patch": 1}
        while swapping:
            result = await client.infer("m", [given(images[:1])], parameters=parameters)
            (value,) = set(result.as_numpy("map").ravel().tolist())
            (target,) = json.loads(result.as_numpy("plan")[0])["targets"]
            assert target["score"] == value * images[0].size, (
                "the map is of the generation that the plan is of"
            )

    async with served(tmp_path, {"m": offer}) as running:
        async with triton_aio.InferenceServerClient(running.target) as client:
            flood = [asyncio.create_task(each(client)) for each in (predict, predict, explain, explain)]
            went_well = [await swap(running) for _ in range(SWAPS)]
            swapping = False
            await asyncio.gather(*flood)
        assert went_well.count(False) == 1
        assert len(seen) > 1
        assert [each.closed for each in offer.loaded] == [1] * (SWAPS - 1) + [0]
        scrape = await running.scrape()
        total = scrape.total("vitrail_inferences_total")
        assert total == scrape.total("vitrail_inferences_total", outcome="complete") > 0
