"""Written models and loaded ones, shared by the tests of this directory."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pytest

import saved_models
from vitrail_server.savedmodel.incremental.budget import CacheBudget
from vitrail_server.savedmodel.loader import Planning, SavedModelLoader
from vitrail_server.savedmodel.probe import Run
from vitrail_server.savedmodel.separate import Aside, SeparateLoader
from vitrail_server.servable import ModelSettings, Servable

T = TypeVar("T")


class Saved(Protocol):
    """Writes a model on first use and returns where it is."""

    def __call__(self, name: str, *args: Any, **kwargs: Any) -> Path: ...


class Load(Protocol):
    """Loads what is at a path; the settings are those of `ModelSettings`."""

    def __call__(self, path: Path, **settings: Any) -> Servable: ...


class DeviceThread:
    """A device that is never busy: `run` executes on a thread of its own, and counts."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1)
        self.ident = self._executor.submit(threading.get_ident).result()
        self.calls = 0

    def run(self, execute: Callable[[], T], /) -> T:
        self.calls += 1
        return self._executor.submit(execute).result()

    def close(self) -> None:
        self._executor.shutdown()


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    directory = tmp_path_factory.mktemp("saved_models")
    written: dict[str, Path] = {}

    def write(name: str, *args: Any, **kwargs: Any) -> Path:
        key = f"{name}{args}{kwargs}"
        if key not in written:
            path = directory / str(len(written))
            getattr(saved_models, name)(path, *args, **kwargs)
            written[key] = path
        return written[key]

    return write


@pytest.fixture(scope="session")
def swish(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model without its custom gradients, written where they cannot be remembered: in another process."""
    path = tmp_path_factory.mktemp("swish") / "model"
    tests = Path(saved_models.__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": str(tests), "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-m", "saved_models", "swish_without_gradient", str(path)]
    subprocess.run(command, check=True, env=environment, capture_output=True)
    return path


@pytest.fixture(scope="session")
def device() -> Iterator[DeviceThread]:
    thread = DeviceThread()
    yield thread
    thread.close()


@pytest.fixture(scope="session")
def load(device: DeviceThread) -> Load:
    """Load a model; the same servable for the same path and settings."""
    loaded: dict[str, Servable] = {}

    def load_once(path: Path, **settings: Any) -> Servable:
        key = f"{path}{settings}"
        if key not in loaded:
            loaded[key] = load_model(path, device.run, **settings)
        return loaded[key]

    return load_once


def at_once(prepare: Callable[[], None]) -> None:
    """A background that is in front."""
    prepare()


def loader_of(**settings: Any) -> SavedModelLoader:
    """Return a loader that makes plans of incremental occlusions at once, and keeps little for them."""

    bounds = {"time_slice": 1000.0, "batch_bytes": 1 << 18, **settings}
    background = bounds.pop("background", at_once)
    caches = bounds.pop("caches", None) or CacheBudget(1 << 24, Caches())
    clock = bounds.get("clock", time.perf_counter)
    planning = Planning(background, caches, bounds["time_slice"], clock)
    return SavedModelLoader(planning=planning, **bounds)


def separate_loader(aside: Aside | None = None) -> SeparateLoader:
    """Return a loader whose process is waited for `aside`; None: by a thread for each process."""
    caches = CacheBudget(1 << 24, Caches())
    return SeparateLoader(time_slice=1000, batch_bytes=1 << 18, caches=caches, aside=aside or _on_a_thread)


def _on_a_thread(wait: Callable[[], object]) -> None:
    threading.Thread(target=wait).start()


class Caches:
    """Counts what is set aside for activations."""

    def __init__(self) -> None:
        self.sizes = [0]

    def incremental_caches(self, size: int) -> None:
        self.sizes.append(size)


def load_model(path: Path, run: Run, **settings: Any) -> Servable:
    """Load a model by a clock on which every batch takes as long, so that memory alone bounds its size."""
    ticks = count()
    loader = loader_of(time_slice=1000, batch_bytes=1 << 18, clock=lambda: float(next(ticks)))
    return loader.load(
        name="tested",
        version=3,
        path=path,
        complete=lambda signature: (signature, ModelSettings(**{"image_input": "image", **settings})),
        run=run,
    )
