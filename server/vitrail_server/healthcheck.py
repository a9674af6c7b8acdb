"""`vitrail-healthcheck`: exit status 0 if a server is SERVING, for containers and scripts.

Without --server it asks the server on this machine whose port is set in the environment, as in a container.
"""

import argparse
import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from vitrail_server.settings import from_environment


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="vitrail-healthcheck", description=__doc__)
    parser.add_argument(
        "--server",
        metavar="HOST:PORT",
        help="default: localhost, with the port of VITRAIL_GRPC_PORT, else 8001",
    )
    parser.add_argument(
        "--service", default="", help="a service's full name, or models/NAME (default: the server)"
    )
    parser.add_argument("--timeout", type=float, default=2.0, metavar="SECONDS")
    arguments = parser.parse_args()
    try:
        server = arguments.server or f"localhost:{from_environment('grpc_port')}"
    except argparse.ArgumentTypeError as error:
        parser.error(str(error))
    with grpc.insecure_channel(server) as channel:
        try:
            response = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(service=arguments.service), timeout=arguments.timeout
            )
        except grpc.RpcError as error:
            print(f"vitrail-healthcheck: {error.code().name}: {error.details()}", file=sys.stderr)  # noqa: T201
            sys.exit(1)
    status = health_pb2.HealthCheckResponse.ServingStatus.Name(response.status)
    print(status)  # noqa: T201
    sys.exit(0 if response.status == health_pb2.HealthCheckResponse.SERVING else 1)
