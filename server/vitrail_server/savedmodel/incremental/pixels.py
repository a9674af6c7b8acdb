"""Where the windows of a batch find their pixels: worked out in NumPy, for all crops of a plan at once.

What an operation sees of a map is gathered from the rows of one matrix: two for what lies outside of the map,
the band of the clean map that the batch needs, and the regions that changed. Which row a pixel is depends on
its row and its column apart, so that indices are sums of vectors. With those of the old pixels, those of the
new ones, which come later in the matrix and so win, and something far below zero for what is not there:

    index = max(y_old + x_old, y_new + x_new, the row for what is outside)
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vitrail_server.savedmodel.incremental.plan import PAD_ROWS, Crop, Plan

Ints = NDArray[np.int32]

FAR = -(2**30)
"""The index of what is not there; twice that is still a number of 32 bits."""

SHAPES = (None, 2), (None, None, 1), (None, None, 1), (None, 1, None), (None, 1, None), (None,), (None,)
"""Those of `Pixels.tensors`; None is what depends on the plan or the batch."""

Key = tuple[object, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Pixels:
    """Where the windows of one batch find their pixels."""

    starts: Ints
    """(batch, 2): where the image's regions begin."""
    bands: Ints
    """(2 * matrices, 2): of each matrix, the first pixel and channel of its band in the table, and how many
    there are; -1 stands for all."""
    rows: tuple[Ints, Ints]
    """y_old and y_new of all geometries, (batch, rows, 1)."""
    columns: tuple[Ints, Ints]
    """x_old and x_new of all geometries, (batch, 1, columns)."""
    heights: Ints
    """(geometries,): how many of the rows are a geometry's."""
    widths: Ints
    """(geometries,): how many of the columns."""

    @property
    def tensors(self) -> tuple[Ints, ...]:
        """What the function of the windows takes of it."""
        return self.bands, *self.rows, *self.columns, self.heights, self.widths


class PixelFinder:
    """Finds the pixels for the batches of one plan."""

    def __init__(self, plan: Plan, image: str) -> None:
        """`image` is the name of the image in the plan."""
        self._plan = plan
        self._image = image
        matrices: dict[Key, dict[Key, Crop]] = {}
        for crop in plan.crops:
            matrices.setdefault(self._matrix(crop), {})[self._geometry(crop)] = crop
        self._matrices = list(matrices)
        self._geometries = [each for members in matrices.values() for each in members]
        crops = [list(members.values()) for members in matrices.values()]
        self._rows, self._columns = (_Axis(plan, crops, axis) for axis in (0, 1))

    @property
    def counts(self) -> tuple[int, int]:
        """How many matrices and geometries there are."""
        return len(self._matrices), len(self._geometries)

    def matrix(self, crop: Crop) -> int:
        """Return the number of the matrix that a crop is gathered from: one for all tensors of its like."""
        return self._matrices.index(self._matrix(crop))

    def geometry(self, crop: Crop) -> int:
        """Return the number of a crop's geometry, which a network's crops have in common with many others."""
        return self._geometries.index(self._geometry(crop))

    def find(self, windows: NDArray[np.int32]) -> Pixels:
        """Return where windows (n, 4) of the grid find their pixels.

        An empty window has its regions where the first one has; they hold what did not change.
        """
        plan, rows, columns = self._plan, self._rows, self._columns
        top = plan.starts[0][np.searchsorted(plan.grid.rows[0], windows[:, 0])]
        left = plan.starts[1][np.searchsorted(plan.grid.columns[0], windows[:, 1])]
        y, x = rows.look(top), columns.look(left)

        low, high = rows.ends(y.place)
        band = (high - low + 1) * columns.extent
        number = np.arange(len(windows), dtype=np.int32)[:, None]
        region = rows.region * columns.region

        def of_rows(per_matrix: Ints) -> Ints:
            return per_matrix[rows.matrix]

        y_old = PAD_ROWS + (y.place - of_rows(low)) * of_rows(columns.extent)
        y_new = PAD_ROWS + of_rows(band) + number * of_rows(region) + y.within * of_rows(columns.region)
        image = plan.places[self._image]
        first = PAD_ROWS + low * columns.extent
        everything = np.stack([first, np.zeros_like(first), band, np.full_like(band, -1)], -1)
        return Pixels(
            starts=np.stack([top[:, image], left[:, image]], -1),
            bands=everything.reshape(-1, 2),
            rows=(
                np.where(y.is_in, y_old, FAR)[:, :, None],
                np.where(y.is_new, y_new, FAR)[:, :, None],
            ),
            columns=(
                np.where(x.is_in, x.place, FAR)[:, None],
                np.where(x.is_new, x.within, FAR)[:, None],
            ),
            heights=rows.lengths,
            widths=columns.lengths,
        )

    def _matrix(self, crop: Crop) -> Key:
        region = self._plan.regions[crop.tensor]
        return self._plan.places[crop.tensor], region.extent, region.size

    def _geometry(self, crop: Crop) -> Key:
        own = crop.at, crop.size, crop.stride, crop.before, crop.step, crop.outside
        return *self._matrix(crop), *own


