"""Chooses a program's batch size at load, by running it.

Pure policy: what it times is handed in. Larger batches use a device better up to a point, but a short
request waits for the batch that runs, so the smallest batch wins that is nearly as good as the best.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

from vitrail_server.savedmodel.graph import Activations
from vitrail_server.work import Kind, OutOfMemory

LARGEST_BATCH = 256
"""Batches beyond this gain nothing, on accelerators either, and their last rows wait long."""

REPEATS = 3
"""Timed runs per size, after one that warms up; the fastest counts, since nothing makes one too fast."""

TOLERANCE = {Kind.FORWARD: 0.05, Kind.GRADIENT: 0.25}
"""How much slower per row than the best a batch may be. A gradient often comes alone and then pays for the
padding too, so it gives up more for a small batch."""


AROUND = 0.002
"""Seconds that the server works for a batch beside it, where all share one core: forming it, copying its
rows, and sending on what it gave. Measured as 1 to 2.4 ms, which makes single rows of 10 ms dear."""

TENSORS_AT_ONCE = 3
"""Large tensors that a forward holds at a time: what an operation reads and writes, and a shortcut."""


@dataclass(frozen=True, slots=True)
class Measured:
    """The size chosen."""

    batch_size: int
    seconds: float
    """How long one batch took."""


def row_bytes(kind: Kind, inputs: int, activations: Activations) -> int:
    """Return an estimate of the memory that one row of a batch takes, above the weights.

    `inputs` are the bytes of its inputs. A forward lets go of what it has used; a gradient keeps every
    activation until the way back.
    """
    kept = activations.total if kind is Kind.GRADIENT else TENSORS_AT_ONCE * activations.largest
    return 2 * inputs + kept


def batch_sizes(largest: int) -> Iterator[int]:
    """Yield 2, 4, 8, ... up to `largest`."""
    size = 2
    while size <= largest:
        yield size
        size *= 2


def choose_batch_size(
    execute: Callable[[int], float],
    alike: Callable[[int], bool],
    *,
    largest: int,
    time_slice: float,
    tolerance: float,
) -> Measured:
    """Return the smallest batch size whose seconds per row are within `tolerance` of the best.

    To the batch's own seconds come those `AROUND` it. `execute(size)` runs one batch and returns its
    seconds; `alike(size)` says whether a row gets the same bits wherever in the batch it is. Sizes where it
    does not are not taken: a map would depend on its company. No size above `largest` is tried, nor one that
    takes longer than `time_slice` seconds, except 1. Sizes that run out of memory are not taken.

    Raises:
        OutOfMemory: not even one row fits.

    """
    seconds = {1: fastest(partial(execute, 1))}
    improved = 1
    for size in batch_sizes(min(largest, LARGEST_BATCH)):
        if _expected(seconds, size) > time_slice or size > improved * 4:
            break  # too slow, or two doublings brought nothing
        try:
            seconds[size], again = side_by_side(partial(execute, size), partial(execute, improved))
        except OutOfMemory:
            break
        seconds[improved] = min(again, seconds[improved])
        if seconds[size] > time_slice:
            del seconds[size]
            break
        if _rate(seconds, size) < _rate(seconds, improved) * (1 - tolerance):
            improved = size
    rates = {size: _rate(seconds, size) for size in seconds}
    while True:
        limit = min(rates.values()) * (1 + tolerance)
        chosen = min(size for size, rate in rates.items() if rate <= limit)
        if chosen == 1 or alike(chosen):
            return Measured(chosen, seconds[chosen])
        del rates[chosen]


def fastest(execute: Callable[[], float]) -> float:
    """Warm up and return the shortest of a few runs, in seconds."""
    execute()
    return min(execute() for _ in range(REPEATS))


def side_by_side(execute: Callable[[], float], other: Callable[[], float]) -> tuple[float, float]:
    """Warm the first up and return the shortest of a few runs of each, in turn.

    In turn, because a machine that others use too changes its speed from one second to the next.
    """
    execute()
    pairs = [(execute(), other()) for _ in range(REPEATS)]
    return min(mine for mine, _ in pairs), min(its for _, its in pairs)


def _rate(seconds: Mapping[int, float], size: int) -> float:
    """Return the seconds per row in batches of a size, those around them included."""
    return (seconds[size] + AROUND) / size


def _expected(seconds: Mapping[int, float], size: int) -> float:
    """Return how long `size` rows should take: the line through the two sizes before.

    Of one row it is assumed that half its time does not grow with the batch.
    """
    last = seconds[size // 2]
    return last + 2 * (last - seconds[size // 4]) if size > 2 else 1.5 * last
