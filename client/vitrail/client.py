"""The blocking client: `vitrail.Client`.

It only calls and waits. What is sent is made in `request`, what arrives is assembled in `explanation`
and `conversation`, and what calls carry is decided in `calls`; `aio` does the same calls without
blocking. Every failure is raised as a class of `vitrail.errors`.
"""

import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping
from itertools import chain
from queue import SimpleQueue
from types import TracebackType
from typing import Self, TypeVar, Unpack, overload

import grpc
from google.protobuf.wrappers_pb2 import Int32Value, StringValue

from vitrail import calls
from vitrail.conversation import Conversation, Result
from vitrail.errors import VitrailError
from vitrail.explanation import Explanation, ended, receive
from vitrail.request import ImageLike, Options, image_message, keyed, specification
from vitrail.sending import TilesRequest
from vitrail.status import from_rpc_error
from vitrail.v1 import explanation_pb2 as pb
from vitrail.v1.explanation_pb2_grpc import ExplanationServiceStub
from vitrail.v1.model_pb2 import GetModelRequest, ListModelsRequest, Model
from vitrail.v1.model_pb2_grpc import ModelServiceStub

K = TypeVar("K")
Request = TypeVar("Request")
Response = TypeVar("Response")


class Client:
    """A connection to a server; threads may share one.

    `target` is "host:port". `token` is sent with every call as a bearer token. `credentials` encrypt
    the connection, for example ``grpc.ssl_channel_credentials()``; None: it is not encrypted. No
    connection is made before the first call.
    """

    def __init__(
        self, target: str, *, token: str | None = None, credentials: grpc.ChannelCredentials | None = None
    ) -> None:
        options = calls.channel_options()
        self._channel = (
            grpc.insecure_channel(target, options)
            if credentials is None
            else grpc.secure_channel(target, credentials, options)
        )
        self._metadata = calls.metadata(token)
        self._explanations = ExplanationServiceStub(self._channel)
        self._explain_tiles = self._channel.unary_stream(
            calls.EXPLAIN_TILES, TilesRequest.serialized, pb.ExplainTilesResponse.FromString
        )
        self._models = ModelServiceStub(self._channel)
        self._health = self._channel.unary_unary(
            calls.HEALTH_CHECK, StringValue.SerializeToString, Int32Value.FromString
        )

    def explain(self, image: ImageLike, *, model: str, **options: Unpack[Options]) -> Explanation:
        """Explain the answer of `model` for one image and return the finished map.

        `image` is an array (a tensor in the model's own units: [H, W, C], [1, H, W, C], or [H, W] for
        one channel), or a path, the bytes of a JPEG or PNG file, or a Pillow image, which the server
        scales to the model. The options are described in `vitrail.Options`.

        The map may be PARTIAL, if a timeout ended it: see `Explanation.complete`.

        Raises:
            VitrailError: the request was refused, or failed; see `vitrail.errors`.

        """
        [explanation] = deque(self.explain_tiles(image, model=model, **options), maxlen=1)
        return explanation

    def explain_tiles(
        self, image: ImageLike, *, model: str, **options: Unpack[Options]
    ) -> Generator[Explanation, None, None]:
        """Explain one image and yield the map whenever it has grown: the same object each time.

        It is first yielded before it has any values, as soon as the targets are known. Closing the
        generator, or leaving it for good, cancels the call and ends the server's work. Arguments and
        errors are those of `explain`.
        """
        request = TilesRequest(specification(model, options), image)
        return self._tiles(request, options.get("timeout"))

    @overload
    def explain_many(  # type: ignore[overload-overlap]  # a mapping from paths is also an iterable of paths
        self, images: Mapping[K, ImageLike], *, model: str, in_flight: int = ..., **options: Unpack[Options]
    ) -> Generator[tuple[K, Result], None, None]: ...
    @overload
    def explain_many(
        self, images: Iterable[ImageLike], *, model: str, in_flight: int = ..., **options: Unpack[Options]
    ) -> Generator[tuple[int, Result], None, None]: ...
    def explain_many(
        self,
        images: Mapping[K, ImageLike] | Iterable[ImageLike],
        *,
        model: str,
        in_flight: int = 4,
        **options: Unpack[Options],
    ) -> Generator[tuple[K | int, Result], None, None]:
        """Explain many images over one connection and yield (key, result) as each is settled.

        A key is the image's key in a mapping, or its position in any other iterable; a result is an
        `Explanation`, or the error that this image ended with, which does not end the others. At most
        `in_flight` images are open at a time, and `images` is read no further ahead than that. The
        timeout is each image's own. The other options are those of `explain`.

        Raises:
            VitrailError: the options are wrong, or the connection as a whole failed; the results
                yielded before stay valid.

        """
        spec, timeout = specification(model, options), options.get("timeout")
        pairs = keyed(images)
        return self._many(Conversation(spec, timeout, in_flight), pairs, calls.Retry(timeout))

    def models(self, *, timeout: float | None = None) -> list[Model]:
        """Return every model of the repository, without its labels.

        Raises:
            VitrailError: the call failed.

        """
        return list(self._call(self._models.ListModels, ListModelsRequest(), timeout).models)

    def model(self, name: str, *, timeout: float | None = None) -> Model:
        """Return the model called `name`, with its labels.

        Raises:
            NotFound: the repository has no such model.
            VitrailError: the call failed.

        """
        return self._call(self._models.GetModel, GetModelRequest(name=name), timeout).model

    def ready(self, service: str = "", *, timeout: float | None = None) -> bool:
        """Return whether the server has loaded its models or, for "models/NAME", whether one is served.

        Raises:
            NotFound: the server knows no such name.
            VitrailError: the call failed; it is not tried again.

        """
        try:
            answer = self._health(StringValue(value=service), timeout=timeout, metadata=self._metadata)
        except grpc.RpcError as failure:
            raise from_rpc_error(failure) from failure
        return answer.value == calls.SERVING

    def close(self) -> None:
        """End the connection; calls in progress are cancelled."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _tiles(self, request: TilesRequest, timeout: float | None) -> Generator[Explanation, None, None]:
        retry = calls.Retry(timeout)
        while True:
            explanation, budget = None, retry.remaining
            request.set_budget(budget)
            call = self._explain_tiles(request, timeout=calls.deadline(budget), metadata=self._metadata)
            try:
                for response in call:
                    explanation = receive(explanation, response, request.image)
                    yield explanation
                ended(explanation)
                return
            except grpc.RpcError as failure:
                pause = calls.pause_or_raise(failure, retry if explanation is None else None)
            finally:
                call.cancel()
            time.sleep(pause)

    def _many(
        self, conversation: Conversation[K], images: Iterator[tuple[K, ImageLike]], retry: calls.Retry
    ) -> Generator[tuple[K, Result], None, None]:
        # gRPC reads the requests in a thread of its own, which must not run the caller's iterator.
        outbox: SimpleQueue[Iterable[pb.ExplainStreamRequest] | None] = SimpleQueue()
        yield from _fill(conversation, images, outbox)
        while not conversation.idle():
            requests = chain.from_iterable(iter(outbox.get, None))
            call = self._explanations.ExplainStream(requests, metadata=self._metadata)
            try:
                for response in call:
                    result = conversation.receive(response)
                    if result is not None:
                        # The server gets its next image before the caller starts to use this result.
                        failed = _fill(conversation, images, outbox)
                        yield result
                        yield from failed
                    if conversation.idle():
                        outbox.put(None)
                conversation.ended()
            except grpc.RpcError as failure:
                if conversation.idle():
                    return  # every image is settled; how the stream ended changes nothing
                time.sleep(calls.pause_or_raise(failure, None if conversation.answered else retry))
            finally:
                outbox.put(None)
                call.cancel()
            outbox = SimpleQueue()
            for messages in conversation.restart():
                outbox.put(messages)

    def _call(
        self,
        method: "grpc.UnaryUnaryMultiCallable[Request, Response]",
        request: Request,
        timeout: float | None,
    ) -> Response:
        retry = calls.Retry(timeout)
        while True:
            try:
                return method(request, timeout=retry.remaining, metadata=self._metadata)
            except grpc.RpcError as failure:
                time.sleep(calls.pause_or_raise(failure, retry))


def _fill(
    conversation: Conversation[K],
    images: Iterator[tuple[K, ImageLike]],
    outbox: "SimpleQueue[Iterable[pb.ExplainStreamRequest] | None]",
) -> list[tuple[K, Result]]:
    """Open images while there is room; return those that could not even be sent, with their errors."""
    failed: list[tuple[K, Result]] = []
    while conversation.room and (item := next(images, None)) is not None:
        key, image = item
        try:
            outbox.put(conversation.start(key, image_message(image)))
        except VitrailError as error:
            failed.append((key, error))
    return failed
