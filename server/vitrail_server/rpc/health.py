"""Health as grpc.health.v1 has it: for the server, for its services and for each model.

The names: "" is the server, SERVING once the models found at start are loaded or have failed; a
service's full name is SERVING with it; `model_service_name` is one model, SERVING while at least one of
its versions is AVAILABLE. Watchers are told of every change, and their calls end when the server shuts
down, so that it does not wait for them.
"""

import asyncio

from grpc_health.v1 import health_pb2 as pb
from grpc_health.v1.health_pb2_grpc import HealthServicer

from vitrail.errors import NotFound
from vitrail_server.repository.state import State
from vitrail_server.rpc.context import Context, write
from vitrail_server.wording import quoted

MODEL_PREFIX = "models/"

Status = pb.HealthCheckResponse


def model_service_name(model: str) -> str:
    """Return the health name of a model."""
    return MODEL_PREFIX + model


class Health(HealthServicer):  # type: ignore[misc]  # the generated code has no types
    """Answers grpc.health.v1.Health. Every method is called on the event loop.

    `write_timeout` is how many seconds one message may wait for a watcher that has stopped reading.
    """

    def __init__(self, services: tuple[str, ...], write_timeout: float) -> None:
        self._services = ("", *services)
        self._write_timeout = write_timeout
        self._statuses = dict.fromkeys(self._services, Status.NOT_SERVING)
        self._available: dict[str, set[int]] = {}
        self._changed = asyncio.Event()
        self._draining = False

    async def Check(  # noqa: N802 - the rpc's name
        self,
        request: pb.HealthCheckRequest,
        context: Context,  # noqa: ARG002 - the rpc's signature
    ) -> pb.HealthCheckResponse:
        """Return one status.

        Raises:
            NotFound: nothing has this name.

        """
        status = self._statuses.get(request.service)
        if status is None:
            raise NotFound(
                f"nothing is called {quoted(request.service)}: ask for '', a service or {MODEL_PREFIX}NAME"
            )
        return pb.HealthCheckResponse(status=status)

    async def Watch(  # noqa: N802 - the rpc's name
        self, request: pb.HealthCheckRequest, context: Context
    ) -> None:
        """Send one status, and send it again whenever it has changed."""
        sent = None
        while True:
            changed = self._changed
            status = self._statuses.get(request.service, Status.SERVICE_UNKNOWN)
            if status != sent:
                await write(context, pb.HealthCheckResponse(status=status), self._write_timeout)
                sent = status
            elif self._draining:
                return
            else:
                await changed.wait()

    @property
    def is_ready(self) -> bool:
        """Whether startup loading is over, and the server goes on."""
        return bool(self._statuses[""] == Status.SERVING)

    def ready(self) -> None:
        """Say that startup loading is over."""
        self._set(Status.SERVING, *self._services)

    def draining(self) -> None:
        """Say, for good, that the server is shutting down."""
        self._set(Status.NOT_SERVING, *self._statuses)
        self._draining = True

    def model_state(self, name: str, version: int, state: State) -> None:
        """Note that a version entered a state."""
        available = self._available.setdefault(name, set())
        (available.add if state is State.AVAILABLE else available.discard)(version)
        self._set(Status.SERVING if available else Status.NOT_SERVING, model_service_name(name))

    def model_refused(self, name: str) -> None:
        """Note that a model as a whole cannot be served."""
        self._set(Status.NOT_SERVING, model_service_name(name))

    def model_removed(self, name: str) -> None:
        """Note that a model is not in the repository any more."""
        self._available.pop(name, None)
        self._statuses.pop(model_service_name(name), None)
        self._notify()

    def _set(self, status: int, *services: str) -> None:
        if not self._draining:
            self._statuses.update(dict.fromkeys(services, status))
            self._notify()

    def _notify(self) -> None:
        # Whoever waits, waits for the event as it was; the next change is another one's.
        self._changed.set()
        self._changed = asyncio.Event()
