"""The map of an occlusion while it is computed: window scores in, tiles out.

Only the scores are kept, one per window and target. A cell's value is the mean of its evaluated
windows, summed over the rows of the grid and then over its columns, always in the same order: the order
in which windows are evaluated never changes a bit of a finished cell. In PROGRESSIVE order a cell none of
whose windows is evaluated shows the score of the coarse window that stands for its middle one: the nearest
evaluated multiple of a step above and to the left.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from vitrail_server.explainers.grid import Cells, Order, Rectangle, coarsest_step, rectangles, steps
from vitrail_server.explainers.run import Tile

FEW_TILES = 4
"""From this many provisional rectangles on, their bounding box is sent instead, if all of it has values."""

AT_ONCE = 2**16
"""Values that are worked out at a time: sums are kept in double precision, several times as large."""


class Mosaic:
    """Window scores and the map they make.

    `scores` is (targets, window rows, window columns) float32 and `evaluated` (window rows, window
    columns) bool: windows whose score is known.
    """

    def __init__(self, rows: Cells, columns: Cells, order: Order, targets: int) -> None:
        grid = (int(rows.last[-1]) + 1, int(columns.last[-1]) + 1)
        self.scores = np.zeros((targets, *grid), np.float32)
        self.evaluated = np.zeros(grid, np.bool_)
        self._rows, self._columns = rows, columns
        self._steps = steps(*grid) if order == "PROGRESSIVE" else None
        self._changed = np.zeros(grid, np.bool_)  # windows whose score, own or stand-in, is news
        self._settled = np.zeros((len(rows), len(columns)), np.bool_)  # cells sent as final

    @property
    def map_size(self) -> tuple[int, int]:
        """Height and width of the map."""
        return int(self._rows.bounds[-1]), int(self._columns.bounds[-1])

    def record(self, windows: NDArray[np.int32], scores: NDArray[np.float32]) -> None:
        """Take in the scores (n, targets) of the windows (n,) at these raster positions."""
        row, column = np.unravel_index(windows, self.evaluated.shape)
        self.scores[:, row, column] = scores.T
        self.evaluated[row, column] = True
        self._changed[row, column] = True
        if self._steps is not None:
            for i, j, step in zip(row, column, self._steps[row, column], strict=True):
                self._changed[i : i + step, j : j + step] = True

    def tiles(self, evaluations_done: int) -> Iterator[Tile]:
        """Yield the tiles that bring a client up to date, and forget what was news."""
        if not self._changed.any():
            return
        box = self._changed_cells()
        dirty = self._counts(self._changed, box) > 0
        counts = self._counts(self.evaluated, box)
        values, known = self._all_values(box, counts)
        fresh = dirty & known & ~self._settled[_slices(box)]
        final = fresh & (counts == self._covers(box))
        self._changed[:] = False
        self._settled[_slices(box)] |= final
        for part in self._provisional(fresh & ~final, known):
            yield self._tile(values, box, part, evaluations_done, final=False)
        for part in rectangles(final):
            yield self._tile(values, box, part, evaluations_done, final=True)

    def non_finite_values(self) -> NDArray[np.int64]:
        """Return (targets,): how many values of the map, of those it has, are not finite."""
        box = (0, 0, len(self._rows), len(self._columns))
        counts = self._counts(self.evaluated, box)
        areas = np.multiply.outer(self._rows.sizes, self._columns.sizes).astype(np.int64)
        found: list[int] = []
        for some in self._some_targets(counts.size):
            values, known = self._values(box, counts, some)
            found += [int(areas[known & ~np.isfinite(each)].sum()) for each in values]
        return np.array(found, np.int64)

    def _changed_cells(self) -> Rectangle:
        """Return the smallest rectangle of cells that holds every cell whose value may have changed."""
        rows, columns = np.flatnonzero(self._changed.any(1)), np.flatnonzero(self._changed.any(0))
        return (
            int(np.searchsorted(self._rows.last, rows[0], "left")),
            int(np.searchsorted(self._columns.last, columns[0], "left")),
            int(np.searchsorted(self._rows.first, rows[-1], "right")),
            int(np.searchsorted(self._columns.first, columns[-1], "right")),
        )

    def _provisional(self, mask: NDArray[np.bool_], known: NDArray[np.bool_]) -> list[Rectangle]:
        parts = rectangles(mask)
        if len(parts) >= FEW_TILES:
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            around = (int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1)
            if known[_slices(around)].all():
                parts = [around]
        return parts

    def _counts(self, windows: NDArray[np.bool_], box: Rectangle) -> NDArray[np.int32]:
        """Return, per cell of `box`, how many of the true entries of `windows` cover it."""
        total = np.zeros((windows.shape[0] + 1, windows.shape[1] + 1), np.int32)
        total[1:, 1:] = windows.cumsum(0, np.int32).cumsum(1)
        top, left, bottom, right = box
        r0, r1 = self._rows.first[top:bottom, None], self._rows.last[top:bottom, None] + 1
        c0, c1 = self._columns.first[None, left:right], self._columns.last[None, left:right] + 1
        return total[r1, c1] - total[r0, c1] - total[r1, c0] + total[r0, c0]

    def _covers(self, box: Rectangle) -> NDArray[np.int32]:
        top, left, bottom, right = box
        rows = self._rows.last[top:bottom] - self._rows.first[top:bottom] + 1
        columns = self._columns.last[left:right] - self._columns.first[left:right] + 1
        return np.asarray(np.multiply.outer(rows, columns))

    def _some_targets(self, cells: int) -> Iterator[slice]:
        """Yield the targets in portions whose values for so many cells can be worked out at a time."""
        some = max(1, AT_ONCE // cells)
        for first in range(0, len(self.scores), some):
            yield slice(first, first + some)

    def _all_values(
        self, box: Rectangle, counts: NDArray[np.int32]
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Return the cells' values (targets, rows, columns) and which of them have one."""
        values = np.empty((len(self.scores), *counts.shape), np.float32)
        known = counts > 0
        for some in self._some_targets(counts.size):
            values[some], known = self._values(box, counts, some)
        return values, known

    def _values(
        self, box: Rectangle, counts: NDArray[np.int32], some: slice
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Return the same of some targets."""
        top, left, bottom, right = box
        rows = slice(self._rows.first[top], self._rows.last[bottom - 1] + 1)
        columns = slice(self._columns.first[left], self._columns.last[right - 1] + 1)
        scores = np.where(self.evaluated[rows, columns], self.scores[some, rows, columns], np.float64(0))
        known = counts > 0
        with np.errstate(invalid="ignore"):  # infinite scores pass through, and are counted
            sums = _sum_windows(scores, self._rows, top, bottom, axis=1)
            sums = _sum_windows(sums, self._columns, left, right, axis=2)
            values = (sums / np.maximum(counts, 1)).astype(np.float32)
        if self._steps is None or known.all():
            return values, known
        stand_ins, stand = self._stand_ins(some)
        middle = np.ix_(
            (self._rows.first[top:bottom] + self._rows.last[top:bottom]) // 2,
            (self._columns.first[left:right] + self._columns.last[left:right]) // 2,
        )
        values = np.where(known, values, stand_ins[:, middle[0], middle[1]])
        return values, known | stand[middle]

    def _stand_ins(self, some: slice) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Return every window's scores for some targets, or those of the window that stands for it."""
        scores, known = self.scores[some].copy(), self.evaluated.copy()
        row, column = np.indices(known.shape)
        step = 2
        while step <= coarsest_step(*known.shape):
            coarse = (row // step * step, column // step * step)
            take = ~known & self.evaluated[coarse]
            scores[:, take] = self.scores[some, coarse[0][take], coarse[1][take]]
            known |= take
            step *= 2
        return scores, known

    def _tile(
        self, values: NDArray[np.float32], box: Rectangle, part: Rectangle, done: int, *, final: bool
    ) -> Tile:
        top, left = box[0] + part[0], box[1] + part[1]
        cells = (top, left, box[0] + part[2], box[1] + part[3])
        return Tile(
            row=int(self._rows.bounds[top]),
            column=int(self._columns.bounds[left]),
            first_target=0,
            values=self._spread(values[(slice(None), *_slices(part))], cells),
            evaluations_done=done,
            final=final,
        )

    def _spread(self, values: NDArray[np.float32], cells: Rectangle) -> NDArray[np.float32]:
        """Return the values of `cells` with each cell as large as it is on the map."""
        top, left, bottom, right = cells
        tall = np.repeat(values, self._rows.sizes[top:bottom], axis=1)
        return np.repeat(tall, self._columns.sizes[left:right], axis=2)


def _sum_windows(
    scores: NDArray[np.float64], cells: Cells, start: int, stop: int, axis: int
) -> NDArray[np.float64]:
    """Sum along `axis` the windows that cover each of the cells start..stop.

    `scores` begins with the first window of the first cell. A cell's sum is put together from sums of
    1, 2, 4, ... neighbours, so a cell under hundreds of windows costs a few additions; which ones
    depends on its own windows alone, however many cells are asked for.
    """
    position = cells.first[start:stop] - cells.first[start]
    counts = cells.last[start:stop] - cells.first[start:stop] + 1
    before: tuple[slice | NDArray[np.intp], ...] = (slice(None),) * axis
    total = np.zeros((*scores.shape[:axis], stop - start, *scores.shape[axis + 1 :]))
    neighbours, size = scores, 1
    while True:
        part = np.flatnonzero(counts & size)
        total[(*before, part)] += np.take(neighbours, position[part], axis)
        position[part] += size
        if 2 * size > counts.max():
            return total
        neighbours = neighbours[(*before, slice(None, -size))] + neighbours[(*before, slice(size, None))]
        size *= 2


def _slices(box: Rectangle) -> tuple[slice, slice]:
    return slice(box[0], box[2]), slice(box[1], box[3])