@dataclass(frozen=True, slots=True, eq=False)
class _Looks:
    """Where the crops of a batch look along an axis, (batch, elements of all crops)."""

    place: Ints
    """In the map."""
    within: Ints
    """In the region that changed."""
    is_in: NDArray[np.bool_]
    is_new: NDArray[np.bool_]


class _Axis:
    """All crops along one axis, one after the other, those of a matrix together."""

    def __init__(self, plan: Plan, matrices: Sequence[Sequence[Crop]], axis: int) -> None:
        crops = [crop for members in matrices for crop in members]
        regions = [plan.regions[members[0].tensor] for members in matrices]
        sizes = np.array([crop.size[axis] for crop in crops], np.int32)
        self.lengths = sizes
        """(crops,): their elements."""
        self.extent = np.array([each.extent[axis] for each in regions], np.int32)
        """(matrices,): the size of the map."""
        self.region = np.array([each.size[axis] for each in regions], np.int32)
        """(matrices,): that of a region."""
        members = np.repeat(np.arange(len(matrices)), [len(each) for each in matrices])
        self.matrix = np.repeat(members, sizes)
        """(elements,): which matrix it is gathered from."""
        self._first = np.searchsorted(self.matrix, np.arange(len(matrices)))
        places = plan.starts[axis].shape[-1]
        at = [places if crop.at is None else crop.at for crop in crops]  # there is a 0 behind all places
        self._at = np.repeat(at, sizes)
        self._source = np.repeat([plan.places[crop.tensor] for crop in crops], sizes)
        self._stride = np.repeat(np.array([crop.stride[axis] for crop in crops], np.int32), sizes)
        offsets = [
            np.arange(size, dtype=np.int32) * crop.step[axis] - crop.before[axis]
            for crop, size in zip(crops, sizes, strict=True)
        ]
        self._offset = np.concatenate(offsets) if offsets else np.zeros(0, np.int32)

    def look(self, starts: Ints) -> _Looks:
        """Return where crops look, for windows whose regions begin there, (batch, places)."""
        begins = np.pad(starts, ((0, 0), (0, 1)))
        place = begins[:, self._at] * self._stride + self._offset
        within = place - starts[:, self._source]
        is_in = (place >= 0) & (place < self.extent[self.matrix])
        return _Looks(place, within, is_in, (within >= 0) & (within < self.region[self.matrix]))

    def ends(self, place: Ints) -> tuple[Ints, Ints]:
        """Return (matrices,): the first and the last element of the map that any of their crops look at."""
        inside = np.clip(place, 0, self.extent[self.matrix] - 1)
        low = np.minimum.reduceat(inside.min(0), self._first)
        return low, np.maximum.reduceat(inside.max(0), self._first)
