"""The suite `scheduler`: who waits how long when many want the device.

Its first figures come from the simulator in which the tests hold the scheduler's laws: a device on a virtual
clock, so they are the same on every machine. The others are measured on a server.
"""

import sys
from collections.abc import Iterator, Sequence
from statistics import fmean, median

from benchmarks.figures import Figure, Target, measured, rounded
from benchmarks.models import PROJECT
from benchmarks.raw import Raw
from benchmarks.scale import Case
from benchmarks.sides import Needs, Sides
from benchmarks.timing import alternate

SUITE = "scheduler"

NEEDS = Needs(plain=lambda case: case.callers)

TAIL = 0.95
"""The quantile of latencies that is reported."""

BESIDE = Target(1.3, at_most=True)
FAIR = Target(2.0, at_most=True)
ONE_BATCH = Target(1.0, at_most=True)

OTHERS = 4
"""Clients whose long occlusions go on while another one's map begins."""

CALLERS = 3
"""Clients of each priority."""

PRIORITIES = {"urgent": 1, "default": 100, "background": 200}


def measure(sides: Sides) -> Iterator[Figure]:
    """Yield the figures of the simulator and of every case with several callers."""
    yield from _simulated()
    for case in sides.scale.cases:
        if case.callers:
            bench = _Bench(sides, case)
            yield bench.gradient_beside_occlusion()
            if sides.scale.waits:
                yield bench.first_tile_beside_occlusions()
                yield from bench.waits_by_priority()


def _simulated() -> Iterator[Figure]:
    """Yield what the laws of the scheduler come to in one mixed load of a hundred virtual seconds."""
    sys.path.append(str(PROJECT / "tests"))
    from fakes.runs import CostedProgram
    from runtime.pipeline import Pipeline

    pipeline = Pipeline()
    fast, slow, short = CostedProgram(8, 0.1), CostedProgram(8, 0.5), CostedProgram(1, 0.05)
    for caller, program, runs in (("one", slow, 1), ("many", fast, 10), ("another", fast, 1)):
        for _ in range(runs):
            pipeline.arrive(caller, program)
    background = pipeline.arrive("background", fast, priority=105)
    for number in range(40):
        pipeline.arrive_at(0.37 + 2.4 * number, f"short {number}", short, 1)
    differences: list[float] = []

    def compare() -> None:
        shares = [pipeline.seconds[caller] for caller in ("one", "many", "another")]
        differences.append(max(shares) - min(shares))

    pipeline.on_end = compare
    pipeline.run(until=100)

    longest = slow.seconds
    waits = [
        begun.at - part.entry.arrived
        for begun in pipeline.begun
        for part in begun.parts
        if begun.batch.program is short
    ]
    late = [begun.at for begun in pipeline.begun if any(part.entry is background for part in begun.parts)]
    gaps = [later - earlier for earlier, later in zip([0.0, *late], [*late, 100.0], strict=True)]
    load = "three callers with long occlusions (one of them with ten, one with batches five times as long)"
    yield _certain(
        "simulated_unfairness",
        max(differences) / longest,
        FAIR,
        f"the largest difference between what {load} had of the device, in batches of the longest",
    )
    yield _certain(
        "simulated_wait_of_short_work",
        max(waits) / longest,
        ONE_BATCH,
        f"the longest wait of {len(waits)} newcomers with one row beside {load}, in batches of the longest",
    )
    yield _certain(
        "simulated_wait_of_background_work",
        max(gaps) / (6.0 + 2 * longest),
        ONE_BATCH,
        f"the longest wait of a Run five levels less urgent than {load}, over six levels and two batches",
    )


def _certain(name: str, value: float, target: Target, how: str) -> Figure:
    return Figure(
        SUITE,
        name,
        "",
        value,
        target=target,
        holds=value <= target.limit,
        detail={"how": f"{how}; on a virtual clock"},
    )


class _Bench:
    """The measurements of one case."""

    def __init__(self, sides: Sides, case: Case) -> None:
        self._raw, self._served, self._scale = sides.raw, sides.served, sides.scale
        self._case, self._model = case, case.model
        count = self._scale.latencies
        images = sides.images(case.model, min(count, 8))
        self._images = [images[each % len(images)] for each in range(count)]
        self._chunk = self._served.batch_size(case.model)
        self._alone()
        self._chunk_seconds()

    def gradient_beside_occlusion(self) -> Figure:
        """Return how long a gradient takes while another caller's occlusion goes on."""

        def served() -> tuple[float, list[float]]:
            alone = self._alone()
            return alone, self._served.gradients_beside_occlusion(self._model, self._images, 2 * alone)

        rounds = alternate(self._scale.rounds, served, self._chunk_seconds)
        return measured(
            SUITE,
            "gradient_beside_occlusion_p95",
            self._model,
            [latency / (alone + chunk) for (alone, latencies), chunk in rounds for latency in latencies],
            quantile=TAIL,
            target=BESIDE if self._case.judged else None,
            how=(
                "a gradient map while another caller's long occlusion goes on, 95th percentile, over a raw "
                f"forward of {self._chunk} and the time of a gradient map on an idle server"
            ),
            detail={
                "chunk": self._chunk,
                "chunk_seconds": rounded(median(chunk for _, chunk in rounds)),
                "alone_seconds": rounded(median(alone for (alone, _), _ in rounds)),
                "seconds": rounded(fmean(latency for (_, found), _ in rounds for latency in found)),
                "rounds": self._scale.rounds,
            },
        )

    def first_tile_beside_occlusions(self) -> Figure:
        """Return how soon a map begins while other callers' occlusions go on."""

        def served() -> list[float]:
            return self._served.first_tiles_beside_occlusions(
                self._model, self._images[: max(OTHERS, 2)], self._case.patch, OTHERS
            )

        rounds = alternate(self._scale.rounds, served, self._chunk_seconds)
        return measured(
            SUITE,
            "first_tile_beside_occlusions",
            self._model,
            [seconds / (2 * chunk) for found, chunk in rounds for seconds in found],
            how=(
                f"the first values of a map while {OTHERS} other callers' long occlusions go on, over two "
                f"raw forwards of {self._chunk}: the one that runs and the map's own first"
            ),
            detail={
                "chunk": self._chunk,
                "seconds": rounded(median(each for found, _ in rounds for each in found)),
            },
        )

    def waits_by_priority(self) -> Iterator[Figure]:
        """Yield how long gradient maps wait for the device when all priorities want it at the same time."""
        found: dict[int, list[float]] = {number: [] for number in PRIORITIES.values()}
        for _ in range(self._scale.rounds):
            waits = self._served.queue_seconds(
                self._model, self._images[:2], list(PRIORITIES.values()), CALLERS
            )
            for number, seconds in waits.items():
                found[number] += seconds
        for name, number in PRIORITIES.items():
            yield measured(
                SUITE,
                f"queue_wait_{name}",
                self._model,
                [1000 * each for each in found[number]],
                unit="ms",
                how=(
                    f"how long a gradient map of priority {number} waited for its first batch, {CALLERS} "
                    f"callers of each of the priorities {_listed(list(PRIORITIES.values()))} at the same time"
                ),
            )

    def _alone(self) -> float:
        return self._served.gradients(self._model, self._images, self._scale.seconds).seconds

    def _chunk_seconds(self) -> float:
        cost = self._raw.call(Raw.forward, self._model, "frozen", self._chunk, self._scale.seconds)
        return cost.seconds * self._chunk


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
