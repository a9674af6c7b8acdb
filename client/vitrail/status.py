"""Carries errors over the wire: `VitrailError` to google.rpc.Status and back.

Both ends use this file, so what the server raised is what the client raises. A status holds the code,
the sentence, a google.rpc.ErrorInfo with the reason, a google.rpc.BadRequest where a field is at
fault and a google.rpc.RetryInfo where trying again makes sense (https://google.aip.dev/193).
"""

from collections.abc import Iterable
from typing import cast

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from vitrail.errors import BY_CODE, Code, Internal, Unavailable, VitrailError

DOMAIN = "vitrail"
"""The domain of the reasons in google.rpc.ErrorInfo."""

DETAILS_KEY = "grpc-status-details-bin"
"""The trailing metadata in which gRPC carries a serialised google.rpc.Status."""


LOST_STATUS = "Internal error from Core"
"""What grpc.aio says where the server ended a stream while the client was sending: the status is lost."""


def to_status(error: VitrailError) -> Status:
    """Return the status that carries `error`."""
    status = Status(code=int(error.code), message=error.message)
    status.details.append(_packed(ErrorInfo(reason=error.reason, domain=DOMAIN)))
    if error.field:
        violation = BadRequest.FieldViolation(field=error.field, description=error.message)
        status.details.append(_packed(BadRequest(field_violations=[violation])))
    if error.retry_delay is not None:
        retry = RetryInfo()
        retry.retry_delay.FromNanoseconds(round(error.retry_delay * 1e9))
        status.details.append(_packed(retry))
    return status


def from_status(status: Status) -> VitrailError:
    """Return the error that `status` carries; a code that Vitrail never sends becomes `Internal`."""
    field, retry_delay = "", None
    for detail in status.details:
        if detail.Is(BadRequest.DESCRIPTOR):
            bad = BadRequest.FromString(detail.value)
            field = bad.field_violations[0].field if bad.field_violations else ""
        elif detail.Is(RetryInfo.DESCRIPTOR):
            retry_delay = RetryInfo.FromString(detail.value).retry_delay.ToNanoseconds() / 1e9
    return _class_of(status.code)(status.message, field=field, retry_delay=retry_delay)


def from_rpc_error(error: grpc.RpcError) -> VitrailError:
    """Return the error behind a failed call, whether Vitrail or gRPC itself ended it."""
    metadata = cast("Iterable[tuple[str, str | bytes]]", error.trailing_metadata() or ())
    for key, value in metadata:
        if key == DETAILS_KEY and isinstance(value, bytes):
            try:
                return from_status(Status.FromString(value))
            except DecodeError:
                break
    if error.code() is grpc.StatusCode.INTERNAL and error.details() == LOST_STATUS:
        return Unavailable("the call ended while a message was being sent, and how is lost", retry_delay=0.0)
    # Vitrail did not answer at all. If gRPC says UNAVAILABLE, the server may be starting: try again.
    retry_delay = 0.0 if error.code() is grpc.StatusCode.UNAVAILABLE else None
    return _class_of(error.code().value[0])(error.details() or error.code().name, retry_delay=retry_delay)


def grpc_code(error: VitrailError) -> grpc.StatusCode:
    """Return gRPC's own name for the error's code."""
    return grpc.StatusCode[error.code.name]


def _class_of(code: int) -> type[VitrailError]:
    try:
        return BY_CODE[Code(code)]
    except ValueError:
        return Internal


def _packed(message: ErrorInfo | BadRequest | RetryInfo) -> Any:
    packed = Any()
    packed.Pack(message)
    return packed
