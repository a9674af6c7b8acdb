"""Load, ask and unload a tiny model in one process, cycle after cycle; print what each cycle leaves behind.

    scripts/soak [--cycles 300] [--json FILE]

Resident memory is read after each unload. The first cycles may grow it: TensorFlow's libraries are read in
and its pools filled. From then on it has to stay where it is, and an explanation has to take as long after
hundreds of cycles as after the first.
"""

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import grpc

import saved_models
from fakes.serving import ADDRESS, settings_of
from rpc.messages import spec
from vitrail.v1 import explanation_pb2 as pb
from vitrail.v1.explanation_pb2_grpc import ExplanationServiceStub
from vitrail_server.server import Server

BEGINNING = 3
"""The first cycles, or the first tenth if that is more, may grow."""
GROWTH = 4 << 20
"""Bytes by which the median of the last tenth may be above that of the tenth after the beginning."""


@dataclass(frozen=True)
class Cycle:
    """What one cycle showed."""

    load_seconds: float
    explain_seconds: float
    resident_bytes: int
    """After the unload."""


async def cycles(count: int, directory: Path) -> list[Cycle]:
    """Return what so many cycles showed."""
    repository = directory / "repository"
    saved_models.convolutional(repository / "m" / "1" / "model.savedmodel")
    image = saved_models.numbers(12, 10, 3)
    found = []
    settings = settings_of(repository, model_control_mode="explicit", load_model=())
    async with Server(settings) as server:
        await server.load()
        async with grpc.aio.insecure_channel(f"{ADDRESS}:{server.grpc_port}") as channel:
            stub = ExplanationServiceStub(channel)
            for _ in range(count):
                began = time.monotonic()
                await server.manager.load("m")
                loaded = time.monotonic()
                await stub.Explain(pb.ExplainRequest(spec=spec("m", image, output_name="logits")))
                explained = time.monotonic()
                await server.manager.unload("m")
                found.append(Cycle(loaded - began, explained - loaded, resident_bytes()))
                show(found)
    return found


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


def slowdown(found: list[Cycle]) -> float:
    """Return how many times longer an explanation takes in the last tenth than after the beginning."""
    first, last = _ends([cycle.explain_seconds for cycle in found])
    return last / first


def _ends(values: list[float]) -> tuple[float, float]:
    """Return the medians of the tenth after the beginning and of the last tenth."""
    tenth = max(1, len(values) // 10)
    begin = max(BEGINNING, tenth)
    return statistics.median(values[begin : begin + tenth]), statistics.median(values[-tenth:])


def main() -> int:
    """Run the command line; the exit status is 1 if memory grew."""
    parser = argparse.ArgumentParser(prog="scripts/soak", description=__doc__.split("\n")[0])
    parser.add_argument("--cycles", type=int, default=300, help="how many (default: 300)")
    parser.add_argument("--json", type=Path, help="file for every cycle's figures")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        found = asyncio.run(cycles(arguments.cycles, Path(directory)))
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(cycle) for cycle in found], indent=1))
    grown = growth(found)
    print(
        f"{len(found)} cycles: resident memory {grown / 2**20:+.1f} MiB after the first ones, "
        f"an explanation takes {slowdown(found):.2f} times as long"
    )
    return 1 if grown > GROWTH else 0


if __name__ == "__main__":
    sys.exit(main())
