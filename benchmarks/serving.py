"""The suite `serving`: what clients get through the server, over what TensorFlow alone needs there.

Every figure is a ratio of two sides that take turns; engine and wire, event loop and encoding all count for
the server, whose process is confined to the core that the raw side has when its turn comes.
"""

from collections.abc import Iterator, Sequence
from statistics import fmean, median

import numpy as np

from benchmarks.figures import Detail, Figure, Target, measured, rounded
from benchmarks.raw import Raw
from benchmarks.scale import Case
from benchmarks.served import Served
from benchmarks.sides import Sides
from benchmarks.timing import Cost, alternate, best_batch, processor_ratio, ratios

SUITE = "serving"

OUTSTANDING = 16
"""Calls of the figure with many callers."""

BESIDE_PATCH = 8
"""The windows of the occlusion that goes on beside gradients: many, so that it lasts."""

TAIL = 0.95
"""The quantile of latencies that is reported."""

FIRST_TILE = Target(1.3, at_most=True)
GRADIENT = Target(1.10, at_most=True)
THROUGHPUT = Target(0.90, at_most=False)
BESIDE = Target(1.3, at_most=True)
NOTEBOOK = Target(1.0, at_most=False)


def measure(sides: Sides) -> Iterator[Figure]:
    """Yield the figures of every case."""
    if sides.served is None:
        raise ValueError("this suite needs a server")
    for case in sides.scale.cases:
        bench = _Bench(sides, sides.served, case)
        yield from bench.occlusion()
        if case.gradients:
            yield bench.gradient()
        if case.callers:
            yield bench.outstanding()
            yield bench.beside()


class _Bench:
    """The measurements of one case."""

    def __init__(self, sides: Sides, served: Served, case: Case) -> None:
        self._raw, self._served, self._scale = sides.raw, served, sides.scale
        self._case, self._model = case, case.model
        self._images = sides.images(case.model, OUTSTANDING)
        self._chunk = served.batch_size(case.model)
        self._best = best_batch(lambda size: self._forward(size, 0.0), self._scale.batch_sizes)
        self._warm_up()

    def occlusion(self) -> Iterator[Figure]:
        """Yield what a map costs, how soon it begins, and how long the notebook's loop takes for it."""
        case, scale, chunk = self._case, self._scale, self._chunk
        image = self._images[0]

        def raw() -> tuple[Cost, float, Cost | None]:
            best = self._forward(self._best, scale.seconds)
            clean = self._forward(1, scale.seconds / 4)
            batch = self._forward(chunk, scale.seconds / 4)
            loop = (
                self._raw.call(Raw.predict_windows, self._model, image, case.patch, scale.notebook_windows)
                if case.notebook
                else None
            )
            return best, clean.seconds + chunk * batch.seconds, loop

        rounds = alternate(scale.rounds, lambda: self._served.occlusion(self._model, image, case.patch), raw)
        evaluations = rounds[0][0].evaluations
        maps = [done.cost for done, _ in rounds]
        limits = [best.times(evaluations) for _, (best, _, _) in rounds]
        windows = f"{evaluations - 1} windows of {case.patch} x {case.patch}"
        yield self._compared(
            f"served_occlusion_patch_{case.patch}",
            maps,
            limits,
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
            [done.first_tile / least for done, (_, least, _) in rounds],
            target=self._target(FIRST_TILE),
            how=f"the first values of the same maps, over a forward of one image and one of {chunk}",
            detail={"chunk": chunk, "seconds": rounded(median(done.first_tile for done, _ in rounds))},
        )
        if case.notebook:
            yield self._compared(
                f"notebook_loop_patch_{case.patch}",
                [loop.times(evaluations) for _, (_, _, loop) in rounds if loop],
                maps,
                target=NOTEBOOK,
                how=(
                    f"model.predict for the image and each of {windows}, extrapolated from "
                    f"{scale.notebook_windows} randomly chosen windows a round, over the same served maps; "
                    "both on one core"
                ),
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

    def beside(self) -> Figure:
        """Return how long a gradient takes while another caller's occlusion goes on."""
        count = self._scale.latencies
        images = [self._images[each % len(self._images)] for each in range(count)]

        def served() -> tuple[float, list[float]]:
            alone = self._alone().seconds
            pause = 2 * alone
            return alone, self._served.gradients_beside_occlusion(self._model, images, BESIDE_PATCH, pause)

        rounds = alternate(
            self._scale.rounds,
            served,
            lambda: self._forward(self._chunk, self._scale.seconds).seconds * self._chunk,
        )
        return measured(
            SUITE,
            "gradient_beside_occlusion_p95",
            self._model,
            [latency / (alone + chunk) for (alone, latencies), chunk in rounds for latency in latencies],
            quantile=TAIL,
            target=self._target(BESIDE),
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
        """Return a figure whose samples are the costs over the others', round by round."""
        pairs = list(zip(costs, others, strict=True))
        processor = processor_ratio(pairs)
        return measured(
            SUITE,
            name,
            self._model,
            ratios(pairs),
            how=how,
            target=target,
            detail={
                **(detail or {}),
                "processor_ratio": None if processor is None else rounded(processor),
                "seconds": rounded(median(each.seconds for each in costs)),
                "seconds_of_the_other": rounded(median(each.seconds for each in others)),
            },
        )

    def _target(self, target: Target) -> Target | None:
        return target if self._case.judged else None

    def _alone(self) -> Cost:
        return self._served.gradients(self._model, self._images, self._scale.seconds)

    def _forward(self, batch: int, seconds: float) -> Cost:
        return self._raw.call(Raw.forward, self._model, "frozen", batch, seconds)

    def _raw_gradient(self, batch: int, seconds: float) -> Cost:
        return self._raw.call(Raw.gradient, self._model, batch, seconds)

    def _warm_up(self) -> None:
        """Let every function run once, and make sure that the notebook's loop runs the same network."""
        image = self._images[0]
        height, width, _ = image.shape
        index, ours = self._served.occlusion(self._model, image, (height, width)).answer
        self._served.gradients(self._model, self._images, 0.0)
        self._raw_gradient(1, 0.0)
        self._forward(self._chunk, 0.0)
        if not self._case.notebook:
            return
        theirs = self._raw.call(Raw.answer, self._model, image)[index]
        if not np.isclose(ours, theirs, rtol=1e-3):
            raise RuntimeError(
                f"{self._model} answers {ours:g} when served and {theirs:g} as a Keras model: delete "
                "build/benchmark-models, which another version of Keras has written"
            )


def _unzipped(rounds: Sequence[tuple[Cost, Cost]]) -> tuple[list[Cost], list[Cost]]:
    return [one for one, _ in rounds], [other for _, other in rounds]
