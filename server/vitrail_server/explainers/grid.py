"""The geometry of an occlusion: windows, the cells they cut the map into, and the order of evaluation.

Windows lie on a grid. Along each axis window i starts at i * stride, for i = 0 .. ceil((size - patch)
/ stride); since the stride is at most the patch, every pixel is covered. The windows that cover a
pixel form a rectangle of the grid, and pixels covered by the same windows form a cell: a map of any
size is worked out per cell, and is constant on each.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Edge = Literal["CLIP", "SHIFT"]
Order = Literal["RASTER", "PROGRESSIVE"]
Rectangle = tuple[int, int, int, int]
"""top, left, bottom, right; the ends exclusive."""


@dataclass(frozen=True, slots=True, eq=False)
class Windows:
    """The windows along one axis of the image."""

    starts: NDArray[np.int32]
    """(n,): the first pixel of each window."""
    stops: NDArray[np.int32]
    """(n,): one past its last pixel."""

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def edges(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Starts and stops."""
        return tuple(self.starts.tolist()), tuple(self.stops.tolist())


@dataclass(frozen=True, slots=True, eq=False)
class Cells:
    """The cells along one axis of the map."""

    bounds: NDArray[np.int32]
    """(n + 1,): where each cell starts; the last entry is the map's size."""
    first: NDArray[np.int32]
    """(n,): the first window that covers each cell."""
    last: NDArray[np.int32]
    """(n,): the last one; all between cover it too."""

    def __len__(self) -> int:
        return len(self.first)

    @property
    def sizes(self) -> NDArray[np.int32]:
        """(n,): how many map positions each cell spans."""
        return np.diff(self.bounds).astype(np.int32)

    @property
    def most(self) -> int:
        """The most windows that cover one cell."""
        return int((self.last - self.first).max()) + 1


def windows_along(size: int, patch: int, stride: int, edge: Edge) -> Windows:
    """Return the windows along an axis of `size` pixels, with 1 <= stride <= patch <= size.

    CLIP cuts the last window at the border; SHIFT moves it back, so that all have `patch` pixels.
    """
    starts = np.arange(-(-(size - patch) // stride) + 1, dtype=np.int32) * stride
    if edge == "SHIFT":
        starts = np.minimum(starts, size - patch)
    return Windows(starts.astype(np.int32), np.minimum(starts + patch, size).astype(np.int32))


def pixel_cells(windows: Windows) -> Cells:
    """Return the cells of a map with one value per pixel."""
    bounds = np.unique(np.concatenate([windows.starts, windows.stops])).astype(np.int32)
    first = np.searchsorted(windows.stops, bounds[:-1], "right")
    last = np.searchsorted(windows.starts, bounds[:-1], "right") - 1
    return Cells(bounds, first.astype(np.int32), last.astype(np.int32))


def window_cells(windows: Windows) -> Cells:
    """Return the cells of a map with one value per window: each window is its own."""
    each = np.arange(len(windows), dtype=np.int32)
    return Cells(np.arange(len(windows) + 1, dtype=np.int32), each, each)


def rectangles_of(rows: Windows, columns: Windows, positions: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return (n, 4): top, left, bottom, right of the windows at these raster positions (n,)."""
    row, column = np.divmod(positions, len(columns))
    edges = (rows.starts[row], columns.starts[column], rows.stops[row], columns.stops[column])
    return np.stack(edges, -1).astype(np.int32)


def coarsest_step(rows: int, columns: int) -> int:
    """Return the step of the first pass of PROGRESSIVE order.

    A power of two that gives the longer side of the grid three to six windows; 1 for a smaller grid.
    """
    return 1 << max(0, (max(rows, columns) // 3).bit_length() - 1)


def evaluation_order(rows: int, columns: int, order: Order) -> NDArray[np.int32]:
    """Return the windows' raster positions in the order in which they are evaluated.

    PROGRESSIVE goes from the coarsest step down to 1, halving it each time; each pass takes, in
    raster order, the windows on multiples of its step that no pass before took.
    """
    if order == "RASTER":
        return np.arange(rows * columns, dtype=np.int32)
    return np.argsort(-steps(rows, columns).ravel(), kind="stable").astype(np.int32)


def steps(rows: int, columns: int) -> NDArray[np.int32]:
    """Return (rows, columns): the step of the pass in which PROGRESSIVE order takes each window."""
    result = np.ones((rows, columns), np.int32)
    step = 2
    while step <= coarsest_step(rows, columns):
        result[::step, ::step] = step
        step *= 2
    return result


def rectangles(mask: NDArray[np.bool_]) -> list[Rectangle]:
    """Return disjoint rectangles that cover exactly the true entries of `mask` (rows, columns).

    Runs of a row that stand in the same columns as a run of the row above are joined with it.
    """
    done: list[Rectangle] = []
    open_runs: dict[tuple[int, int], int] = {}
    for row, line in enumerate(mask):
        runs = _runs(line)
        for columns, top in list(open_runs.items()):
            if columns not in runs:
                done.append((top, columns[0], row, columns[1]))
                del open_runs[columns]
        for columns in runs:
            open_runs.setdefault(columns, row)
    done.extend((top, left, len(mask), right) for (left, right), top in open_runs.items())
    return sorted(done)


def _runs(line: NDArray[np.bool_]) -> list[tuple[int, int]]:
    if not line.any():
        return []
    edges = np.flatnonzero(np.diff(line.astype(np.int8), prepend=0, append=0))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]
