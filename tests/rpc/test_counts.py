"""The metrics after an hour of everything: they add up to what the clients sent and received."""

import collections
import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from google.rpc.status_pb2 import Status

from fakes.models import Linear, picture, weights
from fakes.serving import Offer, Served, served
from fakes.wide import Plain
from vitrail.v1 import explanation_pb2 as pb
from vitrail.v1 import model_pb2

from .messages import event_of, indices, occlusion, refusal_of, refused, send_bytes, spec, start

SHAPE = (6, 8, 3)
FILLED = np.zeros(SHAPE, np.float32)
"""Shows the fill everywhere: every window is skipped."""


def offers() -> dict[str, Offer]:
    return {
        "m": Offer(model=Linear(weights(0, 3, SHAPE)), versions=(1, 2), config="version_policy { all {} }"),
        "broken": Offer(model=Plain(SHAPE, 1), config="nonsense {"),
    }


Request = tuple[pb.ExplanationSpec, str, str, str, str]
"""A request, and the labels under which it must be counted: model, version, method and outcome."""


def mix() -> list[Request]:
    """Return requests with every outcome that needs no other callers."""
    image = picture(0, SHAPE)
    gradient = {"gradient": pb.Gradient()}
    return [
        (spec("m", image), "m", "2", "occlusion", "complete"),
        (spec("m", image, version=1, occlusion=occlusion(2, 1)), "m", "1", "occlusion", "complete"),
        (spec("m", FILLED), "m", "2", "occlusion", "complete"),
        (spec("m", image, **gradient), "m", "2", "gradient", "complete"),
        (spec("m", image, targets=indices(1), **gradient), "m", "2", "gradient", "complete"),
        (spec("m", image, targets=indices(9), **gradient), "m", "2", "gradient", "invalid_argument"),
        (spec("m", image, occlusion=occlusion(7)), "m", "2", "occlusion", "invalid_argument"),
        (pb.ExplanationSpec(model_name="m"), "m", "2", "", "invalid_argument"),
        (spec("n" * 99, image), "", "", "", "not_found"),
        (spec("m", image, version=3), "", "", "", "not_found"),
        (spec("broken", image), "", "", "", "unavailable"),
    ]


async def answered_whole(running: Served, request: pb.ExplanationSpec) -> AsyncIterator[Any]:
    answer = await running.explanations.Explain(pb.ExplainRequest(spec=request))
    yield answer.plan
    yield answer.summary


async def answered_in_tiles(running: Served, request: pb.ExplanationSpec) -> AsyncIterator[Any]:
    async for response in running.explanations.ExplainTiles(pb.ExplainTilesRequest(spec=request)):
        yield event_of(response)


async def answered_in_a_stream(running: Served, request: pb.ExplanationSpec) -> AsyncIterator[Any]:
    call = running.explanations.ExplainStream()
    await call.write(start("a", request))
    await call.done_writing()
    async for response in call:
        yield event_of(response)


class Tally:
    """What one client saw."""

    def __init__(self) -> None:
        self.explanations: collections.Counter[tuple[str, str, str, str]] = collections.Counter()
        self.evaluations: collections.Counter[str] = collections.Counter()
        self.announced = 0
        self.tiles = 0

    async def take(self, events: AsyncIterator[Any], labels: tuple[str, str, str, str]) -> None:
        self.explanations[labels] += 1
        outcome = "complete"
        try:
            async for event in events:
                match event:
                    case pb.Plan():
                        self.announced += event.evaluations
                    case pb.Tile():
                        self.tiles += 1
                    case pb.Summary():
                        for result in ("done", "skipped", "dropped"):
                            self.evaluations[result] += getattr(event.evaluations, result)
                    case Status():
                        outcome = refusal_of(event).code.name.lower()
        except grpc.aio.AioRpcError as error:
            outcome = error.code().name.lower()
        assert outcome == labels[-1]


