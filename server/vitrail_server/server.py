"""Builds the server from its parts, runs it, and takes it down in order.

build   lanes, devices, manager, services, metrics
start   the ports open at once; then the models are loaded; then health says SERVING
drain   health says NOT_SERVING, nothing new is admitted, what is in flight may end
stop    rpcs, models, devices, lanes
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Self, TypeVar

import grpc
from grpc_health.v1 import health_pb2_grpc

from vitrail.errors import FailedPrecondition, VitrailError
from vitrail.v1 import explanation_pb2, explanation_pb2_grpc, model_pb2, model_pb2_grpc
from vitrail_server.events import ExplanationEnded, InferenceEnded
from vitrail_server.explainers.question import Limits
from vitrail_server.footprint import Footprint, Footprints
from vitrail_server.inference.warmup import warm_up
from vitrail_server.logs import log_explanation, log_inference
from vitrail_server.metrics import Metrics
from vitrail_server.repository.completion import served
from vitrail_server.repository.control import Control
from vitrail_server.repository.instances import devices_of
from vitrail_server.repository.lifecycle import UNLOADED, Lanes
from vitrail_server.repository.manager import Manager
from vitrail_server.repository.repositories import Repositories
from vitrail_server.repository.source import Loader, VersionSource
from vitrail_server.repository.state import State
from vitrail_server.repository.warmup import rows_of
from vitrail_server.rpc import reflection
from vitrail_server.rpc.admission import Admission
from vitrail_server.rpc.boundary import Boundary
from vitrail_server.rpc.codec import METHODS
from vitrail_server.rpc.conversation import StreamLimits
from vitrail_server.rpc.explanation_service import ExplanationService
from vitrail_server.rpc.health import Health
from vitrail_server.rpc.inference.explain import Explanations
from vitrail_server.rpc.inference.handlers import SERVICE as INFERENCE_SERVICE
from vitrail_server.rpc.inference.handlers import add_to_server as add_inference_service
from vitrail_server.rpc.inference.infer import InferenceEngine
from vitrail_server.rpc.inference.service import InferenceService
from vitrail_server.rpc.model_service import ModelService
from vitrail_server.rpc.ports import obstacle, place, refusal
from vitrail_server.rpc.session import Engine
from vitrail_server.rpc.tls import server_credentials
from vitrail_server.rpc.tokens import read_tokens
from vitrail_server.runtime.devices import FIRST, Devices, Instance, Replicated
from vitrail_server.runtime.lane import Lane
from vitrail_server.savedmodel.incremental.budget import CacheBudget
from vitrail_server.savedmodel.separate import SeparateLoader
from vitrail_server.servable import Servable
from vitrail_server.settings import Settings

T = TypeVar("T")
log = logging.getLogger(__name__)

SERVICES = (
    explanation_pb2.DESCRIPTOR.services_by_name["ExplanationService"].full_name,
    INFERENCE_SERVICE,
    model_pb2.DESCRIPTOR.services_by_name["ModelService"].full_name,
)
LARGEST_FRAME = 1 << 20
"""Bytes of the largest HTTP/2 frame that clients may send; the default of 16 KiB is the least possible."""

HEALTH_SERVICE = "grpc.health.v1.Health"

LAST_WORDS = 1.0
"""Seconds in which the last messages of explanations that have ended reach their readers at shutdown."""


class Server:
    """One server process. `async with` starts it, without waiting for its models, and stops it."""

    def __init__(
        self, settings: Settings, loader: Loader | None = None, metrics: Metrics | None = None
    ) -> None:
        """`loader` makes the servables; None: TensorFlow's. `metrics` None: new ones."""
        self._settings = settings
        self._loader = loader
        self._metrics = metrics or Metrics()

    async def __aenter__(self) -> Self:
        """Open the ports.

        Raises:
            FailedPrecondition: a port cannot be had, or the token file cannot be used.

        """
        settings = self._settings
        self._metrics.offered(METHODS, settings.max_explanations, settings.max_inferences)
        self._health = Health(SERVICES, settings.write_timeout_secs)
        self._devices = Devices(self._metrics)
        self._loading, self._repository, self._decoding = (
            Lane("loading"),
            Lane("repository"),
            Lane("decoding"),
        )
        self._planning = Lane("planning")
        self._reaping = Lane("reaping")
        caches = CacheBudget(settings.incremental_cache_bytes, self._metrics)
        self._admission = Admission(
            settings.max_explanations, settings.max_inferences, settings.max_upload_bytes
        )
        self._polling: asyncio.Task[None] | None = None
        self._tensorflow = _TensorFlowLoader(
            settings, self._devices, self._planning, self._reaping, caches, self._metrics
        )
        self.manager = Manager(
            Repositories(settings.model_repository, settings.model_config_name or ""),
            self._loader or self._tensorflow,
            Lanes(loading=self._loading, repository=self._repository),
            _Reports(self._metrics, self._health),
            Control(settings.model_control_mode, settings.load_model),
        )
        self._rpc = self._build_rpc()
        self.grpc_port = self._bind()
        self.metrics_port = self._serve_metrics()
        await self._rpc.start()
        log.info("rpcs on %s", place(settings.grpc_address, self.grpc_port))
        log.info("metrics on http://%s/metrics", place(settings.metrics_address, self.metrics_port))
        return self

    async def load(self) -> bool:
        """Load what is served from the start, then say that the server is ready; False if anything failed."""
        well = await self.manager.start()
        self._health.ready()
        if self.manager.control_mode == "poll":
            self._polling = asyncio.create_task(
                self.manager.keep_polling(self._settings.repository_poll_secs)
            )
        return well

    async def __aexit__(self, *_: object) -> None:
        """Let what is in flight end, for a while, then take everything down."""
        await self._drain()
        if self._polling is not None:
            self._polling.cancel()
        self._tensorflow.close()
        await self.manager.close()
        self._devices.close()
        for lane in (self._loading, self._planning, self._reaping, self._repository, self._decoding):
            # What runs there may ask the device for something, and it is the event loop that says no.
            await asyncio.to_thread(lane.close)
        self._metrics.close()

    async def _drain(self) -> None:
        """Take no more calls, wait for what is being computed, then end the calls that are left.

        Those are streams on which nothing is being explained, and readers that have stopped.
        """
        timeout = self._settings.exit_timeout_secs
        self._admission.draining = True
        self._health.draining()
        stopping = asyncio.create_task(self._rpc.stop(timeout))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._admission.emptied()
        await self._rpc.stop(min(LAST_WORDS, timeout))
        await stopping

    def _build_rpc(self) -> grpc.aio.Server:
        settings = self._settings
        engine = Engine(
            manager=self.manager,
            devices=self._devices,
            decoding=self._decoding,
            admission=self._admission,
            events=_ExplanationReports(self._metrics),
            limits=Limits(targets=settings.max_targets, scores=settings.max_scores),
            max_image_pixels=settings.max_image_pixels,
        )
        stream_limits = StreamLimits(
            settings.max_explanations_per_stream, settings.max_message_bytes, settings.upload_timeout_secs
        )
        tokens = read_tokens(settings.token_file) if settings.token_file else None
        server = grpc.aio.server(
            interceptors=[Boundary(self._metrics, tokens)],
            options=[
                ("grpc.max_receive_message_length", settings.max_message_bytes),
                # A second server on the same port is a mistake, not a silent partner.
                ("grpc.so_reuseport", 0),
                # Images come in few large pieces rather than in dozens of small ones: 1 ms less for 600 KB.
                ("grpc.http2.max_frame_size", LARGEST_FRAME),
                ("grpc.http2.lookahead_bytes", LARGEST_FRAME),
                ("grpc.experimental.tcp_min_read_chunk_size", LARGEST_FRAME // 4),
                ("grpc.experimental.tcp_max_read_chunk_size", 4 * LARGEST_FRAME),
            ],
        )
        explanation_pb2_grpc.add_ExplanationServiceServicer_to_server(
            ExplanationService(engine, stream_limits, settings.write_timeout_secs), server
        )
        model_pb2_grpc.add_ModelServiceServicer_to_server(ModelService(self.manager), server)
        add_inference_service(self._inference_service(engine), server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        reflection.enable((*SERVICES, HEALTH_SERVICE), server)
        return server

    def _inference_service(self, engine: Engine) -> InferenceService:
        settings = self._settings
        inferences = InferenceEngine(
            manager=self.manager,
            devices=self._devices,
            decoding=self._decoding,
            admission=self._admission,
            events=_InferenceReports(self._metrics),
        )
        explanations = Explanations(engine, inferences, settings.max_message_bytes)
        return InferenceService(
            inferences, explanations, lambda: self._health.is_ready, settings.write_timeout_secs
        )

    def _bind(self) -> int:
        settings = self._settings
        address, port = settings.grpc_address, settings.grpc_port
        credentials = server_credentials(settings)
        try:
            if credentials is None:
                return self._rpc.add_insecure_port(place(address, port))
            return self._rpc.add_secure_port(place(address, port), credentials)
        except RuntimeError as error:
            if (fault := obstacle(address, port)) is not None:
                raise refusal("grpc", address, port, fault) from error
            if credentials is None:
                raise FailedPrecondition(f"--grpc-port: {place(address, port)} cannot be had") from error
            raise FailedPrecondition(
                f"--grpc-server-key: {settings.grpc_server_key} is not the key of "
                f"{settings.grpc_server_cert}, or one of them is not in PEM"
            ) from error

    def _serve_metrics(self) -> int:
        settings = self._settings
        try:
            return self._metrics.serve(settings.metrics_address, settings.metrics_port)
        except OSError as error:
            raise refusal("metrics", settings.metrics_address, settings.metrics_port, error) from error


@dataclass(frozen=True, slots=True)
class _ExplanationReports:
    """Tells metrics and log how explanations end."""

    metrics: Metrics

    def explanation_started(self) -> None:
        """Report an admitted explanation."""
        self.metrics.explanation_started()

    def explanation_ended(self, event: ExplanationEnded, *, admitted: bool) -> None:
        """Report the end of an explanation."""
        self.metrics.explanation_ended(event, admitted=admitted)
        log_explanation(event)


@dataclass(frozen=True, slots=True)
class _InferenceReports:
    """Tells metrics and log how inferences end."""

    metrics: Metrics

    def inference_started(self) -> None:
        """Report an admitted inference."""
        self.metrics.inference_started()

    def inference_ended(self, event: InferenceEnded, *, admitted: bool) -> None:
        """Report the end of an inference."""
        self.metrics.inference_ended(event, admitted=admitted)
        log_inference(event)


@dataclass(frozen=True, slots=True)
class _Reports:
    """Tells metrics and health what happens to the models."""

    metrics: Metrics
    health: Health

    def model_state(self, name: str, version: int, state: State, reason: str) -> None:
        """Note that a version entered a state."""
        (log.error if state is State.END and reason != UNLOADED else log.info)(
            "model %s version %d: %s%s", name, version, state, f" ({reason})" if reason else ""
        )
        self.metrics.model_state(name, version, state, reason)
        self.health.model_state(name, version, state)

    def version_forgotten(self, name: str, version: int) -> None:
        """Note that a version is not spoken of any more."""
        self.metrics.version_forgotten(name, version)

    def model_removed(self, name: str) -> None:
        """Note that a model is not in the repository any more."""
        log.info("model %s is not in the repository any more", name)
        self.metrics.model_removed(name)
        self.health.model_removed(name)

    def reload_finished(self, name: str, *, ok: bool) -> None:
        """Note that what a model serves was replaced, or could not be."""
        self.metrics.reload_finished(name, ok=ok)

    def model_refused(self, name: str, reason: str) -> None:
        """Note that a model as a whole cannot be served."""
        self.metrics.model_refused(name, reason)
        self.health.model_refused(name)

    def load_finished(self, name: str, version: int, seconds: float, *, ok: bool) -> None:
        """Note that loading a version ended."""
        log.info("model %s version %d: %s in %.1f s", name, version, "loaded" if ok else "failed", seconds)
        self.metrics.load_finished(name, version, seconds, ok=ok)


class _TensorFlowLoader:
    """Loads versions with TensorFlow, which is imported when the first one is: the ports are open by then."""

    def __init__(
        self,
        settings: Settings,
        devices: Devices,
        planning: Lane,
        reaping: Lane,
        caches: CacheBudget,
        metrics: Metrics,
    ) -> None:
        self._settings = settings
        self._footprints = Footprints(metrics.model_memory)
        self._planning = planning
        self._devices = devices
        self._settled: set[str] = set()
        self._loader = SeparateLoader(
            time_slice=settings.time_slice_secs,
            batch_bytes=settings.batch_memory_bytes,
            caches=caches,
            aside=reaping.submit,
            intra_op_threads=settings.intra_op_threads,
            inter_op_threads=settings.inter_op_threads,
        )

    def load(self, source: VersionSource) -> Servable:
        """Load a version on each of its devices and warm it up (`repository.source.Loader`)."""
        self._loader.start()
        from vitrail_server.savedmodel.platform import configure, count_gpus

        configure(self._settings.intra_op_threads, self._settings.inter_op_threads)
        names = devices_of(source.config.instances, source.name, count_gpus())
        instances: list[Instance] = []
        footprint = self._footprints.begun(source.name, source.version)
        try:
            for name in names:
                # What a GPU does has to be measured there, and two processes would share its memory badly;
                # and the maps of all instances have the same bits, so all are made in the same way.
                servable = self._load_on(name, source, footprint, separate=names == (FIRST,))
                instances.append(Instance(name, servable))
        except BaseException:
            for each in instances:
                each.servable.close()
            raise
        self._footprints.loaded(source.name, source.version, footprint)
        return Replicated(instances)

    def _load_on(
        self, device: str, source: VersionSource, footprint: Footprint, *, separate: bool = False
    ) -> Servable:
        from vitrail_server.savedmodel.platform import computing_on, settle_on

        def run(chore: Callable[[], T]) -> T:
            return self._devices.call_on(device, chore)

        def plan(prepare: Callable[[], None]) -> object:
            return self._planning.submit(on_device, prepare)

        def on_device(prepare: Callable[[], None]) -> None:
            with computing_on(device):
                prepare()

        settings = self._settings
        if device not in self._settled:
            run(partial(settle_on, device))
            self._settled.add(device)
        with computing_on(device):
            servable = self._loader.load(
                name=source.name,
                version=source.version,
                path=source.saved_model,
                complete=partial(
                    served, source.config, default_max_batch_size=settings.default_max_batch_size
                ),
                run=run,
                background=plan,
                report=partial(footprint.report, device),
                separate=separate,
            )
        try:
            for sample in source.config.warmup:
                rows = partial(rows_of, sample, servable.description, source.warmup)
                warm_up(servable, sample.name, sample.count, rows, run)
        except VitrailError:
            servable.close()
            raise
        return servable

    def close(self) -> None:
        """End the process that prepares models; from any thread."""
        self._loader.close()
