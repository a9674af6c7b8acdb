"""How many requests of one stream are read ahead, without a server."""

import asyncio
from collections.abc import AsyncIterator

from vitrail_server.kserve.v2 import grpc_service_pb2 as pb
from vitrail_server.rpc.inference.stream import OPEN, InferenceStream, Send
from vitrail_server.rpc.inference.turns import Turn


async def test_a_stream_reads_no_further_than_the_requests_that_it_answers() -> None:
    read, begun, goes_on = 0, asyncio.Semaphore(0), asyncio.Semaphore(0)

    async def requests() -> AsyncIterator[pb.ModelInferRequest]:
        nonlocal read
        for number in range(OPEN + 10):
            read += 1
            yield pb.ModelInferRequest(id=str(number))

    async def answer(request: pb.ModelInferRequest, _: Turn, send: Send) -> None:
        begun.release()
        await goes_on.acquire()
        await send(pb.ModelInferResponse(id=request.id))

    answered: list[str] = []

    async def write(response: pb.ModelStreamInferResponse) -> None:
        answered.append(response.infer_response.id)

    holding = asyncio.create_task(InferenceStream(answer, grpc_errors=False).hold(requests(), write))
    for _ in range(OPEN):
        await begun.acquire()
    for _ in range(100):
        await asyncio.sleep(0)  # nothing else is due
    assert (read, begun.locked()) == (OPEN + 1, True), "one more is read, and waits for its place"
    goes_on.release()
    await begun.acquire()
    for _ in range(OPEN + 10):
        goes_on.release()
    await holding
    assert sorted(map(int, answered)) == list(range(OPEN + 10))
