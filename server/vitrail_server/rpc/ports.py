"""Where a server listens, and why it cannot: in words that name the flag to change."""

import errno
import socket

from vitrail.errors import FailedPrecondition
from vitrail_server.settings import flag_of

NOT_OURS = errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT
"""What says that it is the address, whatever the port."""

HINTS = {
    errno.EADDRINUSE: "is another server running on it?",
    errno.EACCES: "ports below 1024 need privileges",
}


def place(address: str, port: int) -> str:
    """Return address and port in one, as gRPC reads them and URLs have them."""
    return f"[{address}]:{port}" if ":" in address and not address.startswith("[") else f"{address}:{port}"


def obstacle(address: str, port: int) -> OSError | None:
    """Return what keeps this machine from listening there; None if nothing does.

    For gRPC, which says that it cannot but not why. A name stands for several addresses: one is enough.
    """
    try:
        found = socket.getaddrinfo(address.strip("[]"), port, type=socket.SOCK_STREAM)
    except OSError as error:
        return error
    first: OSError | None = None
    for family, kind, protocol, _, where in found:
        try:
            with socket.socket(family, kind, protocol) as attempt:
                attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                attempt.bind(where)
        except OSError as error:
            first = first or error
        else:
            return None
    return first


def refusal(what: str, address: str, port: int, error: OSError) -> FailedPrecondition:
    """Return what is said where the port for `what`, which is how its flags begin, cannot be had."""
    if isinstance(error, socket.gaierror) or error.errno in NOT_OURS:
        return FailedPrecondition(
            f"{flag_of(f'{what}_address')}: {address} is no address of this machine ({error.strerror}); "
            "0.0.0.0 stands for all it has"
        )
    hint = HINTS.get(error.errno or 0, "")
    return FailedPrecondition(
        f"{flag_of(f'{what}_port')}: {place(address, port)} cannot be had ({error.strerror})"
        + (f"; {hint}" if hint else "")
    )
