"""Which operations are computed for the changed part of their output only, and what that saves.

A plan belongs to a graph, an image size and the windows of a grid; never to an image. It holds numbers of
the order of the grid's rows and columns, not of its windows, and nothing of the size of an image. Each
tensor has one size of region for the whole grid, so that every batch has the same shapes.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vitrail_server.savedmodel.flat import Node, first_output
from vitrail_server.savedmodel.incremental.graph import SizedGraph
from vitrail_server.savedmodel.incremental.intervals import (
    Sliding,
    Span,
    hidden,
    joined,
    padded,
    same_strip,
    slid,
)
from vitrail_server.savedmodel.incremental.operations import (
    Operation,
    Padding,
    Pointwise,
    Windowed,
    multiplications,
    understand,
)
from vitrail_server.servable import WindowGrid

LARGEST_REGION = 0.8
"""The largest part of a map that is worth computing as a region. Above it, the map is put together whole and
everything that follows is computed in full."""

LEAST_GAIN = 1.25
"""How many times fewer multiplications a plan must need."""

FEWEST_WINDOWS = 8
"""Windows that an explanation must have for the pass over the clean image to pay."""

PAD_ROWS = 2
"""The first rows of a table: zeros, and the lowest number, for what lies outside of a map."""


@dataclass(frozen=True, slots=True, eq=False)
class Region:
    """The part of a tensor that a window may change: one size, and where it begins for each window."""

    rows: Span
    columns: Span

    @property
    def size(self) -> tuple[int, int]:
        """Its rows and columns."""
        return self.rows.size, self.columns.size

    @property
    def extent(self) -> tuple[int, int]:
        """The rows and columns of the whole map."""
        return self.rows.extent, self.columns.extent

    @property
    def part(self) -> float:
        """The part of the map that it is."""
        return float(np.prod(self.size) / np.prod(self.extent))

    def matches(self, other: "Region") -> bool:
        """Return whether both are the same at every position."""
        return same_strip(self.rows, other.rows) and same_strip(self.columns, other.columns)


@dataclass(frozen=True, slots=True, eq=False)
class Crop:
    """A window of a map, put together from the region that changed and the table of what did not.

    It begins at `at` * stride - before, along each axis, where `at` is where the region of that number
    begins; None: at the first pixel.
    """

    tensor: str
    at: int | None
    size: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    before: tuple[int, int] = (0, 0)
    step: tuple[int, int] = (1, 1)
    """Pixels from one to the next."""
    outside: str = ""
    """What stands for pixels outside of the map: "zero" or "lowest". Empty: there are none."""


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One operation on regions."""

    node: Node
    operation: Operation
    crops: Mapping[int, Crop]
    """The inputs that are put together first; the others are taken as they are."""


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """How windows of one grid are evaluated."""

    grid: WindowGrid
    steps: Sequence[Step]
    cuts: Mapping[str, Crop]
    """The maps that are put together whole, for the operations that are computed in full."""
    regions: Mapping[str, Region]
    """The regions of the tensors that are computed in part, the image's included."""
    places: Mapping[str, int]
    """Where to look for each of them in `starts`."""
    starts: tuple[NDArray[np.int32], NDArray[np.int32]]
    """(window rows, places) and (window columns, places): where each region begins."""
    gain: float
    """How many times fewer multiplications a window needs than a forward, putting together left out."""
    obstacle: str
    """The operation that the most work comes after, of those that could not be computed in part."""

    @property
    def crops(self) -> Sequence[Crop]:
        """Every window of a map that is put together."""
        return [*(crop for step in self.steps for crop in step.crops.values()), *self.cuts.values()]

    @property
    def tables(self) -> Sequence[str]:
        """The tensors that are kept of the clean image."""
        return sorted({crop.tensor for crop in self.crops})

    @property
    def worthwhile(self) -> bool:
        """Whether the saved multiplications pay for putting regions and maps together."""
        return self.gain >= LEAST_GAIN


def make_plan(graph: SizedGraph, grid: WindowGrid) -> Plan:
    """Return the plan for a grid of windows."""
    return _Planner(graph, grid).plan()


