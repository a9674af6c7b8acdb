"""What handlers ask of the call they answer."""

import asyncio
import secrets
from dataclasses import dataclass

import grpc
from google.protobuf.message import Message as ProtobufMessage

from vitrail.errors import Cancelled, DeadlineExceeded, VitrailError

REQUEST_ID_KEY = "x-request-id"
"""The metadata in which a caller may name its call; the log repeats it."""

MAX_REQUEST_ID = 128
"""The most characters of a request id that are kept."""

DEADLINE_SLACK = 0.1
"""Seconds before its deadline from which on the end of a call counts as that: gRPC rounds a deadline up on
its way to the server, so the client's own clock ends the call first."""

Context = grpc.aio.ServicerContext[ProtobufMessage, ProtobufMessage]


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls."""

    connection: str
    """One connection is one caller, for fairness between callers."""
    request_id: str
    """The caller's own name for this call, or one made up for it."""


def caller_of(context: Context) -> Caller:
    """Return who calls."""
    given = dict(context.invocation_metadata() or ()).get(REQUEST_ID_KEY)
    request_id = given[:MAX_REQUEST_ID] if isinstance(given, str) and given else secrets.token_hex(8)
    return Caller(str(context.peer()), request_id)


def why_cancelled(context: Context) -> VitrailError:
    """Return why a call ended early: its deadline passed, or the caller gave up."""
    remaining: float | None = context.time_remaining()  # None without a deadline, whatever the stubs say
    if remaining is not None and remaining <= DEADLINE_SLACK:
        return DeadlineExceeded(
            "the deadline of the rpc passed; spec.time_budget returns what there is by then"
        )
    return Cancelled("the caller gave up")


async def write(context: Context, message: ProtobufMessage, timeout: float) -> None:  # noqa: ASYNC109
    """Write one message, and give the reader `timeout` seconds to make room for it.

    Raises:
        Cancelled: the reader made none.

    """
    try:
        async with asyncio.timeout(timeout):
            await context.write(message)
    except TimeoutError:
        raise Cancelled(
            f"the reader took no message for {timeout:g} s; the explanation was dropped"
        ) from None
