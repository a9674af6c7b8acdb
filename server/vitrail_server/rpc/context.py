"""What handlers ask of the call they answer."""

import asyncio

import grpc
from google.protobuf.message import Message as ProtobufMessage

from vitrail.errors import Cancelled, DeadlineExceeded, VitrailError

Context = grpc.aio.ServicerContext[ProtobufMessage, ProtobufMessage]


def caller_of(context: Context) -> str:
    """Return who calls, for fairness between callers: one connection is one caller."""
    return str(context.peer())


def why_cancelled(context: Context) -> VitrailError:
    """Return why a call ended early: its deadline passed, or the caller gave up."""
    remaining: float | None = context.time_remaining()  # None without a deadline, whatever the stubs say
    if remaining is not None and remaining <= 0:
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