class _Planner:
    def __init__(self, graph: SizedGraph, grid: WindowGrid) -> None:
        self._graph = graph
        self._grid = grid
        height, width = graph.size
        image = Region(hidden(*grid.rows, height), hidden(*grid.columns, width))
        self._regions: dict[str, Region] = {graph.image: image}
        self._places: dict[str, int] = {}
        self._distinct: list[Region] = []
        self._steps: list[Step] = []
        self._cuts: dict[str, Crop] = {}
        self._obstacles: dict[str, str] = {}

    def plan(self) -> Plan:
        for name in self._regions:
            self._locate(name)
        whole, part = 0, 0.0
        for node in self._graph.nodes:
            if node.name == self._graph.image:
                continue
            count = multiplications(self._graph, node)
            whole += count
            region = self._taken(node) if self._graph.depends(node.name) else None
            part += count * (region.part if region else self._graph.depends(node.name))
        for output in self._graph.outputs:
            self._cut(output)
        rows = np.stack([region.rows.start for region in self._distinct], -1).astype(np.int32)
        columns = np.stack([region.columns.start for region in self._distinct], -1).astype(np.int32)
        return Plan(
            self._grid,
            self._steps,
            self._cuts,
            self._regions,
            self._places,
            (rows, columns),
            gain=whole / part if part else 1.0,
            obstacle=next(iter(self._obstacles.values()), ""),
        )

    def _taken(self, node: Node) -> Region | None:
        """Return the region of an operation that is computed in part; else cut before it."""
        operation = self._operation(node)
        region = self._region(node, operation) if operation else None
        if operation is None or region is None or region.part > LARGEST_REGION:
            self._refuse(node, known=operation is not None)
            return None
        self._regions[node.name] = region
        self._locate(node.name)
        crops = dict(self._crops(node, operation, region))
        self._steps.append(Step(node, operation, crops))
        return region

    def _operation(self, node: Node) -> Operation | None:
        """Return what is known of an operation all of whose inputs are regions."""
        inputs = [first_output(each) for each in node.input if self._graph.depends(each)]
        if not all(each in self._regions for each in inputs):
            return None
        return understand(self._graph, node)

    def _refuse(self, node: Node, *, known: bool) -> None:
        for each in node.input:
            if first_output(each) in self._regions:
                self._cut(first_output(each))
                if not known:
                    self._obstacles.setdefault(node.op, f"{node.name} ({node.op})")

    def _region(self, node: Node, operation: Operation) -> Region | None:
        shape = self._graph.shape(node.name) or ()
        height, width = shape[1:3]
        match operation:
            case Pointwise(inputs=inputs):
                return _joined(self._regions[first_output(node.input[place])] for place in inputs)
            case Padding(before=(above, left)):
                source = self._regions[first_output(node.input[0])]
                return Region(padded(source.rows, above, height), padded(source.columns, left, width))
            case Windowed(rows=rows, columns=columns, others=others):
                source = self._regions[first_output(node.input[0])]
                own = Region(slid(source.rows, rows, height), slid(source.columns, columns, width))
                return _joined([own, *(self._regions[first_output(node.input[place])] for place in others)])

    def _crops(self, node: Node, operation: Operation, region: Region) -> Iterable[tuple[int, Crop]]:
        """Yield the inputs that an operation does not take as they are."""
        place = self._places[node.name]
        together: Sequence[int] = ()
        match operation:
            case Pointwise(inputs=together):
                pass
            case Windowed(rows=rows, columns=columns, others=together):
                source = first_output(node.input[0])
                if not (_is_plain(rows) and _is_plain(columns) and self._regions[source].matches(region)):
                    yield 0, self._window(source, region, place, (rows, columns), operation.outside)
        for number in together:
            reference = first_output(node.input[number])
            if not self._regions[reference].matches(region):
                yield number, Crop(reference, place, region.size)

    def _window(
        self, source: str, region: Region, place: int, slidings: tuple[Sliding, Sliding], outside: str
    ) -> Crop:
        """Return the inputs that a region of outputs sees."""
        rows, columns = slidings
        if rows.kernel == columns.kernel == 1:  # only the pixels that are used
            size, step = region.size, (rows.stride, columns.stride)
        else:
            tall, wide = region.size
            size = ((tall - 1) * rows.stride + rows.reach, (wide - 1) * columns.stride + columns.reach)
            step = (1, 1)
        reaches_out = any(
            (span.start * each.stride - each.before).min() < 0
            or (span.start * each.stride - each.before).max() + (count - 1) * by >= extent
            for span, each, count, by, extent in zip(
                (region.rows, region.columns), slidings, size, step, self._regions[source].extent, strict=True
            )
        )
        return Crop(
            source,
            place,
            size,
            stride=(rows.stride, columns.stride),
            before=(rows.before, columns.before),
            step=step,
            outside=outside if reaches_out else "",
        )

    def _cut(self, name: str) -> None:
        """Put the map of a tensor together whole."""
        if name in self._regions:
            self._cuts[name] = Crop(name, None, self._regions[name].extent)

    def _locate(self, name: str) -> None:
        """Note where the region of a tensor is found in the table of starts."""
        region = self._regions[name]
        for place, other in enumerate(self._distinct):
            if np.array_equal(other.rows.start, region.rows.start) and np.array_equal(
                other.columns.start, region.columns.start
            ):
                self._places[name] = place
                return
        self._places[name] = len(self._distinct)
        self._distinct.append(region)


def _joined(regions: Iterable[Region]) -> Region:
    regions = list(regions)
    return Region(joined([each.rows for each in regions]), joined([each.columns for each in regions]))


def _is_plain(sliding: Sliding) -> bool:
    return sliding.kernel == sliding.stride == 1 and not sliding.before
