"""`vitrail-healthcheck`: exit status 0 if a server is SERVING, for containers and scripts.

Without --server it asks the server on this machine that is set up by the environment, as in a container: at
its port, and encrypted if it is, by the certificate that it shows.
"""

import argparse
import os
import socket
import ssl
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from vitrail_server.settings import from_environment, variable_of

HERE = "localhost"

Options = list[tuple[str, str]]


def main() -> None:
    """Run the command line."""
    parser = _parser()
    arguments = parser.parse_args()
    try:
        server, security = _asked(arguments)
    except argparse.ArgumentTypeError as error:
        parser.error(str(error))
    # What the core has to say of a connection that fails is in the error.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        with _channel(server, security, arguments.timeout) as channel:
            response = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(service=arguments.service), timeout=arguments.timeout
            )
    except grpc.RpcError as error:
        _fail(f"{error.code().name}: {error.details()}")
    except OSError as error:
        _fail(str(error))
    status = health_pb2.HealthCheckResponse.ServingStatus.Name(response.status)
    print(status)  # noqa: T201
    sys.exit(0 if response.status == health_pb2.HealthCheckResponse.SERVING else 1)


@dataclass(frozen=True, slots=True)
class _Security:
    """How a connection is encrypted."""

    ca: Path | None = None
    """The certificates that are trusted; None: gRPC's."""
    cert: Path | None = None
    key: Path | None = None
    name: str = ""
    """The name that the server's certificate must have; empty: the server's host."""
    by_any_name: bool = False
    """Whether the server's certificate may have any name."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vitrail-healthcheck", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--server",
        metavar="HOST:PORT",
        help=f"default: {HERE}, with the port of {variable_of('grpc_port')}, else 8001",
    )
    parser.add_argument(
        "--service", default="", help="a service's full name, or models/NAME (default: the server)"
    )
    parser.add_argument("--timeout", type=float, default=2.0, metavar="SECONDS")
    parser.add_argument("--tls", action="store_true", help="encrypt the connection")
    parser.add_argument(
        "--ca",
        type=Path,
        metavar="FILE.pem",
        help="encrypt, and trust the certificates of this file only; without --server by whatever name",
    )
    parser.add_argument(
        "--cert", type=Path, metavar="FILE.pem", help="encrypt, and show this certificate (mutual TLS)"
    )
    parser.add_argument("--key", type=Path, metavar="FILE.pem", help="the private key of --cert")
    parser.add_argument(
        "--tls-name", default="", metavar="NAME", help="the name in the server's certificate, if not its host"
    )
    return parser


def _asked(arguments: argparse.Namespace) -> tuple[str, _Security | None]:
    """Return which server is asked, and how the connection to it is encrypted; None: it is not.

    Raises:
        argparse.ArgumentTypeError: arguments or environment are wrong, or not enough.

    """
    ca, cert, key, name = arguments.ca, arguments.cert, arguments.key, arguments.tls_name
    if (cert is None) != (key is None):
        raise argparse.ArgumentTypeError("--cert and --key belong together: give both or neither")
    encrypted = bool(arguments.tls or ca or cert or name)
    if arguments.server is not None:
        return arguments.server, _Security(ca, cert, key, name) if encrypted else None
    server = f"{HERE}:{from_environment('grpc_port')}"
    mutual = from_environment("grpc_use_ssl_mutual")
    if mutual and cert is None:
        raise argparse.ArgumentTypeError(
            f"{variable_of('grpc_use_ssl_mutual')} is set, so the server wants to see a certificate: give "
            "one that it trusts, and its key, with --cert and --key"
        )
    if (mutual or from_environment("grpc_use_ssl")) and ca is None and not arguments.tls:
        encrypted, ca = True, from_environment("grpc_server_cert")
        if ca is None:
            raise argparse.ArgumentTypeError(
                f"{variable_of('grpc_server_cert')} is not set: name the server's certificate with --ca"
            )
    if not encrypted:
        return server, None
    return server, _Security(ca, cert, key, name, by_any_name=ca is not None and not name)


def _channel(server: str, security: _Security | None, timeout: float) -> grpc.Channel:
    """Return a channel to a server.

    Raises:
        OSError: a file cannot be used, or the server is not there or not trusted.

    """
    if security is None:
        return grpc.insecure_channel(server)
    ca, key, cert = (
        each.read_bytes() if each else None for each in (security.ca, security.key, security.cert)
    )
    credentials = grpc.ssl_channel_credentials(ca, key, cert)
    name = _name_shown(server, security, timeout) if security.by_any_name else security.name
    options: Options = [("grpc.ssl_target_name_override", name)] if name else []
    return grpc.secure_channel(server, credentials, options)


def _name_shown(server: str, security: _Security, timeout: float) -> str:
    """Return a name from the certificate that a server shows, which must be a trusted one.

    A server on this machine is not called by the name that its clients know, and gRPC insists on one.
    """
    try:
        context = ssl.create_default_context(cafile=security.ca)
        if security.cert is not None:
            context.load_cert_chain(security.cert, security.key)
    except ssl.SSLError as error:
        files = ", ".join(str(each) for each in (security.ca, security.cert, security.key) if each)
        raise OSError(f"{files}: not certificates in PEM, or not the key of one ({error.reason})") from error
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # as gRPC does: it need not sign itself
    context.set_alpn_protocols(["h2"])
    host, _, port = server.rpartition(":")
    with (
        socket.create_connection((host, int(port)), timeout) as connection,
        context.wrap_socket(connection) as encrypted,
    ):
        shown: dict[str, Any] = encrypted.getpeercert() or {}
    names = [str(name) for kind, name in shown.get("subjectAltName", ()) if kind in ("DNS", "IP Address")]
    names += [str(name) for part in shown.get("subject", ()) for kind, name in part if kind == "commonName"]
    return names[0].replace("*", HERE) if names else ""


def _fail(message: str) -> NoReturn:
    print(f"vitrail-healthcheck: {message}", file=sys.stderr)  # noqa: T201
    sys.exit(1)
