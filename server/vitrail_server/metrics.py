"""Every Prometheus metric of the server: names, labels and buckets; nothing else imports the library.

`Metrics` receives the server's events. Label values are bounded: models and versions come from the
repository, never from a request, and the series of a version go when it ends. A counter begins at 0
when what it counts becomes possible, because Prometheus does not see the first step of a series that
begins at 1.
"""

import os
import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    start_http_server,
)

from vitrail.errors import Code
from vitrail_server.events import BatchExecuted, ExplanationEnded, InferenceEnded
from vitrail_server.repository.state import State
from vitrail_server.work import Kind

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
"""From a gradient of a small network to an occlusion of a large one, in seconds."""

ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
"""Batch sizes, in rows."""

Labelled = TypeVar("Labelled", Counter, Histogram)

VERSION = ("model", "version")
EXPLANATION = (*VERSION, "method")
RPC = ("grpc_type", "grpc_service", "grpc_method")
PROGRAM = ("program",)

NO_VERSION = ("", "")
"""Model and version of a request for what is not in the repository, or not any more."""

OUTCOMES = ("complete", "partial", *(code.name.lower() for code in Code))
RESULTS = ("done", "skipped", "dropped")
INFERENCE_OUTCOMES = ("complete", *(code.name.lower() for code in Code))


