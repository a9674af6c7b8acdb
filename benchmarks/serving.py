"""The suite `serving`: what clients get through the server, over what TensorFlow alone needs there.

Every figure is a ratio of two sides that take turns; engine and wire, event loop and encoding all count for
the server, whose process is confined to the core that the raw side has when its turn comes.
"""

from collections.abc import Iterator, Sequence
from statistics import median

import numpy as np

from benchmarks.comparison import compared
from benchmarks.figures import Detail, Figure, Target, measured, rounded
from benchmarks.models import PEBBLES, PEBBLES_OUTPUTS, PEBBLES_SHAPE
from benchmarks.raw import Raw
from benchmarks.scale import Case
from benchmarks.served import Served
from benchmarks.sides import Needs, Sides
from benchmarks.timing import Cost, alternate, best_batch

SUITE = "serving"

OUTSTANDING = 16
"""Calls of the figure with many callers."""

MEMORY_PATCH = 4
"""The side of the windows of the map whose memory is measured."""

SPARE = 16
"""MiB that a map may take beside its scores."""

MIB = 2**20

FIRST_TILE = Target(1.3, at_most=True)
GRADIENT = Target(1.10, at_most=True)
THROUGHPUT = Target(0.90, at_most=False)


def concerns(case: Case) -> bool:
    """Whether a case has figures of this suite."""
    return case.plain or case.gradients or case.callers


NEEDS = Needs(plain=concerns, pebbles=True)


def measure(sides: Sides) -> Iterator[Figure]:
    """Yield the figures of every case, and what a map costs in memory."""
    for case in filter(concerns, sides.scale.cases):
        bench = _Bench(sides, case)
        if case.plain:
            yield from bench.occlusion()
        if case.gradients:
            yield bench.gradient()
        if case.callers:
            yield bench.outstanding()
    yield from memory(sides.served, sides.scale.memory_stride)


