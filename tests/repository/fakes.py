"""A repository on disk without models, and what surrounds the manager: servables, loader, lane, events."""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from vitrail_server.events import RepositoryEvents
from vitrail_server.repository.directory import ModelDirectory, read_model_directory
from vitrail_server.repository.lifecycle import Version
from vitrail_server.repository.source import VersionSource
from vitrail_server.repository.state import State
from vitrail_server.servable import (
    Capabilities,
    Description,
    ImageSize,
    ModelSettings,
    OwnProgram,
    Program,
    Signature,
    TensorSpec,
    WindowGrid,
)
from vitrail_server.work import Kind, PredictRows

T = TypeVar("T")

SIGNATURE = Signature(
    inputs={"image": TensorSpec("image", "FP32", (-1, 4, 6, 3))},
    outputs={"scores": TensorSpec("scores", "FP32", (-1, 5))},
)


def write_model(
    repository: Path,
    name: str,
    *versions: int | str,
    config: str | None = None,
    files: Mapping[str, str] | None = None,
    add: bool = False,
) -> Path:
    """Write a model with empty SavedModels in Triton's layout and return its directory.

    `add`: the directory may be there already.
    """
    model = repository / name
    model.mkdir(parents=True, exist_ok=add)
    for version in versions:
        saved_model = model / str(version) / "model.savedmodel"
        saved_model.mkdir(parents=True)
        (saved_model / "saved_model.pb").touch()
    if config is not None:
        (model / "config.pbtxt").write_text(config)
    for path, text in (files or {}).items():
        (model / path).write_text(text)
    return model


def model_directory(
    tmp_path: Path, config: str | None = None, files: Mapping[str, str] | None = None
) -> ModelDirectory:
    """Write a model 'm' with version 1 and read its directory."""
    return read_model_directory("m", write_model(tmp_path, "m", 1, config=config, files=files))


class FakeServable:
    """Counts how often it is closed."""

    def __init__(self, name: str, version: int, closing_error: Exception | None = None) -> None:
        self.description = Description(
            name=name,
            version=version,
            signature=SIGNATURE,
            settings=ModelSettings(image_input="image"),
            task="REGRESSION",
            probabilities=frozenset(),
            output_elements={"scores": 5},
            capabilities=Capabilities(),
        )
        self.closed = 0
        self._closing_error = closing_error

    def program(self, kind: Kind, image_size: ImageSize) -> Program:
        raise AssertionError("nothing is computed here")

    def incremental(self, image_size: ImageSize, grid: WindowGrid) -> OwnProgram | None:
        raise AssertionError("nothing is computed here")

    def predictor(self, rows: PredictRows) -> Program:
        raise AssertionError("nothing is computed here")

    def close(self) -> None:
        self.closed += 1
        if self._closing_error is not None:
            raise self._closing_error


class FakeLoader:
    """Makes a FakeServable of every version but the broken ones."""

    def __init__(
        self,
        broken: Mapping[tuple[str, int], Exception] | None = None,
        closing_error: Exception | None = None,
    ) -> None:
        self.sources: list[VersionSource] = []
        self.servables: dict[tuple[str, int], FakeServable] = {}
        """The last life of each version."""
        self.lives: defaultdict[tuple[str, int], list[FakeServable]] = defaultdict(list)
        """Every life of each version."""
        self.broken = dict(broken or {})
        self._closing_error = closing_error

    def load(self, source: VersionSource) -> FakeServable:
        self.sources.append(source)
        key = (source.name, source.version)
        if key in self.broken:
            raise self.broken[key]
        self.servables[key] = FakeServable(*key, closing_error=self._closing_error)
        self.lives[key].append(self.servables[key])
        return self.servables[key]


class FakeLane:
    """Runs calls on the event loop, as many as were allowed."""

    def __init__(self, allowed: int = 1_000_000) -> None:
        self._permits = asyncio.Semaphore(allowed)
        self.waiting = 0
        """How many calls wait for being allowed."""

    def allow(self, calls: int = 100) -> None:
        for _ in range(calls):
            self._permits.release()

    async def run(self, call: Callable[[], T]) -> T:
        self.waiting += 1
        await self._permits.acquire()
        self.waiting -= 1
        return call()


class RecordedEvents:
    """Keeps what happened, and lets a test wait for it."""

    def __init__(self) -> None:
        self.states: list[tuple[str, int, State, str]] = []
        self.refused: list[tuple[str, str]] = []
        self.forgotten: list[tuple[str, int]] = []
        self.removed: list[str] = []
        self.reloads: list[tuple[str, bool]] = []
        self.loads: list[tuple[str, int, bool]] = []
        self.on_state: Callable[[str, int, State], None] = lambda name, version, state: None
        self._changed = asyncio.Event()

    def model_state(self, name: str, version: int, state: State, reason: str) -> None:
        self.states.append((name, version, state, reason))
        self.on_state(name, version, state)
        self._changed.set()

    def model_refused(self, name: str, reason: str) -> None:
        self.refused.append((name, reason))

    def version_forgotten(self, name: str, version: int) -> None:
        self.forgotten.append((name, version))
        self._changed.set()

    def model_removed(self, name: str) -> None:
        self.removed.append(name)
        self._changed.set()

    def reload_finished(self, name: str, *, ok: bool) -> None:
        self.reloads.append((name, ok))

    def load_finished(self, name: str, version: int, seconds: float, *, ok: bool) -> None:
        assert seconds >= 0
        self.loads.append((name, version, ok))

    def life(self, name: str, version: int) -> list[State]:
        return [state for model, number, state, _ in self.states if (model, number) == (name, version)]

    async def reached(self, name: str, version: int, state: State) -> None:
        await self.until(lambda: state in self.life(name, version))

    async def until(self, holds: Callable[[], bool]) -> None:
        while not holds():
            self._changed.clear()
            await self._changed.wait()


class OneLife:
    """Tells the events what one version of a model reports, where there is no model around it."""

    def __init__(self, events: RepositoryEvents, name: str = "m") -> None:
        self._events = events
        self._name = name

    def entered(self, version: Version) -> None:
        self._events.model_state(self._name, version.number, version.state, version.reason)

    def load_finished(self, version: Version, seconds: float, *, ok: bool) -> None:
        self._events.load_finished(self._name, version.number, seconds, ok=ok)
