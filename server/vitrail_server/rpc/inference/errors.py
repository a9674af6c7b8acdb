"""Errors as v2 clients expect them: every one names its request."""

from vitrail.errors import VitrailError
from vitrail_server.wording import printable

UNKNOWN_ID = "<id_unknown>"


def identified(error: VitrailError, request_id: str) -> VitrailError:
    """Return the error with the request's id before its message, as Triton writes it."""
    shown = printable(request_id) if request_id else UNKNOWN_ID
    return type(error)(
        f"[request id: {shown}] {error.message}", field=error.field, retry_delay=error.retry_delay
    )