def memory(served: Served, stride: int) -> Iterator[Figure]:
    """Yield how much a map of many windows and targets enlarges the server, where the system tells."""
    image = np.random.default_rng(0).random(PEBBLES_SHAPE, np.float32)
    targets = range(PEBBLES_OUTPUTS)
    windows = ((PEBBLES_SHAPE[0] - MEMORY_PATCH) // stride + 1) ** 2
    scores = 4 * windows * len(targets) / MIB
    for _ in range(2):  # the first full batches and what they leave behind belong to the server
        served.occlusion(PEBBLES, image, 8, targets=targets)
    growth = served.growth(
        lambda: served.occlusion(PEBBLES, image, MEMORY_PATCH, stride=stride, targets=targets)
    )
    if growth is None:
        return
    target = Target(rounded(scores + SPARE), at_most=True)
    yield Figure(
        SUITE,
        "resident_memory",
        PEBBLES,
        growth / MIB,
        unit="MiB",
        target=target,
        holds=growth / MIB <= target.limit,
        detail={
            "how": (
                f"the most that the server grew while it made a map of {windows} windows and {len(targets)} "
                f"targets, of which the scores, 4 bytes per window and target, take {scores:.1f} MiB; the "
                f"target allows {SPARE} MiB for messages on their way and what the allocator keeps"
            ),
            "scores": rounded(scores),
            "windows": windows,
            "targets": len(targets),
        },
    )


class _Bench:
    """The measurements of one case."""

    def __init__(self, sides: Sides, case: Case) -> None:
        self._raw, self._served, self._scale = sides.raw, sides.served, sides.scale
        self._case, self._model = case, case.model
        self._images = sides.images(case.model, OUTSTANDING)
        self._chunk = self._served.batch_size(case.model)
        self._best = best_batch(lambda size: self._forward(size, 0.0), self._scale.batch_sizes)
        self._warm_up()

    def occlusion(self) -> Iterator[Figure]:
        """Yield what a map costs, and how soon it begins."""
        case, scale, chunk = self._case, self._scale, self._chunk
        image = self._images[0]

        def raw() -> tuple[Cost, float]:
            best = self._forward(self._best, scale.seconds)
            clean = self._forward(1, scale.seconds / 4)
            batch = self._forward(chunk, scale.seconds / 4)
            return best, clean.seconds + chunk * batch.seconds

        rounds = alternate(scale.rounds, lambda: self._served.occlusion(self._model, image, case.patch), raw)
        evaluations = rounds[0][0].evaluations
        windows = f"{evaluations - 1} windows of {case.patch} x {case.patch}"
        yield self._compared(
            f"served_occlusion_patch_{case.patch}",
            [done.cost for done, _ in rounds],
            [best.times(evaluations) for _, (best, _) in rounds],
            target=None if case.occlusion_limit is None else Target(case.occlusion_limit, at_most=True),
            how=(
                f"a served map of {windows}, client to client, over {evaluations} forwards of the same "
                f"frozen graph in batches of {self._best}"
            ),
            detail={"chunk": chunk},
        )
        yield measured(
            SUITE,
            f"first_tile_patch_{case.patch}",
            self._model,
            [done.first_tile / least for done, (_, least) in rounds],
            target=self._target(FIRST_TILE),
            how=f"the first values of the same maps, over a forward of one image and one of {chunk}",
            detail={"chunk": chunk, "seconds": rounded(median(done.first_tile for done, _ in rounds))},
        )

    def gradient(self) -> Figure:
        """Return what one caller's gradient maps cost."""
        rounds = alternate(
            self._scale.rounds, self._alone, lambda: self._raw_gradient(1, self._scale.seconds)
        )
        return self._compared(
            "served_gradient",
            *_unzipped(rounds),
            target=self._target(GRADIENT),
            how="a gradient map, client to client, over a compiled gradient of one image on the signature",
        )

    def outstanding(self) -> Figure:
        """Return how much of the device many callers get."""
        maps = self._scale.outstanding_maps
        images = [self._images[each % len(self._images)] for each in range(maps)]
        best = best_batch(lambda size: self._raw_gradient(size, 0.0), self._scale.batch_sizes)
        rounds = alternate(
            self._scale.rounds,
            lambda: self._raw_gradient(best, self._scale.seconds),
            lambda: self._served.outstanding_gradients(self._model, images, OUTSTANDING),
        )
        return self._compared(
            f"outstanding_{OUTSTANDING}_gradients",
            *_unzipped(rounds),
            target=self._target(THROUGHPUT),
            how=(
                f"gradient maps per second with {OUTSTANDING} calls outstanding in one process, over "
                f"compiled gradients per second on the signature in batches of {best}"
            ),
        )

    def _compared(
        self,
        name: str,
        costs: Sequence[Cost],
        others: Sequence[Cost],
        *,
        how: str,
        target: Target | None,
        detail: Detail | None = None,
    ) -> Figure:
        return compared(SUITE, name, self._model, costs, others, how=how, target=target, detail=detail)

    def _target(self, target: Target) -> Target | None:
        return target if self._case.judged else None

    def _alone(self) -> Cost:
        return self._served.gradients(self._model, self._images, self._scale.seconds)

    def _forward(self, batch: int, seconds: float) -> Cost:
        return self._raw.call(Raw.forward, self._model, "frozen", batch, seconds)

    def _raw_gradient(self, batch: int, seconds: float) -> Cost:
        return self._raw.call(Raw.gradient, self._model, batch, seconds)

    def _warm_up(self) -> None:
        """Let every function run once."""
        image = self._images[0]
        self._served.occlusion(self._model, image, image.shape[:2])
        self._served.gradients(self._model, self._images, 0.0)
        self._raw_gradient(1, 0.0)
        self._forward(self._chunk, 0.0)


def _unzipped(rounds: Sequence[tuple[Cost, Cost]]) -> tuple[list[Cost], list[Cost]]:
    return [one for one, _ in rounds], [other for _, other in rounds]
