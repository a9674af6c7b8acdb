"""Load, ask and unload a tiny model in one process, cycle after cycle; print what each cycle leaves behind.

    scripts/soak [--cycles 300] [--slowest 1.5] [--json FILE]

Resident memory is read after each unload. The first cycles may grow it: TensorFlow's libraries are read in
and its pools filled. From then on it has to stay where it is, and requests have to take as long after
hundreds of cycles as after the first: one that is refused once it is decoded and checked, which is what a
request costs by itself, an inference, a gradient and an occlusion. Of each the fastest of a cycle counts,
because whatever else the machine does only adds to a time.
"""

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import grpc

import saved_models
from fakes.serving import ADDRESS, settings_of
from inference.wire import SERVICE
from inference.wire import request as inference
from rpc.messages import indices, spec
from vitrail.v1 import explanation_pb2 as pb
from vitrail.v1.explanation_pb2_grpc import ExplanationServiceStub
from vitrail_server.kserve.v2 import grpc_service_pb2
from vitrail_server.server import Server

BEGINNING = 3
"""The first cycles, or the first tenth if that is more, may grow."""
GROWTH = 4 << 20
"""Bytes by which the median of the last tenth may be above that of the tenth after the beginning."""
REQUESTS = 10
"""Of each kind in a cycle."""

Requests = Mapping[str, Callable[[], Awaitable[object]]]
"""What sends each kind of request and reads the answer."""


@dataclass(frozen=True)
class Cycle:
    """What one cycle showed."""

    load_seconds: float
    seconds: Mapping[str, float]
    """The fastest request, by kind."""
    resident_bytes: int
    """After the unload."""


async def cycles(count: int, directory: Path) -> list[Cycle]:
    """Return what so many cycles showed."""
    repository = directory / "repository"
    saved_models.convolutional(repository / "m" / "1" / "model.savedmodel")
    found = []
    settings = settings_of(repository, model_control_mode="explicit", load_model=())
    async with Server(settings) as server:
        await server.load()
        async with grpc.aio.insecure_channel(f"{ADDRESS}:{server.grpc_port}") as channel:
            requests = requests_of(channel)
            for _ in range(count):
                began = time.monotonic()
                await server.manager.load("m")
                loaded = time.monotonic()
                seconds = {kind: await fastest(send) for kind, send in requests.items()}
                await server.manager.unload("m")
                found.append(Cycle(loaded - began, seconds, resident_bytes()))
                show(found)
    return found


def requests_of(channel: grpc.aio.Channel) -> Requests:
    """Return the kinds of requests."""
    explain = ExplanationServiceStub(channel).Explain
    infer: Any = channel.unary_unary(
        SERVICE + "ModelInfer",
        request_serializer=grpc_service_pb2.ModelInferRequest.SerializeToString,
        response_deserializer=grpc_service_pb2.ModelInferResponse.FromString,
    )
    image = saved_models.numbers(12, 10, 3)
    occlusion = pb.ExplainRequest(spec=spec("m", image, output_name="logits"))
    gradient = pb.ExplainRequest(spec=spec("m", image, output_name="logits", gradient=pb.Gradient()))
    wrong = pb.ExplainRequest(spec=spec("m", image, output_name="logits", targets=indices(1000)))

    async def refused() -> None:
        try:
            await explain(wrong)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.INVALID_ARGUMENT:
                return
            raise
        raise AssertionError("it was answered")

    return {
        "refusal": refused,
        "inference": lambda: infer(inference("m", image=image[None])),
        "gradient": lambda: explain(gradient),
        "occlusion": lambda: explain(occlusion),
    }


async def fastest(send: Callable[[], Awaitable[object]]) -> float:
    """Return the seconds of the fastest of some requests."""
    times = []
    for _ in range(REQUESTS):
        began = time.perf_counter()
        await send()
        times.append(time.perf_counter() - began)
    return min(times)


def show(found: list[Cycle]) -> None:
    """Tell where it is, now and then."""
    if len(found) % 10 == 0:
        last = found[-1]
        print(
            f"cycle {len(found)}: {last.resident_bytes / 2**20:.1f} MiB, load {last.load_seconds:.2f} s",
            file=sys.stderr,
        )


def resident_bytes() -> int:
    """Return the memory of this process that is in RAM."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def growth(found: list[Cycle]) -> int:
    """Return by how many bytes the last tenth is above the tenth that follows the beginning."""
    first, last = _ends([cycle.resident_bytes for cycle in found])
    return round(last - first)


def slowdowns(found: list[Cycle]) -> dict[str, float]:
    """Return how many times longer each kind of request takes in the last tenth than after the beginning."""
    ends = {kind: _ends([cycle.seconds[kind] for cycle in found]) for kind in found[0].seconds}
    return {kind: last / first for kind, (first, last) in ends.items()}


def _ends(values: list[float]) -> tuple[float, float]:
    """Return the medians of the tenth after the beginning and of the last tenth."""
    tenth = max(1, len(values) // 10)
    begin = max(BEGINNING, tenth)
    return statistics.median(values[begin : begin + tenth]), statistics.median(values[-tenth:])


def main() -> int:
    """Run the command line; the exit status is 1 if memory grew or requests slowed down."""
    parser = argparse.ArgumentParser(prog="scripts/soak", description=__doc__.split("\n")[0])
    parser.add_argument("--cycles", type=int, default=300, help="how many (default: 300)")
    parser.add_argument(
        "--slowest",
        type=float,
        default=1.5,
        metavar="TIMES",
        help="how many times longer requests may take at the end (default: 1.5)",
    )
    parser.add_argument("--json", type=Path, help="file for every cycle's figures")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        found = asyncio.run(cycles(arguments.cycles, Path(directory)))
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(cycle) for cycle in found], indent=1))
    grown, slower = growth(found), slowdowns(found)
    print(f"{len(found)} cycles: resident memory {grown / 2**20:+.1f} MiB after the first ones")
    for kind, times in slower.items():
        first, last = (1000 * each for each in _ends([cycle.seconds[kind] for cycle in found]))
        print(
            f"{kind}: {first:.2f} ms after the first cycles, {last:.2f} ms in the last ones, "
            f"{times:.2f} times as long"
        )
    return 1 if grown > GROWTH or max(slower.values()) > arguments.slowest else 0


if __name__ == "__main__":
    sys.exit(main())
