"""A whole server without TensorFlow: real sockets in front, closed-form models behind.

`served(directory, {"name": Offer(...)})` writes a repository, runs a `Server` whose loader makes fakes,
and gives a channel, the stubs and the metrics. An `Offer` has a `Gate` that can hold back its batches,
so that a test decides what happens while an explanation is being computed.
"""

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.request import urlopen

import grpc
from grpc_health.v1.health_pb2_grpc import HealthStub
from prometheus_client.parser import text_string_to_metric_families

from fakes.models import Model
from fakes.servables import FakeProgram, describe
from vitrail.v1.explanation_pb2_grpc import ExplanationServiceStub
from vitrail.v1.model_pb2_grpc import ModelServiceStub
from vitrail_server.events import ExplanationEnded
from vitrail_server.metrics import Metrics
from vitrail_server.repository.source import VersionSource
from vitrail_server.savedmodel.predict import Predictors
from vitrail_server.savedmodel.programs import ForwardFunction
from vitrail_server.savedmodel.rows import Arrays
from vitrail_server.servable import Description, ImageSize, OwnProgram, Program, WindowGrid
from vitrail_server.server import Server
from vitrail_server.settings import Settings
from vitrail_server.work import Kind, PredictRows, Result, Rows, Subject

if TYPE_CHECKING:
    from vitrail.v1.explanation_pb2_grpc import ExplanationServiceAsyncStub
    from vitrail.v1.model_pb2_grpc import ModelServiceAsyncStub

ADDRESS = "127.0.0.1"


class Gate:
    """Holds back the batches of a model: each one passes when it is let through, or once the gate is open.

    Made and used on the event loop, passed on the device's thread.
    """

    def __init__(self, *, is_open: bool = True) -> None:
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self._condition = threading.Condition()
        self._open = is_open
        self._permits = 0
        self._arrived = 0

    def pass_through(self) -> None:
        """Wait for a permit, or until the gate is open. On the device's thread."""
        with self._condition:
            self._arrived += 1
            self._loop.call_soon_threadsafe(self._changed.set)
            self._condition.wait_for(lambda: self._open or self._permits)
            self._permits -= not self._open

    def let_through(self, batches: int = 1) -> None:
        """Let some batches through."""
        with self._condition:
            self._permits += batches
            self._condition.notify_all()

    def open(self) -> None:
        """Let every batch through from now on."""
        with self._condition:
            self._open = True
            self._condition.notify_all()

    async def reached(self, batches: int) -> None:
        """Return when this many batches have come to the gate, those let through included."""
        while self._arrived < batches:
            self._changed.clear()
            await self._changed.wait()


class GatedProgram(FakeProgram):
    """A program whose batches pass a gate first, and which remembers the images it saw."""

    def __init__(self, model: Model, kind: Kind, batch_size: int, gate: Gate | None) -> None:
        super().__init__(model, kind, batch_size, seconds=0.001)
        self.subjects: list[Subject] = []
        """The image of every part of every batch."""
        self._gate = gate

    def execute(self, parts: Sequence[Rows]) -> list[Result]:
        self.subjects += [part.subject for part in parts if not isinstance(part, PredictRows)]
        if self._gate is not None:
            self._gate.pass_through()
        return super().execute(parts)


@dataclass(kw_only=True)
class Offer:
    """A model to serve; what a version is loaded from, and what became of it."""

    model: Model
    description: Description | None = None
    """None: a regressor of the model's shape. Name and version are replaced by those of the repository."""
    versions: tuple[int, ...] = (1,)
    config: str = ""
    """The text of config.pbtxt; empty: there is none."""
    batch_size: int = 4
    gate: Gate | None = None
    predict: ForwardFunction | None = None
    """What answers an inference that the programs of explanations cannot take. None: nothing does."""
    on_load: Callable[[], None] = lambda: None
    """Called on the loading lane before a version is made; may wait or raise."""
    servables: dict[int, "FakeServable"] = field(default_factory=dict)

    def write(self, directory: Path) -> None:
        """Write the model's directory, with empty SavedModels."""
        for version in self.versions:
            saved_model = directory / str(version) / "model.savedmodel"
            saved_model.mkdir(parents=True)
            (saved_model / "saved_model.pb").touch()
        if self.config:
            (directory / "config.pbtxt").write_text(self.config)

    def load(self, source: VersionSource) -> "FakeServable":
        self.on_load()
        description = self.description or describe(self.model.shape, self.model.elements)
        self.servables[source.version] = FakeServable(
            replace(description, name=source.name, version=source.version), self
        )
        return self.servables[source.version]

    def program(self, kind: Kind, version: int = 1) -> GatedProgram:
        """Return the program of a version."""
        return self.servables[version].programs[kind]


class FakeServable:
    """One loaded version of an offer."""

    def __init__(self, description: Description, offer: Offer) -> None:
        self.description = description
        self.programs = {kind: GatedProgram(offer.model, kind, offer.batch_size, offer.gate) for kind in Kind}
        self.batches: list[int] = []
        """The rows of every batch that `Offer.predict` answered."""
        self.closed = 0
        self._offer = offer
        self._predictors = Predictors(
            self._predict, max(1, description.settings.max_request_batch), seconds=0.001
        )

    def program(self, kind: Kind, image_size: ImageSize) -> GatedProgram:
        assert image_size in self.description.image_sizes
        return self.programs[kind]

    def incremental(self, image_size: ImageSize, grid: WindowGrid) -> OwnProgram | None:
        return None

    def predictor(self, rows: PredictRows) -> Program:
        described = self.description
        explained = described.settings.image_input is not None and rows.batched
        if explained and set(rows.outputs) <= described.output_elements.keys():
            return self.programs[Kind.FORWARD]
        return self._predictors.program(rows)

    def _predict(self, arrays: Arrays, wanted: Collection[str]) -> Arrays:
        assert self._offer.predict is not None
        if self._offer.gate is not None:
            self._offer.gate.pass_through()
        self.batches.append(max((len(array) for array in arrays.values() if array.ndim), default=1))
        return {name: array for name, array in self._offer.predict(arrays, wanted).items() if name in wanted}

    def close(self) -> None:
        self.closed += 1


