"""The asyncio client; what both clients share is tested in depth with the blocking one."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import numpy as np
import pytest

from vitrail import Explanation, aio
from vitrail.conversation import PIECE_BYTES
from vitrail.errors import (
    Cancelled,
    Internal,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
    VitrailError,
)
from vitrail.v1 import explanation_pb2 as pb
from vitrail.v1.model_pb2 import Model

from .fake_server import PATIENCE, UNTIL_CANCELLED, FakeServer
from .messages import Event, complete, occlusion_plan, tile, whole_map
from .stream_handlers import in_order, interleaved
from .test_client import server_state, value_of, whole

IMAGE = b"a photo"


@pytest.fixture
async def client(server: FakeServer) -> AsyncIterator[aio.Client]:
    async with aio.Client(server.target, token="secret") as connected:  # noqa: S106
        yield connected


async def test_explain_returns_the_finished_map(server: FakeServer, client: aio.Client) -> None:
    server.scripts.append(whole_map((1, 2, 3)))

    explanation = await client.explain(IMAGE, model="net", timeout=20)

    np.testing.assert_array_equal(explanation.values, [[[0, 1, 2], [3, 4, 5]]])
    assert explanation.complete
    assert server.metadata[0]["authorization"] == "Bearer secret"
    assert 0 < server.requests[0].spec.time_budget.ToMilliseconds() <= 20_000


async def test_explain_tiles_yields_one_growing_object(server: FakeServer, client: aio.Client) -> None:
    server.scripts.append(whole_map((1, 2, 3)))

    seen = [
        (id(growing), int(np.isfinite(growing.values).sum()), growing.complete)
        async for growing in client.explain_tiles(IMAGE, model="net")
    ]

    first = seen[0][0]
    assert seen == [(first, 0, False), (first, 3, False), (first, 6, False), (first, 6, True)]


async def test_an_error_after_tiles_keeps_its_class(server: FakeServer, client: aio.Client) -> None:
    server.scripts.append([occlusion_plan(), tile(0, 0, [[1]]), ResourceExhausted("too slow a reader")])
    growing = client.explain_tiles(IMAGE, model="net")
    explanation = await anext(growing)

    with pytest.raises(ResourceExhausted, match="too slow a reader"):
        async for _ in growing:
            pass

    assert explanation.values[0, 0, 0] == 1


async def test_unavailable_is_tried_again_before_the_first_message_only(
    server: FakeServer, client: aio.Client
) -> None:
    loading = Unavailable("loading", retry_delay=0.01)
    server.scripts.extend([[loading], whole_map(), [occlusion_plan(), loading]])

    assert (await client.explain(IMAGE, model="net", timeout=PATIENCE)).complete
    with pytest.raises(Unavailable):
        await client.explain(IMAGE, model="net", timeout=PATIENCE)
    assert len(server.requests) == 3


async def test_a_server_without_a_summary_is_internal(server: FakeServer, client: aio.Client) -> None:
    server.scripts.append([occlusion_plan()])

    with pytest.raises(Internal, match="without a summary"):
        await client.explain(IMAGE, model="net")


async def test_wrong_options_are_refused_at_once(client: aio.Client) -> None:
    with pytest.raises(InvalidArgument):
        client.explain_tiles(IMAGE, model="net", timeout=-1)


async def cancelled(server: FakeServer) -> bool:
    return await asyncio.to_thread(server.cancelled.wait, PATIENCE)


async def test_leaving_early_cancels_the_call(server: FakeServer, client: aio.Client) -> None:
    server.scripts.append([occlusion_plan(), UNTIL_CANCELLED])

    async for growing in client.explain_tiles(IMAGE, model="net"):
        assert growing.progress == 0
        break

    assert await cancelled(server)


async def test_closing_the_generator_cancels_the_call(server: FakeServer, client: aio.Client) -> None:
    server.scripts.append([occlusion_plan(), UNTIL_CANCELLED])
    growing = client.explain_tiles(IMAGE, model="net")
    await anext(growing)

    await growing.aclose()

    assert await cancelled(server)


async def test_cancelling_the_task_cancels_the_call_and_stays_a_cancellation(
    server: FakeServer, client: aio.Client
) -> None:
    server.scripts.append([occlusion_plan(), UNTIL_CANCELLED])
    begun = asyncio.Event()

    async def explain() -> None:
        async for _ in client.explain_tiles(IMAGE, model="net"):
            begun.set()

    task = asyncio.create_task(explain())
    await begun.wait()
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    assert await cancelled(server)


async def test_closing_the_client_raises_cancelled_in_its_calls(server: FakeServer) -> None:
    server.scripts.append([occlusion_plan(), UNTIL_CANCELLED])
    async with aio.Client(server.target) as client:
        growing = client.explain_tiles(IMAGE, model="net")
        await anext(growing)

    with pytest.raises(Cancelled):
        await anext(growing)


async def test_a_call_that_the_server_cancels_is_cancelled(server: FakeServer, client: aio.Client) -> None:
    server.scripts.append([occlusion_plan(), Cancelled("cancelled by the operator")])

    with pytest.raises(Cancelled, match="operator"):
        await client.explain(IMAGE, model="net")


async def test_models_and_health(server: FakeServer, client: aio.Client) -> None:
    server.models = [Model(name="a")]
    server.model_failures.append(Unavailable("starting", retry_delay=0.01))
    server.health.set("", server_state("SERVING"))

    assert await client.models(timeout=PATIENCE) == [Model(name="a")]
    assert await client.model("a") == Model(name="a")
    with pytest.raises(NotFound):
        await client.model("b")
    assert await client.ready()
    with pytest.raises(NotFound):
        await client.ready("models/b")


async def test_explain_many_keeps_interleaved_answers_apart_and_goes_on_after_a_failure(
    server: FakeServer, client: aio.Client
) -> None:
    def answer(image: bytes) -> list[Event | VitrailError]:
        if image == b"bad":
            return [occlusion_plan(), NotFound("unloaded meanwhile")]
        return [occlusion_plan((1, 1, 1)), tile(0, 0, [[image[0]]]), complete()]

    server.on_stream = interleaved(3, answer)
    images = {"x": b"\x07", "y": b"bad", "z": b"\x09"}

    results = {key: result async for key, result in client.explain_many(images, model="net")}

    assert isinstance(results["y"], NotFound)
    assert [value_of(results[key]) for key in ("x", "z")] == [7, 9]


async def test_explain_many_is_bounded_and_uploads_in_pieces(server: FakeServer, client: aio.Client) -> None:
    server.on_stream = in_order(whole)
    read = []

    def images() -> Iterator[bytes]:
        for number in range(4):
            read.append(number)
            yield bytes([number]) * (PIECE_BYTES + 1)

    results = client.explain_many(images(), model="net", in_flight=1)
    key, result = await anext(results)

    assert (key, read) == (0, [0, 1])
    assert isinstance(result, Explanation)
    assert [key async for key, _ in results] == [1, 2, 3]
    assert server.streams == 1


async def test_explain_many_reports_an_image_that_cannot_be_read(
    server: FakeServer, client: aio.Client
) -> None:
    server.on_stream = in_order(whole)

    results = {key: result async for key, result in client.explain_many(["no/such.jpg", b"1"], model="net")}

    assert isinstance(results[0], InvalidArgument)
    assert isinstance(results[1], Explanation)


async def test_explain_many_tries_a_stream_again_that_never_answered(
    server: FakeServer, client: aio.Client
) -> None:
    def refuse(
        requests: Iterator[pb.ExplainStreamRequest],
    ) -> Iterator[pb.ExplainStreamResponse | VitrailError]:
        next(requests)
        server.on_stream = in_order(whole)
        yield Unavailable("starting", retry_delay=0.01)

    server.on_stream = refuse

    assert [key async for key, _ in client.explain_many([b"1", b"2"], model="net")] == [0, 1]
    assert server.streams == 2


async def test_explain_many_raises_what_ends_the_stream(server: FakeServer, client: aio.Client) -> None:
    server.on_stream = lambda _: iter([NotFound("no such service")])

    with pytest.raises(NotFound):
        async for _ in client.explain_many([b"1"], model="net"):
            pass


async def test_leaving_explain_many_early_ends_the_stream(server: FakeServer, client: aio.Client) -> None:
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()

    def handle(
        requests: Iterator[pb.ExplainStreamRequest],
    ) -> Iterator[pb.ExplainStreamResponse | VitrailError]:
        try:
            yield from in_order(whole)(requests)
        finally:
            loop.call_soon_threadsafe(ended.set)

    server.on_stream = handle
    results = client.explain_many([b"1", b"2"], model="net")
    await anext(results)

    await results.aclose()

    await asyncio.wait_for(ended.wait(), PATIENCE)
