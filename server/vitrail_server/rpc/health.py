"""Health as grpc.health.v1 has it: for the server, for its services and for each model.

The names: "" is the server, SERVING once the models found at start are loaded or have failed; a
service's full name is SERVING with it; `model_service_name` is one model, SERVING while at least one of
its versions is AVAILABLE.
"""

import asyncio

from grpc_health.v1 import health_pb2
from grpc_health.v1.health import aio

from vitrail_server.repository.state import State

MODEL_PREFIX = "models/"


def model_service_name(model: str) -> str:
    """Return the health name of a model."""
    return MODEL_PREFIX + model


class Health:
    """Keeps the health service up to date; its methods are called on the event loop."""

    def __init__(self, services: tuple[str, ...]) -> None:
        self.servicer = aio.HealthServicer()
        """What is registered with the gRPC server."""
        self._services = ("", *services)
        self._available: dict[str, set[int]] = {}
        self._pending: set[asyncio.Task[None]] = set()
        for service in self._services:
            self._set(service, serving=False)

    def ready(self) -> None:
        """Say that startup loading is over."""
        for service in self._services:
            self._set(service, serving=True)

    async def draining(self) -> None:
        """Say, for good, that the server is shutting down."""
        await self.servicer.enter_graceful_shutdown()

    def model_state(self, name: str, version: int, state: State) -> None:
        """Note that a version entered a state."""
        available = self._available.setdefault(name, set())
        (available.add if state is State.AVAILABLE else available.discard)(version)
        self._set(model_service_name(name), serving=bool(available))

    def model_refused(self, name: str) -> None:
        """Note that a model as a whole cannot be served."""
        self._set(model_service_name(name), serving=False)

    def _set(self, service: str, *, serving: bool) -> None:
        status = (
            health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        )
        # The servicer's setter only touches its own lock and wakes watchers, in order of the tasks.
        task = asyncio.get_running_loop().create_task(self.servicer.set(service, status))
        self._pending.add(task)
        task.add_done_callback(self._pending.discard)
