"""The boundary around every rpc: who calls, how long it took, and what an error looks like outside.

One interceptor checks the token, counts the call and turns errors into statuses. A VitrailError
becomes its code, its sentence and google.rpc details; anything else is logged here and leaves as
INTERNAL without its text, because what a stranger needs is not in a stack trace.
"""

import inspect
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Protocol

import grpc

from vitrail.errors import Internal, VitrailError
from vitrail.status import DETAILS_KEY, grpc_code, to_status
from vitrail_server.rpc.context import why_cancelled
from vitrail_server.rpc.tokens import Tokens

log = logging.getLogger(__name__)


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
            request_deserializer=handler.request_deserializer,
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
        self._method = method
        self._events = events
        self._tokens = tokens

    async def answer_once(self, request: Any, context: Any) -> Any:
        """Answer with one message."""

        async def answer() -> Any:
            response = await self._behaviour(self._counted(request), context)
            self._events.message_sent(self._method, self.kind)
            return response

        return await self._guarded(answer, context)

    async def answer_stream(self, request: Any, context: Any) -> None:
        """Answer with a stream, whether the handler writes its messages or yields them."""
        counting = _CountingContext(context, lambda: self._events.message_sent(self._method, self.kind))

        async def answer() -> None:
            answered = self._behaviour(self._counted(request), counting)
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
        except VitrailError as error:
            code = grpc_code(error)
            await _abort(context, error)
        except Exception:
            log.exception("%s failed", self._method)
            code = grpc.StatusCode.INTERNAL
            await _abort(context, Internal("the server failed while it answered; its log says why"))
        except BaseException:  # cancelled, by the deadline or by the caller
            code = grpc_code(why_cancelled(context))
            raise
        finally:
            self._events.rpc_handled(self._method, self.kind, code.name, time.monotonic() - began)

    def _counted(self, request: Any) -> Any:
        """Return the request, or the stream of them, with its messages counted."""
        if not self.kind.startswith("stream"):
            self._events.message_received(self._method, self.kind)
            return request

        async def messages() -> AsyncIterator[Any]:
            async for message in request:
                self._events.message_received(self._method, self.kind)
                yield message

        return messages()


class _CountingContext:
    """A call's context that counts what is written; everything else is the context's own."""

    def __init__(self, context: Any, sent: Callable[[], None]) -> None:
        self._context = context
        self._sent = sent

    async def write(self, message: Any) -> None:
        """Write one message."""
        await self._context.write(message)
        self._sent()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)


async def _abort(context: Any, error: VitrailError) -> None:
    await context.abort(
        grpc_code(error), error.message, ((DETAILS_KEY, to_status(error).SerializeToString()),)
    )
