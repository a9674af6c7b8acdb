"""The suite `loading`: what a model that is being loaded costs those that serve.

The server watches its repository; while one model's map is made over and over, another model appears.
"""

import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np

from benchmarks.figures import Figure, Target, measured, rounded
from benchmarks.models import Entry, find, repository_of
from benchmarks.served import Image, Served, server
from benchmarks.sides import Needs, Sides, say

SUITE = "loading"

NEEDS = Needs()

TAIL = 0.99
ISOLATION = Target(3.0, at_most=True)

QUIET_MAPS = 2
"""Maps whose chunks say how long they take when nothing is loaded."""

PATCH = 16
"""The side of the maps' windows."""

POLL_SECONDS = "0.5"
"""How often the server looks at its repository."""


def measure(sides: Sides) -> Iterator[Figure]:
    """Yield how much longer chunks take while another model is loaded; nothing if the scale has no models."""
    if sides.scale.loading is None:
        return
    busy, loaded = (find(name) for name in sides.scale.loading)
    if busy is None or loaded is None:
        return
    entry, other = Entry(busy, incremental=False), Entry(loaded, incremental=False)
    image = sides.images(busy.name, 1)[0]
    say(f"serving {busy.name} while {loaded.name} is loaded")
    watching = ("--model-control-mode", "poll", "--repository-poll-secs", POLL_SECONDS)
    with (
        repository_of([entry]) as repository,
        # On all cores: what a load may use beside the device is part of the answer.
        server(repository, sides.cores, *watching, confined=False) as ready,
    ):
        served = ready()
        chunks(served, entry.name, image)
        quiet = [each for _ in range(QUIET_MAPS) for each in chunks(served, entry.name, image)]
        beside, seconds = chunks_while_loading(served, entry.name, image, other, repository)
    alone = float(np.quantile(quiet, TAIL))
    yield measured(
        SUITE,
        "load_isolation_p99",
        busy.name,
        [each / alone for each in beside],
        quantile=TAIL,
        target=ISOLATION,
        how=(
            f"the time from one chunk's tiles to the next one's while {loaded.name} is loaded, 99th "
            "percentile, over the same when nothing is loaded; the server may use all cores"
        ),
        detail={
            "alone_ms": rounded(1000 * alone),
            "alone_median_ms": rounded(1000 * float(np.median(quiet))),
            "longest_ms": rounded(1000 * max(beside)),
            "load_seconds": rounded(seconds),
        },
    )


def chunks(served: Served, model: str, image: Image) -> list[float]:
    """Return the seconds from one arrival of a map's values to the next."""
    return [later - earlier for earlier, later in pairwise(served.arrivals(model, image, PATCH))]


def chunks_while_loading(
    served: Served, model: str, image: Image, other: Entry, repository: Path
) -> tuple[list[float], float]:
    """Return the same of maps that are made while another model is loaded, and how long that took."""
    loaded = threading.Event()
    began = time.monotonic()

    def load() -> None:
        other.write(repository / other.name)
        while not served.serves(other.name):
            time.sleep(0.1)
        loaded.set()

    loading = threading.Thread(target=load)
    loading.start()
    found: list[float] = []
    while not loaded.is_set():
        found += chunks(served, model, image)
    loading.join()
    return found, time.monotonic() - began
