"""A real gRPC server that plays what a test scripts, and remembers what it was asked.

One script is played per call of ExplainTiles, in order: events are sent, a `VitrailError` ends the
call with its status, and `UNTIL_CANCELLED` waits until the client has gone. An ExplainStream is
answered by a function of the test's own.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from enum import Enum, auto
from types import TracebackType
from typing import NoReturn, Self

import grpc
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health import HealthServicer

from vitrail.errors import NotFound, VitrailError
from vitrail.status import DETAILS_KEY, grpc_code, to_status
from vitrail.v1 import explanation_pb2 as pb
from vitrail.v1 import model_pb2
from vitrail.v1.explanation_pb2_grpc import (
    ExplanationServiceServicer,
    add_ExplanationServiceServicer_to_server,
)
from vitrail.v1.model_pb2_grpc import ModelServiceServicer, add_ModelServiceServicer_to_server

from .messages import Event, in_tiles_response

PATIENCE = 30.0
"""Seconds after which a test that waits has failed."""


class Wait(Enum):
    """What a script waits for."""

    CANCELLED = auto()


UNTIL_CANCELLED = Wait.CANCELLED

Script = Sequence[Event | VitrailError | Wait]
StreamHandler = Callable[
    [Iterator[pb.ExplainStreamRequest]], Iterator[pb.ExplainStreamResponse | VitrailError]
]


def _no_stream(_: Iterator[pb.ExplainStreamRequest]) -> Iterator[pb.ExplainStreamResponse]:
    raise AssertionError("no stream is scripted")


class FakeServer:
    """A server on a free port, encrypted with `credentials` if given; used as a context manager."""

    def __init__(self, credentials: grpc.ServerCredentials | None = None) -> None:
        self.scripts: deque[Script] = deque()
        """What the next calls of ExplainTiles are answered with."""
        self.on_stream: StreamHandler = _no_stream
        """Answers an ExplainStream."""
        self.models: list[model_pb2.Model] = []
        """What ModelService knows."""
        self.model_failures: deque[VitrailError] = deque()
        """What the next calls of ModelService fail with."""
        self.requests: list[pb.ExplainTilesRequest] = []
        """The requests of ExplainTiles."""
        self.deadlines: list[float | None] = []
        """The seconds until the deadline of every call; None without one."""
        self.metadata: list[Mapping[str, str | bytes]] = []
        """The metadata of every call."""
        self.streams = 0
        """How many ExplainStreams were opened."""
        self.begun = threading.Event()
        """Set when ExplainTiles is called."""
        self.cancelled = threading.Event()
        """Set when the client ended a call that waited for it."""
        self.health = HealthServicer()
        self._server = grpc.server(ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)])
        add_ExplanationServiceServicer_to_server(_Explanations(self), self._server)
        add_ModelServiceServicer_to_server(_Models(self), self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self._server)
        self.port = (
            self._server.add_insecure_port("127.0.0.1:0")
            if credentials is None
            else self._server.add_secure_port("127.0.0.1:0", credentials)
        )

    @property
    def target(self) -> str:
        """Where it listens."""
        return f"127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.stop(None).wait(PATIENCE)

    def note(self, context: grpc.ServicerContext) -> None:
        """Remember how a call was made."""
        self.deadlines.append(context.time_remaining())
        self.metadata.append(dict(context.invocation_metadata()))


class _Explanations(ExplanationServiceServicer):
    def __init__(self, server: FakeServer) -> None:
        self._server = server

    def Explain(self, request: pb.ExplainRequest, context: grpc.ServicerContext) -> NoReturn:  # noqa: N802
        raise AssertionError("the client uses ExplainTiles")

    def ExplainTiles(  # noqa: N802
        self, request: pb.ExplainTilesRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.ExplainTilesResponse]:
        self._server.note(context)
        self._server.requests.append(request)
        self._server.begun.set()
        script = self._server.scripts.popleft()
        # Registered before the first message: a client that leaves at once stops this generator there.
        if UNTIL_CANCELLED in script and not context.add_callback(self._server.cancelled.set):
            self._server.cancelled.set()
        for step in script:
            match step:
                case VitrailError():
                    _abort(context, step)
                case Wait.CANCELLED:
                    self._server.cancelled.wait(PATIENCE)
                case _:
                    yield in_tiles_response(step)

    def ExplainStream(  # noqa: N802
        self, request_iterator: Iterator[pb.ExplainStreamRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.ExplainStreamResponse]:
        self._server.note(context)
        self._server.streams += 1
        for step in self._server.on_stream(request_iterator):
            if isinstance(step, VitrailError):
                _abort(context, step)
            yield step


class _Models(ModelServiceServicer):
    def __init__(self, server: FakeServer) -> None:
        self._server = server

    def ListModels(  # noqa: N802
        self, request: model_pb2.ListModelsRequest, context: grpc.ServicerContext
    ) -> model_pb2.ListModelsResponse:
        self._answer(context)
        return model_pb2.ListModelsResponse(models=self._server.models)

    def GetModel(  # noqa: N802
        self, request: model_pb2.GetModelRequest, context: grpc.ServicerContext
    ) -> model_pb2.GetModelResponse:
        self._answer(context)
        found = next((model for model in self._server.models if model.name == request.name), None)
        if found is None:
            _abort(context, NotFound(f"no model {request.name!r}"))
        return model_pb2.GetModelResponse(model=found)

    def _answer(self, context: grpc.ServicerContext) -> None:
        self._server.note(context)
        if self._server.model_failures:
            _abort(context, self._server.model_failures.popleft())


def _abort(context: grpc.ServicerContext, error: VitrailError) -> NoReturn:
    context.set_trailing_metadata(((DETAILS_KEY, to_status(error).SerializeToString()),))
    context.abort(grpc_code(error), error.message)
