"""What something cost, and the rounds in which two sides take turns."""

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TypeVar

T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds per unit of work."""

    seconds: float
    processor: float | None
    """Seconds of processor time, which others on the same core do not lengthen. None: not known."""

    @property
    def known_seconds(self) -> float:
        """The processor time where it is known, else the seconds that passed."""
        return self.seconds if self.processor is None else self.processor

    def times(self, count: int) -> "Cost":
        """Return the cost of so many units."""
        return Cost(self.seconds * count, None if self.processor is None else self.processor * count)


class Stopwatch:
    """Measures the time and the processor time of a block; `processor` reads the latter, if it is known.

    As in Python's `timeit`, no garbage is collected meanwhile: what a block pays would be chance.
    """

    def __init__(self, processor: Callable[[], float | None] = time.process_time) -> None:
        self._processor = processor
        self._end: float | None = None

    def __enter__(self) -> Self:
        gc.disable()
        self._processor_began = self._processor()
        self._began = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end = time.perf_counter()
        self._processor_end = self._processor()
        gc.enable()

    @property
    def seconds(self) -> float:
        """The seconds since the block began, or until it ended."""
        return (time.perf_counter() if self._end is None else self._end) - self._began

    def per(self, count: int) -> Cost:
        """Return the cost of each of `count` units of work that the block did."""
        began, end = self._processor_began, self._processor_end
        used = None if began is None or end is None else (end - began) / count
        return Cost(self.seconds / count, used)


def alternate(rounds: int, one: Callable[[], T], other: Callable[[], U]) -> list[tuple[T, U]]:
    """Run two sides in turn, one after the other, and return what they gave, round by round.

    In every second round the other one goes first, so that a machine which slows down or speeds up
    favours neither.
    """
    results = []
    for each in range(rounds):
        if each % 2:
            second = other()
            first = one()
        else:
            first = one()
            second = other()
        results.append((first, second))
    return results


def ratios(pairs: Sequence[tuple[Cost, Cost]]) -> list[float]:
    """Return, per round, the first side's cost over the second's."""
    return [one.seconds / other.seconds for one, other in pairs]


def processor_ratio(pairs: Sequence[tuple[Cost, Cost]]) -> float | None:
    """Return the same in processor time, over all rounds; None where it is not known.

    Over all, because systems count a process's time in steps of a hundredth of a second.
    """
    totals = [0.0, 0.0]
    for pair in pairs:
        for side, cost in enumerate(pair):
            if cost.processor is None:
                return None
            totals[side] += cost.processor
    return totals[0] / totals[1] if totals[1] else None


def best_batch(cost: Callable[[int], Cost], sizes: Sequence[int]) -> int:
    """Return the size whose images cost least, each size tried twice.

    By processor time, where it is known: others on the machine must not decide.
    """

    def least(size: int) -> float:
        return min(cost(size).known_seconds for _ in range(2))

    return min(sizes, key=least)
