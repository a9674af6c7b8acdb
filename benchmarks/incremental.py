"""The suite `incremental`: occlusions that compute again only what a window can change.

Held against the same limit as those of the suite `serving`, the forwards of the whole graph, so a figure
below 1 is what no evaluation of every window in full can reach.
"""

import time
from collections.abc import Iterator

from benchmarks.comparison import compared
from benchmarks.figures import Figure, Target
from benchmarks.models import INCREMENTAL
from benchmarks.raw import Raw
from benchmarks.scale import Case
from benchmarks.served import Image
from benchmarks.sides import Needs, Sides, say
from benchmarks.timing import Cost, alternate, best_batch

SUITE = "incremental"

NEEDS = Needs(incremental=lambda case: case.incremental)

PAUSE = 0.5
"""Seconds between two looks whether a plan is ready, in which the device is free to make it."""


def measure(sides: Sides) -> Iterator[Figure]:
    """Yield the figures of every case that is measured with incremental occlusions."""
    for case in sides.scale.cases:
        if case.incremental:
            yield from _figures(sides, case)


def _figures(sides: Sides, case: Case) -> Iterator[Figure]:
    raw, scale, served = sides.raw, sides.scale, sides.served
    [image] = sides.images(case.model, 1)
    name = f"{case.model}{INCREMENTAL}"

    def forward(size: int, seconds: float) -> Cost:
        return raw.call(Raw.forward, case.model, "frozen", size, seconds)

    best = best_batch(lambda size: forward(size, 0.0), scale.batch_sizes)
    execution = _warm(sides, name, image, case.patch)
    rounds = alternate(
        scale.rounds,
        lambda: served.occlusion(name, image, case.patch),
        lambda: forward(best, scale.seconds),
    )
    evaluations = rounds[0][0].evaluations
    windows = f"{evaluations - 1} windows of {case.patch} x {case.patch}"
    yield compared(
        SUITE,
        f"incremental_occlusion_patch_{case.patch}",
        case.model,
        [done.cost for done, _ in rounds],
        [cost.times(evaluations) for _, cost in rounds],
        target=None if case.incremental_limit is None else Target(case.incremental_limit, at_most=True),
        how=(
            f"a served map of {windows}, incremental where the plan pays, client to client, over "
            f"{evaluations} forwards of the same graph in batches of {best}"
        ),
        detail={"execution": execution, "executions": sorted({done.execution for done, _ in rounds})},
    )


def _warm(sides: Sides, model: str, image: Image, patch: int) -> str:
    """Wait until maps are incremental, for as long as that may take, and return how they are."""
    end = time.monotonic() + sides.scale.patience
    while (execution := sides.served.execution(model, image, patch)) == "full":
        if time.monotonic() > end:
            say(f"{model} is not incremental with windows of {patch} x {patch}")
            break
        time.sleep(PAUSE)
    sides.served.occlusion(model, image, patch)
    return execution
