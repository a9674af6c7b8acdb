"""Every Prometheus metric of the server: names, labels and buckets; nothing else imports the library.

`Metrics` receives the server's events. Label values are bounded: models and versions come from the
repository, never from a request, and the series of a version that is gone are removed.
"""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from vitrail_server.events import BatchExecuted, ExplanationEnded
from vitrail_server.repository.state import State

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
"""From a gradient of a small network to an occlusion of a large one, in seconds."""

ROWS = (1, 2, 4, 8, 16, 32, 64, 128)
"""Batch sizes, in rows."""

EXPLANATION = ("model", "version", "method")
RPC = ("grpc_type", "grpc_service", "grpc_method")


class Metrics:
    """The metrics of one server, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=True)
        self._explanations = Counter(
            "vitrail_explanations",
            "Explanations that ended, by outcome: complete, partial or a status code.",
            (*EXPLANATION, "outcome"),
            registry=self.registry,
        )
        self._in_flight = Gauge(
            "vitrail_explanations_in_flight",
            "Explanations admitted and not ended.",
            registry=self.registry,
        )
        self._duration = self._histogram(
            "vitrail_explanation_duration_seconds", "From a request's arrival to its last message."
        )
        self._first_tile = self._histogram(
            "vitrail_explanation_first_tile_seconds", "From a request's arrival to its first tile."
        )
        self._queue = self._histogram(
            "vitrail_explanation_queue_seconds", "From a request's arrival until its first batch began."
        )
        self._device = self._histogram(
            "vitrail_explanation_device_seconds", "An explanation's share, by rows, of its batches."
        )
        self._evaluations = Counter(
            "vitrail_explanation_evaluations",
            "Announced evaluations by how they ended: done, skipped or dropped.",
            (*EXPLANATION, "result"),
            registry=self.registry,
        )
        self._tiles = Counter("vitrail_explanation_tiles", "Tiles sent.", EXPLANATION, registry=self.registry)
        self._batch_rows = Histogram(
            "vitrail_batch_rows",
            "Rows of explanations in one batch, without padding.",
            ("program",),
            buckets=ROWS,
            registry=self.registry,
        )
        self._batch_seconds = Histogram(
            "vitrail_batch_duration_seconds",
            "Duration of one batch on the device.",
            ("program",),
            buckets=SECONDS,
            registry=self.registry,
        )
        self._padding = Counter(
            "vitrail_batch_padding_rows",
            "Rows computed only to fill a batch's fixed shape.",
            ("program",),
            registry=self.registry,
        )
        self._model_state = Gauge(
            "vitrail_model_state",
            "1 for the state that a version is in.",
            ("model", "version", "state"),
            registry=self.registry,
        )
        self._models_refused = Gauge(
            "vitrail_model_refused",
            "1 for a model that cannot be served at all.",
            ("model",),
            registry=self.registry,
        )
        self._load = Histogram(
            "vitrail_model_load_duration_seconds",
            "Loading and warming up one version, by outcome: ok or failed.",
            ("model", "outcome"),
            buckets=SECONDS,
            registry=self.registry,
        )
        self._rpc_started = Counter("grpc_server_started", "Rpcs begun.", RPC, registry=self.registry)
        self._rpc_handled = Counter(
            "grpc_server_handled", "Rpcs ended, by status code.", (*RPC, "grpc_code"), registry=self.registry
        )
        self._rpc_received = Counter(
            "grpc_server_msg_received", "Messages received.", RPC, registry=self.registry
        )
        self._rpc_sent = Counter("grpc_server_msg_sent", "Messages sent.", RPC, registry=self.registry)
        self._rpc_seconds = Histogram(
            "grpc_server_handling_seconds",
            "From the start of an rpc to its end.",
            RPC,
            buckets=SECONDS,
            registry=self.registry,
        )

    def serve(self, address: str, port: int) -> int:
        """Answer Prometheus on a thread of its own, and return the port."""
        self._server, _ = start_http_server(port, address, self.registry)
        return int(self._server.server_port)

    def close(self) -> None:
        """Stop answering Prometheus."""
        self._server.shutdown()
        self._server.server_close()

    def explanation_started(self) -> None:
        """Count an admitted explanation."""
        self._in_flight.inc()

    def explanation_ended(self, event: ExplanationEnded, *, admitted: bool) -> None:
        """Count the end of an explanation."""
        if admitted:
            self._in_flight.dec()
        of = (event.model, str(event.version) if event.version else "", event.method)
        self._explanations.labels(*of, event.outcome).inc()
        self._duration.labels(*of).observe(event.seconds)
        if event.first_tile_seconds is not None:
            self._first_tile.labels(*of).observe(event.first_tile_seconds)
        if event.device_seconds:
            self._queue.labels(*of).observe(event.queue_seconds)
            self._device.labels(*of).observe(event.device_seconds)
        for result, count in (("done", event.done), ("skipped", event.skipped), ("dropped", event.dropped)):
            self._evaluations.labels(*of, result).inc(count)
        self._tiles.labels(*of).inc(event.tiles)

    def batch_executed(self, event: BatchExecuted) -> None:
        """Count a batch."""
        program = event.kind.value
        self._batch_rows.labels(program).observe(event.rows)
        self._batch_seconds.labels(program).observe(event.seconds)
        self._padding.labels(program).inc(event.size - event.rows)

    def model_state(self, name: str, version: int, state: State, reason: str) -> None:  # noqa: ARG002 - not a label
        """Show the state that a version entered."""
        for each in State:
            self._model_state.labels(name, str(version), each.value).set(each is state)

    def model_refused(self, name: str, reason: str) -> None:  # noqa: ARG002 - not a label
        """Show a model that cannot be served."""
        self._models_refused.labels(name).set(1)

    def load_finished(self, name: str, version: int, seconds: float, *, ok: bool) -> None:  # noqa: ARG002 - not a label
        """Count a load."""
        self._load.labels(name, "ok" if ok else "failed").observe(seconds)

    def rpc_started(self, method: str, kind: str) -> None:
        """Count the start of an rpc."""
        self._rpc_started.labels(*_rpc(method, kind)).inc()

    def rpc_handled(self, method: str, kind: str, code: str, seconds: float) -> None:
        """Count the end of an rpc."""
        self._rpc_handled.labels(*_rpc(method, kind), code).inc()
        self._rpc_seconds.labels(*_rpc(method, kind)).observe(seconds)

    def message_received(self, method: str, kind: str) -> None:
        """Count a message from a client."""
        self._rpc_received.labels(*_rpc(method, kind)).inc()

    def message_sent(self, method: str, kind: str) -> None:
        """Count a message to a client."""
        self._rpc_sent.labels(*_rpc(method, kind)).inc()

    def _histogram(self, name: str, text: str) -> Histogram:
        return Histogram(name, text, EXPLANATION, buckets=SECONDS, registry=self.registry)


def _rpc(method: str, kind: str) -> tuple[str, str, str]:
    service, _, name = method.removeprefix("/").partition("/")
    return kind, service, name
