"""The served side: a server in a process of its own, and what its client sees."""

import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import vitrail
from benchmarks.machine import Cores, pin, processor_seconds
from benchmarks.models import PROJECT
from benchmarks.timing import Cost, Stopwatch

STARTUP_SECONDS = 600.0
"""How long loading the models may take on a machine that is slow or busy."""

EXIT_SECONDS = 30.0
"""How long the server may take to stop."""

LOG = PROJECT / "build" / "benchmark-server.log"

Image = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Occluded:
    """One occlusion map as its client saw it."""

    cost: Cost
    """Of the whole map."""
    first_tile: float
    """Seconds until the first values were there."""
    evaluations: int
    answer: tuple[int, float]
    """The target's index and the model's output for it."""


class Served:
    """A server that serves, and its clients. Calls return when the server is idle again."""

    def __init__(self, address: str, process: int) -> None:
        self._address = address
        self._process = process
        self._client = vitrail.Client(address)

    def batch_size(self, model: str) -> int:
        """Return how many occluded images the server evaluates at once: its chunk."""
        versions = [each for each in self._client.model(model).versions if each.HasField("capabilities")]
        version = max(versions, key=lambda each: each.version)  # the one that answers
        [size] = [each.batch_size for each in version.capabilities.batch_sizes if each.program == "forward"]
        return size

    def occlusion(self, model: str, image: Image, patch: int | tuple[int, int]) -> Occluded:
        """Make one map, with windows side by side."""
        first_tile = None
        with self._stopwatch() as watch:
            for explanation in self._client.explain_tiles(
                image, model=model, method=vitrail.Occlusion(patch)
            ):
                if first_tile is None and explanation.tiles:
                    first_tile = watch.seconds
        if first_tile is None or explanation.summary is None or not explanation.complete:
            raise RuntimeError(f"the server's map of {model} is not complete")
        target = explanation.targets[0]
        return Occluded(
            watch.per(1),
            first_tile,
            explanation.summary.evaluations.done,
            (target.index, target.output),
        )

    def gradients(self, model: str, images: Sequence[Image], seconds: float) -> Cost:
        """Return the cost of one gradient map, one after the other for at least so many seconds."""
        maps = 0
        with self._stopwatch() as watch:
            while not maps or watch.seconds < seconds:
                self._client.explain(images[maps % len(images)], model=model)
                maps += 1
        return watch.per(maps)

    def outstanding_gradients(self, model: str, images: Sequence[Image], outstanding: int) -> Cost:
        """Return the cost of one gradient map where so many are asked for at the same time."""
        with ThreadPoolExecutor(outstanding) as callers, self._stopwatch() as watch:
            list(callers.map(lambda image: self._client.explain(image, model=model), images))
        return watch.per(len(images))

    def gradients_beside_occlusion(
        self, model: str, images: Sequence[Image], patch: int, pause: float
    ) -> list[float]:
        """Return the seconds that each gradient map takes while another client's occlusion goes on.

        The pauses between them are random, `pause` seconds at most, so that they arrive at any moment of a
        chunk. The occlusion is ended with the last one.
        """
        generator = random.Random(0)  # noqa: S311 - nothing secret
        with self._occlusion_beside(model, images[0], patch):
            latencies = []
            for image in images:
                time.sleep(generator.uniform(0, pause))
                began = time.perf_counter()
                self._client.explain(image, model=model)
                latencies.append(time.perf_counter() - began)
        self._client.explain(images[0], model=model)  # what was left of the occlusion is done before this
        return latencies

    def close(self) -> None:
        """End the connection."""
        self._client.close()

    @contextmanager
    def _occlusion_beside(self, model: str, image: Image, patch: int) -> Iterator[None]:
        """Let another client's occlusion go on until the block ends."""
        begun, enough = threading.Event(), threading.Event()

        def occlude() -> None:
            # The address in another form: gRPC shares one connection between clients of the same target.
            while not enough.is_set():
                with (
                    vitrail.Client(f"ipv4:{self._address}") as other,
                    closing(
                        other.explain_tiles(image, model=model, method=vitrail.Occlusion(patch))
                    ) as growing,
                ):
                    for explanation in growing:
                        if explanation.tiles:
                            begun.set()
                        if enough.is_set():
                            break

        with ThreadPoolExecutor(1) as caller:
            running = caller.submit(occlude)
            running.add_done_callback(lambda _: begun.set())
            try:
                begun.wait()
                yield
            finally:
                enough.set()
                running.result()

    def _stopwatch(self) -> Stopwatch:
        return Stopwatch(lambda: processor_seconds(self._process))


@contextmanager
def server(repository: Path, cores: Cores) -> Iterator[Callable[[], Served]]:
    """Start a server for this repository on the model's core, and stop it when the block ends.

    Yields a function that waits until the models are loaded.
    """
    grpc_port, metrics_port = _free_ports()
    address = f"127.0.0.1:{grpc_port}"
    LOG.parent.mkdir(parents=True, exist_ok=True)
    command = [
        *(sys.executable, "-m", "vitrail_server", "--model-repository", str(repository)),
        *("--grpc-address", "127.0.0.1", "--grpc-port", str(grpc_port)),
        *("--metrics-address", "127.0.0.1", "--metrics-port", str(metrics_port)),
        *("--intra-op-threads", "1", "--inter-op-threads", "1"),
        *("--exit-on-error", "--log-level", "warning"),
    ]
    with LOG.open("w") as log, subprocess.Popen(command, stderr=log) as process:
        pin(process.pid, cores.model)
        served = Served(address, process.pid)
        try:
            yield lambda: _ready(served, address, process)
        finally:
            served.close()
            process.terminate()
            try:
                process.wait(EXIT_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


def _ready(served: Served, address: str, process: "subprocess.Popen[bytes]") -> Served:
    end = time.monotonic() + STARTUP_SECONDS
    with vitrail.Client(address) as client:
        while time.monotonic() < end and process.poll() is None:
            try:
                if client.ready(timeout=1.0):
                    return served
            except vitrail.VitrailError:
                pass  # the port is not open yet
            time.sleep(0.5)
    raise RuntimeError(f"the server did not become ready; see {LOG.relative_to(PROJECT)}")


def _free_ports() -> tuple[int, int]:
    with socket.socket() as first, socket.socket() as second:
        first.bind(("127.0.0.1", 0))
        second.bind(("127.0.0.1", 0))
        return first.getsockname()[1], second.getsockname()[1]
