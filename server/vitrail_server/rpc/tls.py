"""The server's TLS credentials, from Triton's flags."""

from pathlib import Path

import grpc

from vitrail.errors import FailedPrecondition
from vitrail_server.settings import Settings, flag_of


def server_credentials(settings: Settings) -> grpc.ServerCredentials | None:
    """Return what a secure port needs; None where rpcs are not encrypted.

    Raises:
        FailedPrecondition: a file that is needed is not named, or cannot be read.

    """
    if not (settings.grpc_use_ssl or settings.grpc_use_ssl_mutual):
        return None
    pair = (
        _read("grpc_server_key", settings.grpc_server_key),
        _read("grpc_server_cert", settings.grpc_server_cert),
    )
    roots = _read("grpc_root_cert", settings.grpc_root_cert) if settings.grpc_use_ssl_mutual else None
    return grpc.ssl_server_credentials(
        [pair], root_certificates=roots, require_client_auth=settings.grpc_use_ssl_mutual
    )


def _read(name: str, path: Path | None) -> bytes:
    if path is None:
        raise FailedPrecondition(f"{flag_of(name)} is needed for TLS: name a PEM file")
    try:
        return path.read_bytes()
    except OSError as error:
        raise FailedPrecondition(f"{flag_of(name)}: {path} cannot be read ({error.strerror})") from error
