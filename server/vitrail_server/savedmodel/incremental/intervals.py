"""Which part of a map changes when a window of the image is hidden: interval arithmetic, in NumPy.

Rows and columns are independent of each other, so everything here is along one axis, for all positions of
the windows along it at once. A span may cover more than what changes, never less.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Sliding:
    """How a convolution or a pooling moves along an axis: output i sees inputs from i * stride - before."""

    kernel: int = 1
    stride: int = 1
    dilation: int = 1
    before: int = 0
    """Padding before the first input."""

    @property
    def reach(self) -> int:
        """How many inputs lie between the first and the last that an output sees, both included."""
        return (self.kernel - 1) * self.dilation + 1


@dataclass(frozen=True, eq=False)
class Span:
    """For each position, the first and the last element of an axis that may change, both included."""

    first: Ints
    last: Ints
    extent: int
    """The size of the axis."""

    @cached_property
    def size(self) -> int:
        """The longest span."""
        return int((self.last - self.first).max()) + 1

    @cached_property
    def start(self) -> Ints:
        """Where a strip of that size begins that holds the span and lies within the axis."""
        return np.minimum(self.first, self.extent - self.size)


def hidden(
    starts: Sequence[int] | NDArray[np.integer], stops: Sequence[int] | NDArray[np.integer], extent: int
) -> Span:
    """Return the spans of windows on the image itself; `stops` are one past their last pixels."""
    return Span(np.asarray(starts, np.int64), np.asarray(stops, np.int64) - 1, extent)


def slid(span: Span, sliding: Sliding, extent: int) -> Span:
    """Return what changes after a convolution or a pooling whose output has `extent` elements."""
    first = -(-(span.first + sliding.before - (sliding.reach - 1)) // sliding.stride)
    last = (span.last + sliding.before) // sliding.stride
    first = np.clip(first, 0, extent - 1)
    # A stride may step over a window; one element that does not change stands for nothing then.
    return Span(first, np.maximum(np.minimum(last, extent - 1), first), extent)


def padded(span: Span, before: int, extent: int) -> "Span":
    """Return what changes after a padding whose output has `extent` elements: the same, further on."""
    return Shifted(span.first + before, span.last + before, extent, span, before)


def joined(spans: Sequence[Span]) -> Span:
    """Return what changes after an operation that puts maps of one size together element by element."""
    if all(span is spans[0] for span in spans):
        return spans[0]
    first = np.minimum.reduce([span.first for span in spans])
    last = np.maximum.reduce([span.last for span in spans])
    return Span(first, last, spans[0].extent)


@dataclass(frozen=True, eq=False)
class Shifted(Span):
    """A span after a padding: its strip is the strip from before, wherever that had to begin."""

    source: Span
    before: int

    @cached_property
    def start(self) -> Ints:
        """Where the strip begins."""
        return self.source.start + self.before


def same_strip(some: Span, other: Span) -> bool:
    """Return whether two spans have the same strip at every position."""
    return some is other or (
        some.size == other.size and some.extent == other.extent and np.array_equal(some.start, other.start)
    )
