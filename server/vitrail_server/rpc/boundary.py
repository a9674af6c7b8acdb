"""The boundary around every rpc: who calls, how long it took, and what an error looks like outside.

One interceptor checks the token, reads the messages, counts them and the call, and turns errors into
statuses: a code, a sentence and google.rpc details.
"""

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Protocol

import grpc
from google.protobuf.message import DecodeError
from google.rpc.status_pb2 import Status

from vitrail.errors import InvalidArgument
from vitrail.status import DETAILS_KEY, grpc_code
from vitrail_server.rpc.context import why_cancelled
from vitrail_server.rpc.refusals import logged, status_of, told
from vitrail_server.rpc.tokens import Tokens


class RpcEvents(Protocol):
    """What the boundary reports; `method` is the full path, `kind` one of gRPC's four."""

    def rpc_started(self, method: str, kind: str) -> None:
        """Report that a call began."""

    def rpc_handled(self, method: str, kind: str, code: str, seconds: float) -> None:
        """Report that a call ended, with the name of its status code."""

    def message_received(self, method: str, kind: str) -> None:
        """Report one message from the client."""

    def message_sent(self, method: str, kind: str) -> None:
        """Report one message to the client."""


class Boundary(grpc.aio.ServerInterceptor):
    """Wraps every handler of the server. `tokens` None: every caller may do everything."""

    def __init__(self, events: RpcEvents, tokens: Tokens | None) -> None:
        self._events = events
        self._tokens = tokens

    async def intercept_service(
        self,
        continuation: Callable[
            [grpc.HandlerCallDetails], Awaitable["grpc.RpcMethodHandler[Any, Any] | None"]
        ],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "grpc.RpcMethodHandler[Any, Any] | None":
        """Return the handler of the call, wrapped."""
        handler = await continuation(handler_call_details)
        if handler is None:  # no such rpc: gRPC itself answers UNIMPLEMENTED
            return handler
        call = _Call(handler, handler_call_details.method, self._events, self._tokens)
        make = getattr(grpc, f"{call.kind}_rpc_method_handler")
        wrapped: grpc.RpcMethodHandler[Any, Any] = make(
            call.answer_once if call.kind.endswith("unary") else call.answer_stream,
            request_deserializer=None,  # the call itself does that, where its errors are caught
            response_serializer=handler.response_serializer,
        )
        return wrapped


class _Call:
    """One rpc's handler with the boundary around it."""

    def __init__(
        self,
        handler: "grpc.RpcMethodHandler[Any, Any]",
        method: str,
        events: RpcEvents,
        tokens: Tokens | None,
    ) -> None:
        self.kind = "_".join(
            "stream" if streams else "unary"
            for streams in (handler.request_streaming, handler.response_streaming)
        )
        self._behaviour: Callable[..., Any] = getattr(handler, self.kind)
        # gRPC leaves it out for handlers that take bytes; ours have generated ones.
        self._deserialize: Callable[[bytes], Any] = handler.request_deserializer or bytes
        self._method = method
        self._events = events
        self._tokens = tokens

    async def answer_once(self, request: Any, context: Any) -> Any:
        """Answer with one message."""

        async def answer() -> Any:
            response = await self._behaviour(self._read(request), context)
            self._events.message_sent(self._method, self.kind)
            return response

        return await self._guarded(answer, context)

    async def answer_stream(self, request: Any, context: Any) -> None:
        """Answer with a stream, whether the handler writes its messages or yields them."""
        counting = _CountingContext(context, lambda: self._events.message_sent(self._method, self.kind))

        async def answer() -> None:
            answered = self._behaviour(self._read(request), counting)
            if inspect.isasyncgen(answered):
                async for message in answered:
                    await counting.write(message)
            else:
                await answered

        await self._guarded(answer, context)

    async def _guarded(self, answer: Callable[[], Awaitable[Any]], context: Any) -> Any:
        began = time.monotonic()
        self._events.rpc_started(self._method, self.kind)
        code = grpc.StatusCode.OK
        try:
            if self._tokens is not None:
                self._tokens.check(self._method, tuple(context.invocation_metadata() or ()))
            return await answer()
        except grpc.aio.AbortError:  # a handler that is not ours ended its call as gRPC has it
            code = context.code() or grpc.StatusCode.UNKNOWN
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the caller gets a status
            code, status = self._refusal(error)
        except BaseException as error:  # cancelled, by the deadline or by the caller
            code = grpc_code(told(error, context))
            raise
        finally:
            self._events.rpc_handled(self._method, self.kind, code.name, time.monotonic() - began)
        # Not within the handler of the error: where the caller reads nothing this takes until it has gone,
        # and the error would keep alive whatever was in progress.
        await _abort(context, code, status)
        raise AssertionError("an abort does not return")

    def _refusal(self, error: Exception) -> tuple[grpc.StatusCode, Status]:
        failure = logged(error, self._method)
        return grpc_code(failure), status_of(failure)

    def _read(self, received: Any) -> Any:
        """Return the message received, or the stream of them, deserialized and counted."""
        if not self.kind.startswith("stream"):
            return self._message(received)

        async def messages() -> AsyncIterator[Any]:
            async for each in received:
                yield self._message(each)

        return messages()

    def _message(self, received: bytes) -> Any:
        self._events.message_received(self._method, self.kind)
        try:
            return self._deserialize(received)
        except DecodeError as error:
            raise InvalidArgument(f"what came is no message of this rpc: {error}") from error


class _CountingContext:
    """A call's context that counts what is written; everything else is the context's own."""

    def __init__(self, context: Any, sent: Callable[[], None]) -> None:
        self._context = context
        self._sent = sent

    async def write(self, message: Any) -> None:
        """Write one message.

        Raises:
            VitrailError: the caller has gone, and its call fails before it is cancelled.

        """
        try:
            await self._context.write(message)
        except grpc.aio.InternalError:
            raise why_cancelled(self._context) from None
        self._sent()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)


async def _abort(context: Any, code: grpc.StatusCode, status: Status) -> None:
    try:
        await context.abort(code, status.message, ((DETAILS_KEY, status.SerializeToString()),))
    except grpc.aio.InternalError:  # the caller has gone; for gRPC its call is then cancelled
        raise asyncio.CancelledError from None
