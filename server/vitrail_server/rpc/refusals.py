"""What a caller is told of an error: the status on the wire, and what of a fault leaves the server.

Whatever fails becomes one of our errors here. A fault of the server leaves without its text, because what
a stranger needs is not in a stack trace; the log has it.
"""

import asyncio
import logging

from google.rpc.status_pb2 import Status

from vitrail.errors import Internal, VitrailError
from vitrail.status import to_status
from vitrail_server.rpc.context import Context, why_cancelled

log = logging.getLogger(__name__)

MAX_MESSAGE_BYTES = 1000
"""The longest message. gRPC sends it three times, in two encodings, and clients take 8 KiB of trailers."""

MAX_FIELD_BYTES = 200


def told(error: BaseException, context: Context | None = None) -> VitrailError:
    """Return what the caller is told of `error`: itself if it is ours, why its call was cancelled, or a fault.

    `context` is the call's, for an error that may be its cancellation.
    """
    if isinstance(error, VitrailError):
        return error
    if isinstance(error, asyncio.CancelledError) and context is not None:
        return why_cancelled(context)
    return Internal("the server failed while it answered; its log says why")


def logged(error: Exception, what: str) -> VitrailError:
    """Return what the caller is told of `error`, and log it if it is a fault; `what` failed."""
    if not isinstance(error, VitrailError):
        log.error("%s failed", what, exc_info=error)
    return told(error)


def status_of(error: VitrailError) -> Status:
    """Return the status that carries `error`, its message and field cut to what can be sent."""
    return to_status(
        type(error)(
            _cut(error.message, MAX_MESSAGE_BYTES),
            field=_cut(error.field, MAX_FIELD_BYTES),
            retry_delay=error.retry_delay,
        )
    )


def _cut(text: str, most: int) -> str:
    encoded = text.encode()
    return text if len(encoded) <= most else encoded[: most - 3].decode(errors="ignore") + "..."
