"""Everything Vitrail can refuse or fail with, shared by the server and the client.

The server raises these, the wire carries them as google.rpc.Status (see `vitrail.status`), and the
client raises the same class again, also after tiles were received.

    VitrailError
    ├── InvalidArgument      the request is wrong; `field` names where
    ├── NotFound             no such model or version
    ├── FailedPrecondition   this model cannot do what was asked
    ├── ResourceExhausted    a limit of the server; `field` names where, if anywhere
    ├── Unavailable          not now; try again after `retry_delay`
    ├── DeadlineExceeded     no time left
    ├── Cancelled            the caller gave up
    ├── Unimplemented        not built
    ├── Unauthenticated      no credentials, or unknown ones
    ├── PermissionDenied     known credentials that may not do this
    └── Internal             a fault of the server
"""

from enum import IntEnum
from typing import ClassVar


class Code(IntEnum):
    """The canonical status codes that Vitrail uses, numbered as in google.rpc.Code."""

    CANCELLED = 1
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    UNAUTHENTICATED = 16


class VitrailError(Exception):
    """Something that Vitrail refused or failed to do.

    `message` is a sentence for a person. `field` is the path of the request field at fault, for
    example ``spec.occlusion.patch``; empty where no field is. `retry_delay` is the number of seconds
    after which trying again makes sense; None means that trying again does not help by itself.
    """

    code: ClassVar[Code] = Code.INTERNAL

    def __init__(self, message: str, *, field: str = "", retry_delay: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.retry_delay = retry_delay

    @property
    def reason(self) -> str:
        """The machine-readable reason on the wire: the code's name."""
        return self.code.name


class InvalidArgument(VitrailError):
    """The request is wrong in itself, whatever the server's state."""

    code = Code.INVALID_ARGUMENT


class NotFound(VitrailError):
    """The repository has no such model or version."""

    code = Code.NOT_FOUND


class FailedPrecondition(VitrailError):
    """The model that was asked cannot do what was asked."""

    code = Code.FAILED_PRECONDITION


class ResourceExhausted(VitrailError):
    """A limit of the server is reached."""

    code = Code.RESOURCE_EXHAUSTED


class Unavailable(VitrailError):
    """The server or the model is not ready; trying again may help."""

    code = Code.UNAVAILABLE


class DeadlineExceeded(VitrailError):
    """The time given to the request is over."""

    code = Code.DEADLINE_EXCEEDED


class Cancelled(VitrailError):
    """The caller cancelled the request."""

    code = Code.CANCELLED


class Unimplemented(VitrailError):
    """The server does not offer what was asked."""

    code = Code.UNIMPLEMENTED


class Unauthenticated(VitrailError):
    """The request carries no credentials, or none that the server knows."""

    code = Code.UNAUTHENTICATED


class PermissionDenied(VitrailError):
    """The caller is known and may not do this."""

    code = Code.PERMISSION_DENIED


class Internal(VitrailError):
    """A fault of the server."""

    code = Code.INTERNAL


BY_CODE: dict[Code, type[VitrailError]] = {kind.code: kind for kind in VitrailError.__subclasses__()}
"""The class that stands for each code."""