@dataclass(frozen=True)
class FakeLoader:
    """Makes the servables of some offers, by model name."""

    offers: Mapping[str, Offer]

    def load(self, source: VersionSource) -> FakeServable:
        return self.offers[source.name].load(source)


class WatchedMetrics(Metrics):
    """The server's metrics, which also let a test wait for what they count."""

    def __init__(self) -> None:
        super().__init__()
        self.ended: list[ExplanationEnded] = []
        self.handled: list[tuple[str, str]] = []
        """The method and the status code of every rpc that ended."""
        self.received: Counter[str] = Counter()
        """Messages from clients, by method."""
        self._changed = asyncio.Event()

    def explanation_ended(self, event: ExplanationEnded, *, admitted: bool) -> None:
        super().explanation_ended(event, admitted=admitted)
        self.ended.append(event)
        self._changed.set()

    def rpc_handled(self, method: str, kind: str, code: str, seconds: float) -> None:
        super().rpc_handled(method, kind, code, seconds)
        self.handled.append((method.rpartition("/")[2], code))
        self._changed.set()

    def message_received(self, method: str, kind: str) -> None:
        super().message_received(method, kind)
        self.received[method.rpartition("/")[2]] += 1
        self._changed.set()

    def close(self) -> None:
        # The standard library's server looks only twice a second whether it should stop.
        threading.Thread(target=super().close).start()

    async def until(self, holds: Callable[[], bool]) -> None:
        """Return when `holds` is true: asked again after every message, and every end of a map or rpc."""
        while not holds():
            self._changed.clear()
            await self._changed.wait()


Labels = frozenset[tuple[str, str]]


@dataclass(frozen=True)
class Scrape:
    """What Prometheus reads, by name and labels."""

    samples: Mapping[tuple[str, Labels], float]

    def value(self, name: str, **labels: str) -> float:
        """Return one sample; 0 where there is none."""
        return self.samples.get((name, frozenset(labels.items())), 0.0)

    def total(self, name: str, **labels: str) -> float:
        """Return the sum of the samples that have these labels, among others."""
        wanted = frozenset(labels.items())
        return sum(value for (each, has), value in self.samples.items() if each == name and wanted <= has)

    def values_of(self, label: str) -> set[str]:
        """Return every value that a label has anywhere."""
        return {value for _, labels in self.samples for name, value in labels if name == label}


@dataclass(frozen=True)
class Served:
    """A running server and a connection to it."""

    server: Server
    metrics: WatchedMetrics
    offers: Mapping[str, Offer]
    channel: grpc.aio.Channel

    @property
    def target(self) -> str:
        """Where it listens."""
        return f"{ADDRESS}:{self.server.grpc_port}"

    @property
    def explanations(self) -> "ExplanationServiceAsyncStub":
        """The stub of the ExplanationService."""
        return ExplanationServiceStub(self.channel)

    @property
    def models(self) -> "ModelServiceAsyncStub":
        """The stub of the ModelService."""
        return ModelServiceStub(self.channel)

    @property
    def health(self) -> Any:
        """The stub of the health service, which has no types."""
        return HealthStub(self.channel)

    async def scrape(self) -> Scrape:
        """Return what Prometheus would read now."""
        url = f"http://{ADDRESS}:{self.server.metrics_port}/metrics"
        text = await asyncio.to_thread(lambda: urlopen(url).read().decode())
        return Scrape(
            {
                (sample.name, frozenset(sample.labels.items())): sample.value
                for family in text_string_to_metric_families(text)
                for sample in family.samples
            }
        )

    async def at_rest(self, ended: int) -> Scrape:
        """Return what Prometheus reads once this many explanations have ended, and nothing is held."""
        await self.metrics.until(lambda: len(self.metrics.ended) >= ended)
        scrape = await self.scrape()
        assert scrape.value("vitrail_explanations_in_flight") == 0
        assert self.server._admission.in_flight == 0
        assert self.server._admission.upload_bytes == 0
        return scrape


def settings_of(repository: Path, **settings: Any) -> Settings:
    """Return settings with free ports on this machine only."""
    return Settings(
        model_repository=(repository,),
        **{
            "grpc_address": ADDRESS,
            "metrics_address": ADDRESS,
            "grpc_port": 0,
            "metrics_port": 0,
            "exit_timeout_secs": 10.0,
            "model_control_mode": "explicit",  # so that a test can unload and load
            "load_model": ("*",),
            **settings,
        },
    )


@asynccontextmanager
async def served(
    directory: Path, offers: Mapping[str, Offer], *, load: bool = True, **settings: Any
) -> AsyncIterator[Served]:
    """Run a server with a repository of these models, below `directory`.

    `load` waits until they are loaded; else the test does so itself.
    """
    repository = directory / "repository"
    repository.mkdir()
    for name, offer in offers.items():
        offer.write(repository / name)
    metrics = WatchedMetrics()
    async with Server(settings_of(repository, **settings), FakeLoader(offers), metrics) as server:
        if load:
            await server.load()
        try:
            async with grpc.aio.insecure_channel(f"{ADDRESS}:{server.grpc_port}") as channel:
                yield Served(server, metrics, offers, channel)
        finally:
            for offer in offers.values():
                if offer.gate is not None:
                    offer.gate.open()
