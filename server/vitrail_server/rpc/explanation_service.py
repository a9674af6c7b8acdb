"""vitrail.v1.ExplanationService: the three ways to ask for a map.

Handlers write their messages with `context.write`, in their own task, one at a time: a stalled reader
stops its own rpc only, and a call that ends, however it ends, closes its sessions.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

from vitrail.v1 import explanation_pb2 as pb
from vitrail.v1.explanation_pb2_grpc import ExplanationServiceServicer
from vitrail_server.rpc.codec import MAX_MESSAGE_BYTES
from vitrail_server.rpc.context import Context, caller_of, write
from vitrail_server.rpc.conversation import Conversation, StreamLimits
from vitrail_server.rpc.refusals import told
from vitrail_server.rpc.session import Engine, Message, Session, WholeMap


class ExplanationService(ExplanationServiceServicer):
    """Answers vitrail.v1.ExplanationService.

    `write_timeout` is how many seconds one message may wait for a reader that has stopped.
    """

    def __init__(self, engine: Engine, stream_limits: StreamLimits, write_timeout: float) -> None:
        self._engine = engine
        self._stream_limits = stream_limits
        self._write_timeout = write_timeout

    async def Explain(  # noqa: N802 - the rpc's name
        self, request: pb.ExplainRequest, context: Context
    ) -> pb.ExplainResponse:
        """Return one whole map of at most 1 MiB."""
        whole = WholeMap()

        async def take(message: Message) -> None:
            whole.take(message)

        await self._explain(request.spec, context, take, max_map_bytes=MAX_MESSAGE_BYTES)
        return whole.response()

    async def ExplainTiles(  # type: ignore[override]  # noqa: N802 - the rpc's name
        self, request: pb.ExplainTilesRequest, context: Context
    ) -> None:
        """Stream one map: a plan, tiles, a summary."""

        async def send(message: Message) -> None:
            await write(context, _response(message), self._write_timeout)

        await self._explain(request.spec, context, send, max_map_bytes=None)

    async def ExplainStream(  # type: ignore[override]  # noqa: N802 - the rpc's name
        self, request_iterator: AsyncIterator[pb.ExplainStreamRequest], context: Context
    ) -> None:
        """Answer many explanations over one connection."""
        conversation = Conversation(self._engine, self._stream_limits, caller_of(context))

        async def send(response: pb.ExplainStreamResponse) -> None:
            await write(context, response, self._write_timeout)

        try:
            await conversation.hold(request_iterator, send)
        except BaseException as error:
            conversation.close(told(error, context))
            raise

    async def _explain(
        self,
        spec: pb.ExplanationSpec,
        context: Context,
        take: Callable[[Message], Awaitable[None]],
        max_map_bytes: int | None,
    ) -> None:
        """Answer one explanation, handing each message to `take` as soon as it is due."""
        changed = asyncio.Event()
        session = Session(self._engine, caller_of(context), changed.set)
        try:
            await session.start(spec, max_map_bytes)
            while not session.ended:
                await changed.wait()
                changed.clear()
                for message in session.messages():
                    await take(message)
        except BaseException as error:
            session.close(told(error, context))
            raise
        session.close()


def _response(message: Message) -> pb.ExplainTilesResponse:
    match message:
        case pb.Plan():
            return pb.ExplainTilesResponse(plan=message)
        case pb.Tile():
            return pb.ExplainTilesResponse(tile=message)
        case pb.Summary():
            return pb.ExplainTilesResponse(summary=message)
