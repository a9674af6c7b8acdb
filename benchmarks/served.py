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

import grpc
import numpy as np
from numpy.typing import NDArray

import vitrail
from benchmarks.machine import Cores, peak_growth, pin, processor_seconds
from benchmarks.models import GRAY, IMAGE_INPUT, PROJECT
from benchmarks.timing import Cost, Stopwatch
from vitrail.v1 import explanation_pb2
from vitrail_server.kserve.v2 import grpc_service_pb2 as kserve

STARTUP_SECONDS = 600.0
"""How long loading the models may take on a machine that is slow or busy."""

EXIT_SECONDS = 30.0
"""How long the server may take to stop."""

LOG = PROJECT / "build" / "benchmark-server.log"

BESIDE_PATCH = 8
"""The windows of the occlusions that go on beside others' requests: many, so that they last."""

MODEL_INFER = "/inference.GRPCInferenceService/ModelInfer"

INFER_BATCHES = (1, 8, 32)
"""Images in one request for predictions that are tried."""

Image = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Occluded:
    """One occlusion map as its client saw it."""

    values: Image
    """(targets, height, width)."""
    execution: str
    """How its plan says that it was computed: full or incremental."""

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

    def occlusion(
        self,
        model: str,
        image: Image,
        patch: int | tuple[int, int],
        *,
        stride: int | None = None,
        targets: Sequence[int] | None = None,
    ) -> Occluded:
        """Make one map, with windows side by side and of the top class unless said otherwise."""
        method = vitrail.Occlusion(patch, stride)
        wanted = None if targets is None else list(targets)
        first_tile = None
        with self._stopwatch() as watch:
            for explanation in self._client.explain_tiles(image, model=model, method=method, targets=wanted):
                if first_tile is None and explanation.tiles:
                    first_tile = watch.seconds
        if first_tile is None or explanation.summary is None or not explanation.complete:
            raise RuntimeError(f"the server's map of {model} is not complete")
        target = explanation.targets[0]
        return Occluded(
            explanation.values,
            _execution(explanation),
            watch.per(1),
            first_tile,
            explanation.summary.evaluations.done,
            (target.index, target.output),
        )

    def execution(self, model: str, image: Image, patch: int) -> str:
        """Return how a map would be computed now; no more of it is computed than that takes."""
        growing = self._client.explain_tiles(image, model=model, method=vitrail.Occlusion(patch))
        with closing(growing):
            return _execution(next(growing))

    def arrivals(self, model: str, image: Image, patch: int) -> list[float]:
        """Make one map and return the moments when values of further windows arrived."""
        moments: list[float] = []
        done = 0
        method = vitrail.Occlusion(patch)
        for explanation in self._client.explain_tiles(image, model=model, method=method):
            if explanation.evaluations_done > done:
                done = explanation.evaluations_done
                moments.append(time.perf_counter())
        return moments

    def serves(self, model: str) -> bool:
        """Whether a version of the model is available."""
        return any(
            version.HasField("capabilities")
            for each in self._client.models()
            if each.name == model
            for version in each.versions
        )

    def growth(self, make: Callable[[], object]) -> int | None:
        """Return how many bytes the server's memory grew at most while `make` ran; None if unknown."""
        return peak_growth(self._process, make)

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

    def gradients_beside_occlusion(self, model: str, images: Sequence[Image], pause: float) -> list[float]:
        """Return the seconds that each gradient map takes while another client's occlusion goes on.

        The pauses between them are random, `pause` seconds at most, so that they arrive at any moment of a
        chunk. The occlusion is ended with the last one.
        """
        generator = random.Random(0)  # noqa: S311 - nothing secret
        with self._occlusions_beside(model, images[:1]):
            latencies = []
            for image in images:
                time.sleep(generator.uniform(0, pause))
                began = time.perf_counter()
                self._client.explain(image, model=model)
                latencies.append(time.perf_counter() - began)
        self._client.explain(images[0], model=model)  # what was left of the occlusion is done before this
        return latencies

    def first_tiles_beside_occlusions(
        self, model: str, images: Sequence[Image], patch: int, others: int
    ) -> list[float]:
        """Return the seconds until each image's map begins while so many other clients' occlusions go on."""
        seconds = []
        with self._occlusions_beside(model, images[:others]):
            for image in images:
                began = time.perf_counter()
                growing = self._client.explain_tiles(image, model=model, method=vitrail.Occlusion(patch))
                with closing(growing):
                    for explanation in growing:
                        if explanation.tiles:
                            seconds.append(time.perf_counter() - began)
                            break
        self._client.explain(images[0], model=model)
        return seconds

    def infer_windows(self, model: str, image: Image, patch: int, windows: int, batch: int) -> Cost:
        """Return the cost of one window where the client hides each itself and asks for the prediction.

        So many randomly chosen windows, `batch` of them in a request.
        """
        height, width, _ = image.shape
        grid = -(-height // patch), -(-width // patch)
        places = np.random.default_rng(0).integers(0, grid, (windows, 2)) * patch
        with grpc.insecure_channel(self._address, [("grpc.max_send_message_length", -1)]) as channel:
            infer = channel.unary_unary(
                MODEL_INFER,
                kserve.ModelInferRequest.SerializeToString,
                kserve.ModelInferResponse.FromString,
            )
            with self._stopwatch() as watch:
                for start in range(0, windows, batch):
                    images = np.repeat(image[None], batch, 0)
                    for each, (top, left) in zip(images, places[start : start + batch].tolist(), strict=True):
                        each[top : top + patch, left : left + patch] = GRAY
                    request = kserve.ModelInferRequest(model_name=model)
                    request.inputs.add(name=IMAGE_INPUT, datatype="FP32", shape=images.shape)
                    request.raw_input_contents.append(images.tobytes())
                    response = infer(request)
                    np.frombuffer(response.raw_output_contents[0], np.float32)
        return watch.per(windows)

    def queue_seconds(
        self, model: str, images: Sequence[Image], priorities: Sequence[int], callers: int
    ) -> dict[int, list[float]]:
        """Return how long gradient maps waited for the device, by priority.

        Each priority has so many callers, each on a connection of its own, and each asks for one map per
        image, one after the other, all at the same time.
        """
        everybody = [(priority, number) for priority in priorities for number in range(callers)]

        def ask(caller: tuple[int, int]) -> list[float]:
            priority, _ = caller
            with self._another_client(everybody.index(caller)) as client:
                return [
                    summary.queue_seconds
                    for image in images
                    if (summary := client.explain(image, model=model, priority=priority).summary)
                ]

        with ThreadPoolExecutor(len(everybody)) as pool:
            waits = list(pool.map(ask, everybody))
        return {
            priority: [
                each
                for (its, _), found in zip(everybody, waits, strict=True)
                if its == priority
                for each in found
            ]
            for priority in priorities
        }

    def close(self) -> None:
        """End the connection."""
        self._client.close()

    @contextmanager
    def _occlusions_beside(self, model: str, images: Sequence[Image]) -> Iterator[None]:
        """Let other clients' occlusions go on, one for each image, until the block ends."""
        begun, enough = [threading.Event() for _ in images], threading.Event()

        def occlude(number: int) -> None:
            try:
                while not enough.is_set():
                    with (
                        self._another_client(number) as other,
                        closing(
                            other.explain_tiles(
                                images[number], model=model, method=vitrail.Occlusion(BESIDE_PATCH)
                            )
                        ) as growing,
                    ):
                        for explanation in growing:
                            if explanation.tiles:
                                begun[number].set()
                            if enough.is_set():
                                break
            finally:
                begun[number].set()

        with ThreadPoolExecutor(len(images)) as callers:
            running = [callers.submit(occlude, number) for number in range(len(images))]
            try:
                for each in begun:
                    each.wait()
                yield
            finally:
                enough.set()
                for caller in running:
                    caller.result()

    def _another_client(self, number: int) -> vitrail.Client:
        """Return a client with a connection of its own, for the server another caller.

        gRPC shares one connection between clients of the same target, so each has the address in another
        form: as a list that names it several times.
        """
        return vitrail.Client(f"ipv4:{','.join([self._address] * (number + 2))}")

    def _stopwatch(self) -> Stopwatch:
        return Stopwatch(lambda: processor_seconds(self._process))


@contextmanager
def server(
    repository: Path, cores: Cores, *arguments: str, confined: bool = True
) -> Iterator[Callable[[], Served]]:
    """Start a server for this repository, and stop it when the block ends.

    Yields a function that waits until the models are loaded. For that the server has both cores; after it
    only the model's, if it is `confined`.
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
        *arguments,
    ]
    with LOG.open("w") as log, subprocess.Popen(command, stderr=log) as process:
        pin(process.pid, cores.model, cores.client)  # not the one that it has from this process
        served = Served(address, process.pid)

        def ready() -> Served:
            _wait(address, process)
            if confined:
                pin(process.pid, cores.model)
            return served

        try:
            yield ready
        finally:
            served.close()
            process.terminate()
            try:
                process.wait(EXIT_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


def _execution(explanation: vitrail.Explanation) -> str:
    name = explanation_pb2.Plan.Execution.Name(explanation.plan.execution)
    return name.removeprefix("EXECUTION_").lower()


def _wait(address: str, process: "subprocess.Popen[bytes]") -> None:
    """Wait until the models are loaded."""
    end = time.monotonic() + STARTUP_SECONDS
    with vitrail.Client(address) as client:
        while time.monotonic() < end and process.poll() is None:
            try:
                if client.ready(timeout=1.0):
                    return
            except vitrail.VitrailError:
                pass  # the port is not open yet
            time.sleep(0.5)
    raise RuntimeError(f"the server did not become ready; see {LOG.relative_to(PROJECT)}")


def _free_ports() -> tuple[int, int]:
    with socket.socket() as first, socket.socket() as second:
        first.bind(("127.0.0.1", 0))
        second.bind(("127.0.0.1", 0))
        return first.getsockname()[1], second.getsockname()[1]