class Metrics:
    """The metrics of one server, in a registry of its own. All methods are for the event loop."""

    def __init__(self) -> None:
        # No second series, of when it began, beside every counter and histogram.
        disable_created_metrics()  # type: ignore[no-untyped-call]  # the library gives it no types
        self.registry = CollectorRegistry(auto_describe=True)
        self._methods: tuple[str, ...] = ()
        self._series: dict[tuple[Counter | Histogram, tuple[str, ...]], Any] = {}
        self._states: dict[tuple[str, str], State] = {}
        self._failed: set[tuple[str, str]] = set()
        self._define_explanations()
        self._define_inferences()
        self._define_device()
        self._define_models()
        self._define_rpcs()
        self._define_process()

    def _define_explanations(self) -> None:
        self._explanations = self._counter(
            "vitrail_explanations",
            "Explanations that ended, by outcome: complete, partial or a status code.",
            (*EXPLANATION, "outcome"),
        )
        self._in_flight = self._gauge(
            "vitrail_explanations_in_flight", "Explanations admitted and not ended."
        )
        self._limit = self._gauge(
            "vitrail_explanations_limit", "The most explanations in flight; more are refused."
        )
        self._duration = self._histogram(
            "vitrail_explanation_duration_seconds",
            "From a request's arrival to its last message.",
            EXPLANATION,
        )
        self._first_tile = self._histogram(
            "vitrail_explanation_first_tile_seconds",
            "From a request's arrival to its first tile.",
            EXPLANATION,
        )
        self._stage = self._histogram(
            "vitrail_explanation_stage_duration_seconds",
            "Where an explanation spent its time: decode, queue, device or write.",
            (*EXPLANATION, "stage"),
        )
        self._plans = self._counter(
            "vitrail_explanation_plans",
            "Explanations that came to a plan, by how it says that they are computed.",
            (*EXPLANATION, "execution"),
        )
        self._announced = self._counter(
            "vitrail_explanation_announced_evaluations",
            "Evaluations announced by the plans of explanations that ended.",
            EXPLANATION,
        )
        self._evaluations = self._counter(
            "vitrail_explanation_evaluations",
            "Announced evaluations by how they ended: done, skipped or dropped.",
            (*EXPLANATION, "result"),
        )
        self._tiles = self._counter("vitrail_explanation_tiles", "Tiles sent.", EXPLANATION)

    def _define_inferences(self) -> None:
        self._inferences = self._counter(
            "vitrail_inferences",
            "Inferences that ended, by outcome: complete or a status code.",
            (*VERSION, "outcome"),
        )
        self._inferences_in_flight = self._gauge(
            "vitrail_inferences_in_flight", "Inferences admitted and not ended."
        )
        self._inferences_limit = self._gauge(
            "vitrail_inferences_limit", "The most inferences in flight; more are refused."
        )
        self._inference_rows = self._counter(
            "vitrail_inference_rows", "Rows of the inferences that were answered.", VERSION
        )
        self._inference_duration = self._histogram(
            "vitrail_inference_duration_seconds", "From a request's arrival to its answer.", VERSION
        )
        self._inference_stage = self._histogram(
            "vitrail_inference_stage_duration_seconds",
            "Where an inference spent its time: decode, queue, device or encode.",
            (*VERSION, "stage"),
        )

    def _define_device(self) -> None:
        self._queue_depth = self._gauge(
            "vitrail_queue_depth", "Explanations and inferences with rows that wait for a place in a batch."
        )
        self._queue_wait = self._histogram(
            "vitrail_queue_wait_seconds",
            "From an explanation's entry into the queue until its first batch began or it was given up.",
            ("priority",),
        )
        self._batches = self._gauge(
            "vitrail_batches_in_flight", "Batches that the device computes or has before it."
        )
        self._incremental_caches = self._gauge(
            "vitrail_incremental_cache_bytes",
            "Memory set aside for the activations of clean images, in explanations computed incrementally.",
        )
        self._batch_rows = self._histogram(
            "vitrail_batch_rows", "Rows in one batch, without padding.", PROGRAM, ROWS
        )
        self._batch_seconds = self._histogram(
            "vitrail_batch_duration_seconds",
            "Duration of one batch, by the device that computed it.",
            (*PROGRAM, "device"),
        )
        self._padding = self._counter(
            "vitrail_batch_padding_rows", "Rows computed only to fill a batch's fixed shape.", PROGRAM
        )
        self._dropped_rows = self._counter(
            "vitrail_batch_dropped_rows",
            "Rows left out of their batch, because what they are for had ended.",
            PROGRAM,
        )
        self._batch_failures = self._counter(
            "vitrail_batch_failures",
            "Batches that failed, by reason: out_of_memory or error.",
            (*PROGRAM, "reason"),
        )
        for kind in Kind:
            self._batch_rows.labels(kind.value)
            self._padding.labels(kind.value)
            self._dropped_rows.labels(kind.value)
            for reason in ("out_of_memory", "error"):
                self._batch_failures.labels(kind.value, reason)

    def _define_models(self) -> None:
        self._model_state = self._gauge(
            "vitrail_model_state", "1 for the state that a version is in.", (*VERSION, "state")
        )
        self._model_memory = self._gauge(
            "vitrail_model_memory_bytes",
            "Memory that a version takes: what the server grew by while it was loaded, and its plans.",
            VERSION,
        )
        self._models_refused = self._gauge(
            "vitrail_model_refused", "1 for a model that cannot be served at all.", ("model",)
        )
        self._load = self._histogram(
            "vitrail_model_load_duration_seconds",
            "Loading and warming up one version, by outcome: ok or failed.",
            ("model", "outcome"),
        )

        self._reloads = self._counter(
            "vitrail_model_reloads",
            "Replacements of what a model serves, by outcome: ok or failed, which left what was there.",
            ("model", "outcome"),
        )

    def _define_rpcs(self) -> None:
        self._rpc_started = self._counter("grpc_server_started", "Rpcs begun.", RPC)
        self._rpc_handled = self._counter(
            "grpc_server_handled", "Rpcs ended, by status code.", (*RPC, "grpc_code")
        )
        self._rpc_received = self._counter("grpc_server_msg_received", "Messages received.", RPC)
        self._rpc_sent = self._counter("grpc_server_msg_sent", "Messages sent.", RPC)
        self._rpc_seconds = self._histogram(
            "grpc_server_handling_seconds", "From the start of an rpc to its end.", RPC
        )

    def _define_process(self) -> None:
        ProcessCollector(registry=self.registry)
        memory = self._gauge(
            "vitrail_memory_limit_bytes",
            "The most memory that the process may take: its container's limit, or the machine's memory.",
        )
        memory.set(memory_limit())
        build = self._gauge(
            "vitrail_build_info", "1; the labels say what runs.", ("version", "python", "tensorflow")
        )
        build.labels(
            _installed("vitrail"), platform.python_version(), _installed("tensorflow", "tensorflow-cpu")
        ).set(1)

    def serve(self, address: str, port: int) -> int:
        """Answer Prometheus on a thread of its own, and return the port."""
        self._server, _ = start_http_server(port, address, self.registry)
        return int(self._server.server_port)

    def close(self) -> None:
        """Stop answering Prometheus."""
        self._server.shutdown()
        self._server.server_close()

    def offered(self, methods: Iterable[str], max_explanations: int, max_inferences: int) -> None:
        """Show what the server offers: its methods, and how much may be in flight."""
        self._methods = tuple(methods)
        self._limit.set(max_explanations)
        self._inferences_limit.set(max_inferences)
        for outcome in INFERENCE_OUTCOMES:
            self._inferences.labels(*NO_VERSION, outcome)
        for outcome in OUTCOMES:
            self._explanations.labels(*NO_VERSION, "", outcome)

    def explanation_started(self) -> None:
        """Count an admitted explanation."""
        self._in_flight.inc()

    def explanation_ended(self, event: ExplanationEnded, *, admitted: bool) -> None:
        """Count the end of an explanation."""
        if admitted:
            self._in_flight.dec()
        of_version = (event.model, str(event.version))
        # A version may end before the last of its explanations does, whose map is being read.
        of = (*(of_version if of_version in self._states else NO_VERSION), event.method)
        self._of(self._explanations, *of, event.outcome).inc()
        self._of(self._duration, *of).observe(event.seconds)
        if event.first_tile_seconds is not None:
            self._of(self._first_tile, *of).observe(event.first_tile_seconds)
        if event.queue_seconds is not None and event.urgency is not None:
            self._of(self._queue_wait, event.urgency).observe(event.queue_seconds)
        for stage, seconds in (
            ("decode", event.decode_seconds),
            ("queue", event.queue_seconds),
            ("device", event.device_seconds),
            ("write", event.write_seconds),
        ):
            if seconds is not None:
                self._of(self._stage, *of, stage).observe(seconds)
        if event.execution:
            self._of(self._plans, *of, event.execution).inc()
        self._of(self._announced, *of).inc(event.announced)
        for result, count in zip(RESULTS, (event.done, event.skipped, event.dropped), strict=True):
            self._of(self._evaluations, *of, result).inc(count)
        self._of(self._tiles, *of).inc(event.tiles)

    def inference_started(self) -> None:
        """Count an admitted inference."""
        self._inferences_in_flight.inc()

    def inference_ended(self, event: InferenceEnded, *, admitted: bool) -> None:
        """Count the end of an inference."""
        if admitted:
            self._inferences_in_flight.dec()
        of_version = (event.model, str(event.version))
        of = of_version if of_version in self._states else NO_VERSION
        self._of(self._inferences, *of, event.outcome).inc()
        self._of(self._inference_duration, *of).observe(event.seconds)
        self._of(self._inference_rows, *of).inc(event.rows)
        for stage, seconds in (
            ("decode", event.decode_seconds),
            ("queue", event.queue_seconds),
            ("device", event.device_seconds),
            ("encode", event.encode_seconds),
        ):
            if seconds is not None:
                self._of(self._inference_stage, *of, stage).observe(seconds)

    def device_added(self, name: str) -> None:
        """Show a device's batches, from the first on."""
        for kind in Kind:
            self._of(self._batch_seconds, kind.value, name)

    def batch_executed(self, event: BatchExecuted) -> None:
        """Count a batch."""
        program = event.kind.value
        self._of(self._batch_rows, program).observe(event.rows)
        self._of(self._batch_seconds, program, event.device).observe(event.seconds)
        self._of(self._padding, program).inc(event.size - event.rows)

    def batch_failed(self, kind: Kind, *, out_of_memory: bool) -> None:
        """Count a batch that failed."""
        self._of(self._batch_failures, kind.value, "out_of_memory" if out_of_memory else "error").inc()

    def rows_dropped(self, kind: Kind, rows: int) -> None:
        """Count rows that were left out of their batch."""
        self._of(self._dropped_rows, kind.value).inc(rows)

    def queue_changed(self, waiting: int, batches: int) -> None:
        """Show what waits for the device, and what it has before it."""
        self._queue_depth.set(waiting)
        self._batches.set(batches)

    def incremental_caches(self, size: int) -> None:
        """Show the bytes set aside for activations of clean images."""
        self._incremental_caches.set(size)

    def model_state(self, name: str, version: int, state: State, reason: str) -> None:  # noqa: ARG002 - not a label
        """Show the state that a version entered; of one that has ended, only that it failed to load."""
        of = (name, str(version))
        if state is State.END:
            self._forget(of)
        else:
            self._states[of] = state
            self._failed.discard(of)
            self._models_refused.remove_by_labels({"model": name})
        if state is State.AVAILABLE:
            self._begin_at_zero(of)
        if of in self._states or of in self._failed:
            for each in State:
                self._model_state.labels(*of, each.value).set(each is state)

    def model_memory(self, name: str, version: int, size: int) -> None:
        """Show what a version adds to the server's memory; from any thread, until it is unloaded."""
        self._model_memory.labels(name, str(version)).set(size)

    def model_refused(self, name: str, reason: str) -> None:  # noqa: ARG002 - not a label
        """Show a model that cannot be served."""
        self._models_refused.labels(name).set(1)

    def version_forgotten(self, name: str, version: int) -> None:
        """Show a version no more that had failed."""
        of = (name, str(version))
        self._failed.discard(of)
        self._forget(of)

    def model_removed(self, name: str) -> None:
        """Show a model no more."""
        for metric in (self._models_refused, self._load, self._reloads):
            metric.remove_by_labels({"model": name})

    def reload_finished(self, name: str, *, ok: bool) -> None:
        """Count a replacement of what a model serves."""
        self._reloads.labels(name, "ok" if ok else "failed").inc()

    def load_finished(self, name: str, version: int, seconds: float, *, ok: bool) -> None:
        """Count a load."""
        self._load.labels(name, "ok" if ok else "failed").observe(seconds)
        of = (name, str(version))
        if not ok and self._states.get(of) is State.LOADING:  # else it is being unloaded, so nobody misses it
            self._failed.add(of)

    def rpc_started(self, method: str, kind: str) -> None:
        """Count the start of an rpc."""
        self._of(self._rpc_started, *_rpc(method, kind)).inc()

    def rpc_handled(self, method: str, kind: str, code: str, seconds: float) -> None:
        """Count the end of an rpc."""
        self._of(self._rpc_handled, *_rpc(method, kind), code).inc()
        self._of(self._rpc_seconds, *_rpc(method, kind)).observe(seconds)

    def message_received(self, method: str, kind: str) -> None:
        """Count a message from a client."""
        self._of(self._rpc_received, *_rpc(method, kind)).inc()

    def message_sent(self, method: str, kind: str) -> None:
        """Count a message to a client."""
        self._of(self._rpc_sent, *_rpc(method, kind)).inc()

    def _of(self, metric: Labelled, *labels: str) -> Labelled:
        """Return the series of a metric with these labels.

        Remembered, because the library's own way there takes as long as all counting: an explanation goes it
        24 times, which was a tenth of what Python does for a small gradient.
        """
        series: Labelled | None = self._series.get((metric, labels))
        if series is None:
            series = self._series[metric, labels] = metric.labels(*labels)
        return series

    def _begin_at_zero(self, of: tuple[str, str]) -> None:
        self._inference_rows.labels(*of)
        for outcome in INFERENCE_OUTCOMES:
            self._inferences.labels(*of, outcome)
        for outcome in ("ok", "failed"):
            self._reloads.labels(of[0], outcome)
        for method in self._methods:
            self._announced.labels(*of, method)
            self._tiles.labels(*of, method)
            for outcome in OUTCOMES:
                self._explanations.labels(*of, method, outcome)
            for result in RESULTS:
                self._evaluations.labels(*of, method, result)

    def _forget(self, of: tuple[str, str]) -> None:
        """Remove the series of a version, and with a model's last one those of the model."""
        self._states.pop(of, None)
        self._series.clear()
        model, number = of
        for metric in (
            self._explanations,
            self._duration,
            self._first_tile,
            self._stage,
            self._plans,
            self._announced,
            self._evaluations,
            self._tiles,
            self._inferences,
            self._inference_rows,
            self._inference_duration,
            self._inference_stage,
            self._model_state,
            self._model_memory,
        ):
            metric.remove_by_labels({"model": model, "version": number})
        if all(name != model for name, _ in (*self._states, *self._failed)):
            self._load.remove_by_labels({"model": model})
            self._reloads.remove_by_labels({"model": model})

    def _counter(self, name: str, text: str, labels: tuple[str, ...]) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Gauge:
        return Gauge(name, text, labels, registry=self.registry)

    def _histogram(
        self, name: str, text: str, labels: tuple[str, ...], buckets: tuple[float, ...] = SECONDS
    ) -> Histogram:
        return Histogram(name, text, labels, buckets=buckets, registry=self.registry)


def memory_limit(control_groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the bytes of memory that this process may take: its container's limit, or the machine's memory.

    0 where the system tells neither.
    """
    try:
        machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError):  # Windows has no such function, others not these values
        return 0
    for file in ("memory.max", "memory/memory.limit_in_bytes"):  # version 2, version 1
        try:
            return min(machine, int((control_groups / file).read_text()))
        except (OSError, ValueError):  # none of this version, or "max"
            continue
    return machine


def _installed(*distributions: str) -> str:
    """Return the version of the first of these that is installed; empty: none is."""
    for name in distributions:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return ""


def _rpc(method: str, kind: str) -> tuple[str, str, str]:
    service, _, name = method.removeprefix("/").partition("/")
    return kind, service, name
