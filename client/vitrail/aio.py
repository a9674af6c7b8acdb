# ruff: noqa: ASYNC109 - a timeout is sent to the server, which then returns what it has; asyncio.timeout cannot
"""The asyncio client: `vitrail.aio.Client`, the twin of `vitrail.Client`.

The same calls, without blocking the event loop; files and Pillow images are read in a thread. Errors
and results are those of the blocking client.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar, Unpack, overload

import grpc
import grpc.aio
from google.protobuf.wrappers_pb2 import Int32Value, StringValue

from vitrail import calls
from vitrail.conversation import Conversation, Result
from vitrail.errors import Cancelled, VitrailError
from vitrail.explanation import Explanation, ended, receive
from vitrail.request import ImageLike, Options, image_message, keyed, specification
from vitrail.sending import TilesRequest
from vitrail.status import from_rpc_error
from vitrail.v1 import explanation_pb2 as pb
from vitrail.v1.explanation_pb2_grpc import ExplanationServiceStub
from vitrail.v1.model_pb2 import GetModelRequest, ListModelsRequest, Model
from vitrail.v1.model_pb2_grpc import ModelServiceStub

if TYPE_CHECKING:
    from vitrail.v1.explanation_pb2_grpc import ExplanationServiceAsyncStub
    from vitrail.v1.model_pb2_grpc import ModelServiceAsyncStub

K = TypeVar("K")
Request = TypeVar("Request")
Response = TypeVar("Response")
Outbox = asyncio.Queue["Iterable[pb.ExplainStreamRequest] | None"]


class Client:
    """A connection to a server, used in one event loop; see `vitrail.Client` for the arguments."""

    def __init__(
        self, target: str, *, token: str | None = None, credentials: grpc.ChannelCredentials | None = None
    ) -> None:
        options = calls.channel_options()
        self._channel = (
            grpc.aio.insecure_channel(target, options)
            if credentials is None
            else grpc.aio.secure_channel(target, credentials, options)
        )
        self._metadata = calls.metadata(token)
        self._explanations: ExplanationServiceAsyncStub = ExplanationServiceStub(self._channel)
        self._explain_tiles = self._channel.unary_stream(
            calls.EXPLAIN_TILES, TilesRequest.serialized, pb.ExplainTilesResponse.FromString
        )
        self._models: ModelServiceAsyncStub = ModelServiceStub(self._channel)
        self._health = self._channel.unary_unary(
            calls.HEALTH_CHECK, StringValue.SerializeToString, Int32Value.FromString
        )

    async def explain(self, image: ImageLike, *, model: str, **options: Unpack[Options]) -> Explanation:
        """Explain the answer of `model` for one image and return the finished map.

        Arguments, result and errors are those of `vitrail.Client.explain`.
        """
        async with aclosing(self.explain_tiles(image, model=model, **options)) as growing:
            async for explanation in growing:
                last = explanation
        return last

    def explain_tiles(
        self, image: ImageLike, *, model: str, **options: Unpack[Options]
    ) -> AsyncGenerator[Explanation, None]:
        """Explain one image and yield the map whenever it has grown: the same object each time.

        Closing the generator (``aclose``, or leaving an ``async for`` for good) cancels the call and
        ends the server's work. The rest is as in `vitrail.Client.explain_tiles`.
        """
        return self._tiles(specification(model, options), image, options.get("timeout"))

    @overload
    def explain_many(  # type: ignore[overload-overlap]  # a mapping from paths is also an iterable of paths
        self, images: Mapping[K, ImageLike], *, model: str, in_flight: int = ..., **options: Unpack[Options]
    ) -> AsyncGenerator[tuple[K, Result], None]: ...
    @overload
    def explain_many(
        self, images: Iterable[ImageLike], *, model: str, in_flight: int = ..., **options: Unpack[Options]
    ) -> AsyncGenerator[tuple[int, Result], None]: ...
    def explain_many(
        self,
        images: Mapping[K, ImageLike] | Iterable[ImageLike],
        *,
        model: str,
        in_flight: int = 4,
        **options: Unpack[Options],
    ) -> AsyncGenerator[tuple[K | int, Result], None]:
        """Explain many images over one connection and yield (key, result) as each is settled.

        Arguments, results and errors are those of `vitrail.Client.explain_many`.
        """
        spec, timeout = specification(model, options), options.get("timeout")
        pairs = keyed(images)
        return self._many(Conversation(spec, timeout, in_flight), pairs, calls.Retry(timeout))

    async def models(self, *, timeout: float | None = None) -> list[Model]:
        """Return every model of the repository, without its labels.

        Raises:
            VitrailError: the call failed.

        """
        return list((await self._call(self._models.ListModels, ListModelsRequest(), timeout)).models)

    async def model(self, name: str, *, timeout: float | None = None) -> Model:
        """Return the model called `name`, with its labels.

        Raises:
            NotFound: the repository has no such model.
            VitrailError: the call failed.

        """
        return (await self._call(self._models.GetModel, GetModelRequest(name=name), timeout)).model

    async def ready(self, service: str = "", *, timeout: float | None = None) -> bool:
        """Return whether the server has loaded its models or, for "models/NAME", whether one is served.

        Raises:
            NotFound: the server knows no such name.
            VitrailError: the call failed; it is not tried again.

        """
        request = StringValue(value=service)
        try:
            with _cancelled_elsewhere():
                answer = await self._health(request, timeout=timeout, metadata=self._metadata)
        except grpc.RpcError as failure:
            raise from_rpc_error(failure) from failure
        return answer.value == calls.SERVING

    async def close(self) -> None:
        """End the connection; calls in progress are cancelled."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _tiles(
        self, spec: pb.ExplanationSpec, image: ImageLike, timeout: float | None
    ) -> AsyncGenerator[Explanation, None]:
        request = await asyncio.to_thread(TilesRequest, spec, image)
        retry = calls.Retry(timeout)
        while True:
            explanation, budget = None, retry.remaining
            request.set_budget(budget)
            call = self._explain_tiles(request, timeout=calls.deadline(budget), metadata=self._metadata)
            try:
                with _cancelled_elsewhere():
                    async for response in call:
                        explanation = receive(explanation, response, request.image)
                        yield explanation
                ended(explanation)
                return
            except grpc.RpcError as failure:
                pause = calls.pause_or_raise(failure, retry if explanation is None else None)
            finally:
                call.cancel()
            await asyncio.sleep(pause)

    async def _many(
        self, conversation: Conversation[K], images: Iterator[tuple[K, ImageLike]], retry: calls.Retry
    ) -> AsyncGenerator[tuple[K, Result], None]:
        outbox: Outbox = asyncio.Queue()
        for settled in await _fill(conversation, images, outbox):
            yield settled
        while not conversation.idle():
            call = self._explanations.ExplainStream(_requests(outbox), metadata=self._metadata)
            try:
                with _cancelled_elsewhere():
                    async for response in call:
                        result = conversation.receive(response)
                        if result is not None:
                            # The server gets its next image before the caller starts to use this result.
                            failed = await _fill(conversation, images, outbox)
                            yield result
                            for settled in failed:
                                yield settled
                        if conversation.idle():
                            outbox.put_nowait(None)
                conversation.ended()
            except grpc.RpcError as failure:
                if conversation.idle():
                    return  # every image is settled; how the stream ended changes nothing
                await asyncio.sleep(calls.pause_or_raise(failure, None if conversation.answered else retry))
            finally:
                outbox.put_nowait(None)
                call.cancel()
            outbox = asyncio.Queue()
            for messages in conversation.restart():
                outbox.put_nowait(messages)

    async def _call(
        self,
        method: "grpc.aio.UnaryUnaryMultiCallable[Request, Response]",
        request: Request,
        timeout: float | None,
    ) -> Response:
        retry = calls.Retry(timeout)
        while True:
            try:
                with _cancelled_elsewhere():
                    return await method(request, timeout=retry.remaining, metadata=self._metadata)
            except grpc.RpcError as failure:
                pause = calls.pause_or_raise(failure, retry)
            await asyncio.sleep(pause)


async def _fill(
    conversation: Conversation[K], images: Iterator[tuple[K, ImageLike]], outbox: Outbox
) -> list[tuple[K, Result]]:
    """Open images while there is room; return those that could not even be sent, with their errors."""
    failed: list[tuple[K, Result]] = []
    while conversation.room and (item := next(images, None)) is not None:
        key, image = item
        try:
            outbox.put_nowait(conversation.start(key, await asyncio.to_thread(image_message, image)))
        except VitrailError as error:
            failed.append((key, error))
    return failed


async def _requests(outbox: Outbox) -> AsyncIterator[pb.ExplainStreamRequest]:
    while (messages := await outbox.get()) is not None:
        for message in messages:
            yield message


@contextmanager
def _cancelled_elsewhere() -> Iterator[None]:
    """Raise `Cancelled` where a call was cancelled, for example by `close`, but its task was not.

    grpc.aio raises asyncio.CancelledError for both, which would end the caller's task silently.
    """
    try:
        yield
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise Cancelled("the call was cancelled: the client was closed") from None