async def test_explanations_evaluations_and_tiles_add_up_over_all_rpcs(tmp_path: Path) -> None:
    tally, unary = Tally(), Tally()
    async with served(tmp_path, offers()) as running:
        for request, *labels in mix():
            of = (labels[0], labels[1], labels[2], labels[3])
            await unary.take(answered_whole(running, request), of)
            await tally.take(answered_in_tiles(running, request), of)
            await tally.take(answered_in_a_stream(running, request), of)
        scrape = await running.at_rest(3 * len(mix()))

    expected = tally.explanations + unary.explanations
    for (model, version, method, outcome), count in expected.items():
        series = {"model": model, "version": version, "method": method, "outcome": outcome}
        assert scrape.value("vitrail_explanations_total", **series) == count, series
    assert scrape.total("vitrail_explanations_total") == expected.total()
    evaluations = tally.evaluations + unary.evaluations
    for result, count in evaluations.items():
        assert scrape.total("vitrail_explanation_evaluations_total", result=result) == count
    assert evaluations.total() == tally.announced + unary.announced
    # Tiles of a unary answer never left the server, so that only those of the streams are known here.
    assert scrape.total("vitrail_explanation_tiles_total") >= tally.tiles > 0
    assert scrape.total("vitrail_batch_rows_sum") == evaluations["done"]
    assert scrape.total("vitrail_explanation_duration_seconds_count") == expected.total()


async def test_rpcs_and_their_messages_add_up(tmp_path: Path) -> None:
    """Per rpc: begun and ended, by code, and the messages in both directions."""
    sent: collections.Counter[str] = collections.Counter()
    received: collections.Counter[str] = collections.Counter()
    codes: collections.Counter[tuple[str, str]] = collections.Counter()
    async with served(tmp_path, offers()) as running:
        for request, *_ in mix():
            call = running.explanations.ExplainTiles(pb.ExplainTilesRequest(spec=request))
            sent["ExplainTiles"] += 1
            try:
                async for _ in call:
                    received["ExplainTiles"] += 1
            except grpc.aio.AioRpcError:
                pass
            codes["ExplainTiles", (await call.code()).name] += 1
        stream = running.explanations.ExplainStream()
        for number, (request, *_) in zip(itertools.count(), mix(), strict=False):
            await stream.write(start(str(number), request))
            sent["ExplainStream"] += 1
        await stream.done_writing()
        async for _ in stream:
            received["ExplainStream"] += 1
        codes["ExplainStream", "OK"] += 1
        await running.models.ListModels(model_pb2.ListModelsRequest())
        await refused(running.models.GetModel(model_pb2.GetModelRequest(name="nothing")))
        sent.update(ListModels=1, GetModel=1)
        received.update(ListModels=1)
        codes["ListModels", "OK"] += 1
        codes["GetModel", "NOT_FOUND"] += 1
        await refused(send_bytes(running.channel, "/vitrail.v1.ModelService/Invented"))
        scrape = await running.at_rest(2 * len(mix()))

    for rpc in sent:
        assert scrape.total("grpc_server_msg_received_total", grpc_method=rpc) == sent[rpc]
        assert scrape.total("grpc_server_msg_sent_total", grpc_method=rpc) == received[rpc]
        begun = scrape.total("grpc_server_started_total", grpc_method=rpc)
        ended = sum(count for (name, _), count in codes.items() if name == rpc)
        assert begun == ended == scrape.total("grpc_server_handling_seconds_count", grpc_method=rpc)
    for (rpc, code), count in codes.items():
        assert scrape.total("grpc_server_handled_total", grpc_method=rpc, grpc_code=code) == count
    assert scrape.total("grpc_server_handled_total") == codes.total()


async def test_nothing_of_a_request_becomes_a_label(tmp_path: Path) -> None:
    """Whoever could make up labels could fill the memory of the server and of Prometheus."""
    name = "made-up"
    image = picture(0, SHAPE)
    async with served(tmp_path, offers()) as running:
        for what in (
            spec(name, image),
            spec("m", image, version_label=name),
            spec("m", image, output_name=name),
            spec("m", image, version=424242),
            spec("m", image, targets=pb.Targets(list=pb.TargetList(targets=[pb.Target(label=name)]))),
        ):
            call = running.explanations.Explain(
                pb.ExplainRequest(spec=what), metadata=(("x-request-id", name), ("user-agent", name))
            )
            await refused(call)
        await refused(send_bytes(running.channel, f"/{name}/{name}"))
        await refused(send_bytes(running.channel, f"/vitrail.v1.ModelService/{name}"))
        await refused(running.models.GetModel(model_pb2.GetModelRequest(name=name)))
        scrape = await running.at_rest(5)

    everything = {value for _, labels in scrape.samples for _, value in labels}
    assert not [value for value in everything if name in value or "424242" in value]
    assert scrape.values_of("model") == {"", "m", "broken"}
    assert scrape.values_of("version") <= {"", "1", "2", "0.1.0"}
