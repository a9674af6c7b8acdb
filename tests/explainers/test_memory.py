"""What an occlusion holds while it is computed: the scores, and little else per window."""

import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest

from fakes.models import Linear, weights
from fakes.questions import ask
from vitrail_server.explainers.grid import Order
from vitrail_server.explainers.occlusion import OcclusionParameters, OcclusionRun
from vitrail_server.explainers.question import AllTargets
from vitrail_server.explainers.run import Work
from vitrail_server.work import Result

SIDE = 180
WINDOWS = (SIDE - 3) ** 2
SCORE = 4
"""Bytes of a window's score for one target."""
BOOKKEEPING = 12
"""Bytes per window beside: the order of evaluation, what is evaluated, what is news, what was sent."""
OBJECTS = 300_000
"""Bytes of everything whose size the grid does not decide: batches, tables along the axes, Python objects."""


def run_of(targets: int, order: Order) -> OcclusionRun:
    model = Linear(weights(1, targets, (SIDE, SIDE, 1)))
    image = np.random.default_rng(0).random((SIDE, SIDE, 1), np.float32)
    return OcclusionRun(
        ask(model, image, targets=AllTargets()), OcclusionParameters((4, 4), (1, 1), order=order)
    )


def batches(run: OcclusionRun) -> Iterator[tuple[Work, Result]]:
    """Yield every batch with results for it, made up."""
    outputs = np.random.default_rng(1).random((512, run.map_shape[0]), np.float32)
    while not run.finished:
        work = run.take(512)
        assert isinstance(work, Work)
        yield work, Result(outputs[: len(work.tag)])


@pytest.fixture
def traced() -> Iterator[None]:
    for order in ("RASTER", "PROGRESSIVE"):  # what is imported and cached at first use counts for nobody
        for work, result in batches(first := run_of(1, order)):
            first.absorb(work, result)
        first.tiles()
    tracemalloc.start()
    yield
    tracemalloc.stop()


@pytest.mark.parametrize("order", ["RASTER", "PROGRESSIVE"])
@pytest.mark.parametrize("targets", [1, 24])
@pytest.mark.usefixtures("traced")
def test_a_run_holds_its_scores_and_a_dozen_bytes_per_window(targets: int, order: Order) -> None:
    before, _ = tracemalloc.get_traced_memory()
    model = SIDE**2 * targets * 8  # the fake's weights
    run = run_of(targets, order)
    for number, (work, result) in enumerate(batches(run)):
        run.absorb(work, result)
        if number % 16 == 0:
            run.tiles()
        held, _ = tracemalloc.get_traced_memory()
        steps = 4 * WINDOWS * (order == "PROGRESSIVE")
        assert held - before <= WINDOWS * (SCORE * targets + BOOKKEEPING) + steps + model + OBJECTS


@pytest.mark.usefixtures("traced")
def test_tiles_of_a_whole_map_are_worked_out_a_few_targets_at_a_time() -> None:
    """They take the map itself, in cells and in pixels, and a working set that targets do not enlarge."""
    targets = 60
    run = run_of(targets, "PROGRESSIVE")
    for work, result in batches(run):
        run.absorb(work, result)
    before, _ = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    run.tiles()
    _, peak = tracemalloc.get_traced_memory()
    assert peak - before <= 3 * SCORE * targets * SIDE**2 + 16 * 2**20
