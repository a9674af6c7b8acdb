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
from vitrail_server.wording import MESSAGE_LIMIT

log = logging.getLogger(__name__)

FIELD_LIMIT = 200
"""Bytes of a field's path that are sent."""


def told(error: BaseException, context: Context | None = None) -> VitrailError:
    """Return what the caller is told: `error` itself, why the call was cancelled, or that there is a fault.

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
            _cut(error.message, MESSAGE_LIMIT),
            field=_cut(error.field, FIELD_LIMIT),
            retry_delay=error.retry_delay,
        )
    )


def _cut(text: str, most: int) -> str:
    # In bytes, because a character beyond ASCII takes several.
    encoded = text.encode()
    return text if len(encoded) <= most else encoded[: most - 3].decode(errors="ignore") + "..."
