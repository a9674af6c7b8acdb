"""One ModelStreamInfer: inferences and explanations over one connection.

Every request is a task of its own; the rpc's task writes what they answer, one message at a time. Answers to
inferences leave in the order of their requests, as with Triton; the tiles of explanations come between
them as they are computed. A request that fails is answered in band, and the others go on, unless the client
asked for gRPC's errors (metadata `triton_grpc_error`): then the first one ends the stream.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

from vitrail.errors import VitrailError
from vitrail_server.kserve.v2 import grpc_service_pb2 as pb
from vitrail_server.rpc.inference.errors import identified
from vitrail_server.rpc.inference.turns import Turn, Turns
from vitrail_server.rpc.refusals import logged

GRPC_ERRORS = "triton_grpc_error"

OPEN = 64
"""Requests of one stream that are answered at a time; the next one is read when one of them has ended."""


Send = Callable[[pb.ModelInferResponse], Awaitable[None]]
Answer = Callable[[pb.ModelInferRequest, Turn, Send], Awaitable[None]]
"""Answers one request by any number of responses. Where their order counts it waits for its turn, also before
it fails; else it lets the next one come at once."""


class InferenceStream:
    """One ModelStreamInfer. Every method is called on the event loop."""

    def __init__(self, answer: Answer, *, grpc_errors: bool) -> None:
        self._answer = answer
        self._grpc_errors = grpc_errors
        self._ready: asyncio.Queue[pb.ModelStreamInferResponse | None] = asyncio.Queue(1)
        self._places = asyncio.Semaphore(OPEN)
        self._tasks: set[asyncio.Task[None]] = set()
        self._turns = Turns()
        self._broken: VitrailError | None = None

    async def hold(
        self,
        requests: AsyncIterator[pb.ModelInferRequest],
        send: Callable[[pb.ModelStreamInferResponse], Awaitable[None]],
    ) -> None:
        """Answer until the client has half-closed and every request is answered.

        Raises:
            VitrailError: the stream as a whole cannot go on.

        """
        listener = asyncio.create_task(self._listen(requests))
        try:
            while (response := await self._ready.get()) is not None:
                await send(response)
            if self._broken is not None:
                raise self._broken
        finally:
            for task in (listener, *self._tasks):
                task.cancel()
            await asyncio.gather(listener, *self._tasks, return_exceptions=True)

    async def _listen(self, requests: AsyncIterator[pb.ModelInferRequest]) -> None:
        try:
            async for request in requests:
                await self._places.acquire()
                task = asyncio.create_task(self._one(request, self._turns.take()))
                self._tasks.add(task)
                task.add_done_callback(self._ended)
            await asyncio.gather(*self._tasks)
        except Exception as error:  # noqa: BLE001 - whatever it is, the client is told
            self._break(logged(error, "a stream of inferences"))
        await self._ready.put(None)

    async def _one(self, request: pb.ModelInferRequest, turn: Turn) -> None:
        async def send(response: pb.ModelInferResponse) -> None:
            await self._ready.put(pb.ModelStreamInferResponse(infer_response=response))

        try:
            await self._answer(request, turn, send)
        except Exception as error:  # noqa: BLE001 - whatever it is, it ends this request only
            failure = identified(logged(error, "an inference of a stream"), request.id)
            if self._grpc_errors:
                self._break(failure)
                await self._ready.put(None)
            else:
                await self._ready.put(
                    pb.ModelStreamInferResponse(
                        error_message=failure.message, infer_response=pb.ModelInferResponse(id=request.id)
                    )
                )
        finally:
            turn.done()

    def _break(self, failure: VitrailError) -> None:
        if self._broken is None:
            self._broken = failure

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._places.release()
