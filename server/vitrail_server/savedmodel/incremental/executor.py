"""The two TensorFlow functions of a plan: the tables of a clean image, and a batch of its windows.

A table holds a map of the clean image as rows, one per pixel, after two rows for what lies outside of it.
What an operation sees of a map is then one concatenation (what the batch needs of the table, and the pixels
of all regions) and one gather, whose indices come from `pixels.py`; the operation itself runs on that with
VALID padding. Where the plan cuts, maps are put together whole in the same way, and the rest of the original
graph is imported behind them, in full batch.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, TypeAlias

import tensorflow as tf

from vitrail_server.savedmodel.compact import CompactFunction
from vitrail_server.savedmodel.flat import Node, copy_of, first_output, name_of
from vitrail_server.savedmodel.importing import imported
from vitrail_server.savedmodel.incremental.graph import SMALL, SizedGraph
from vitrail_server.savedmodel.incremental.operations import Windowed
from vitrail_server.savedmodel.incremental.pixels import SHAPES, PixelFinder
from vitrail_server.savedmodel.incremental.plan import PAD_ROWS, Crop, Plan, Step
from vitrail_server.savedmodel.incremental.weights import Weights

Tensor: TypeAlias = Any
"""A tf.Tensor; TensorFlow carries no types."""


def trace_tables(graph: SizedGraph, plan: Plan, weights: Weights) -> CompactFunction:
    """Return a function from the inputs, for one image, to the tables that the plan needs."""

    def tables(*inputs: Tensor) -> list[Tensor]:
        importer = _Importer(graph, weights)
        feeds = {f"{name}:0": tensor for name, tensor in zip(graph.flat.inputs, inputs, strict=True)}
        maps = importer.subgraph(graph.nodes, feeds, plan.tables)
        return [_table(each) for each in maps]

    return CompactFunction(tf.function(tables, autograph=False).get_concrete_function(*_specs(graph, 1)))


def trace_windows(graph: SizedGraph, plan: Plan, weights: Weights, finder: PixelFinder) -> CompactFunction:
    """Return a function from windows of an image to the model's outputs.

    It takes where they find their pixels (`Pixels.tensors`), what the regions of the image show (batch, rows,
    columns, channels), the tables, and the inputs beside the image in a batch.
    """
    others = [name for name in graph.flat.inputs if name != graph.image]
    specs = dict(zip(graph.flat.inputs, _specs(graph, None), strict=True))
    image = specs[graph.image]
    rows, columns = plan.regions[graph.image].size

    def windows(*arguments: Tensor) -> list[Tensor]:
        given = iter(arguments)
        pixels = _PixelTensors(finder, list(islice(given, len(SHAPES))))
        shown = next(given)
        tables = dict(zip(plan.tables, islice(given, len(plan.tables)), strict=True))
        feeds = dict(zip((f"{each}:0" for each in others), given, strict=True))
        return _Windows(graph, plan, weights, pixels, tables).outputs(shown, feeds)

    concrete = tf.function(windows, autograph=False).get_concrete_function(
        *(tf.TensorSpec(shape, tf.int32) for shape in SHAPES),
        tf.TensorSpec((None, rows, columns, image.shape[3]), image.dtype),
        *(_table_spec(graph, each) for each in plan.tables),
        *(specs[each] for each in others),
    )
    return CompactFunction(concrete)


class _PixelTensors:
    """Where the windows of a batch find their pixels, in the graph."""

    def __init__(self, finder: PixelFinder, tensors: Sequence[Tensor]) -> None:
        """`tensors` are those of `Pixels.tensors`."""
        bands, y_old, y_new, x_old, x_new, heights, widths = tensors
        matrices, geometries = finder.counts
        self._finder = finder
        self._bands = tf.unstack(bands, 2 * matrices)
        self._rows = [tf.split(each, heights, 1, geometries) for each in (y_old, y_new)]
        self._columns = [tf.split(each, widths, 2, geometries) for each in (x_old, x_new)]
        self._indices: dict[int, Tensor] = {}

    def band(self, crop: Crop, table: Tensor) -> Tensor:
        """Return the rows of a table that the crops of its matrix need."""
        number = self._finder.matrix(crop)
        return tf.slice(table, self._bands[2 * number], self._bands[2 * number + 1])

    def indices(self, crop: Crop) -> Tensor:
        """Return which row of the matrix each pixel is, (batch, rows, columns)."""
        number = self._finder.geometry(crop)
        if number not in self._indices:
            old, new = (
                rows[number] + columns[number]
                for rows, columns in zip(self._rows, self._columns, strict=True)
            )
            index = tf.maximum(old, new)
            if crop.outside:
                index = tf.maximum(index, 0 if crop.outside == "zero" else 1)
            self._indices[number] = index
        return self._indices[number]

    def inside(self, crop: Crop) -> Tensor:
        """Return which pixels are in the map, (batch, rows, columns)."""
        number = self._finder.geometry(crop)
        return (self._rows[0][number] >= 0) & (self._columns[0][number] >= 0)


class _Importer:
    """Puts operations of the original graph into the one that is being traced."""

    def __init__(self, graph: SizedGraph, weights: Weights) -> None:
        self._graph = graph
        self._weights = weights

    def subgraph(
        self, nodes: Iterable[Node], feeds: Mapping[str, Tensor], wanted: Sequence[str]
    ) -> list[Tensor]:
        """Import the operations that `wanted` needs, with tensors in the place of those fed."""
        flat = self._graph.flat
        definition = tf.compat.v1.GraphDef(library=flat.library, versions=flat.versions)
        needed = self._needed(nodes, feeds, wanted)
        definition.node.extend(needed)
        used = {first_output(each) for node in needed for each in node.input}
        mapping = {key: tensor for key, tensor in feeds.items() if first_output(key) in used}
        mapping |= {f"{name}:0": self.constant(name) for name in used if name in flat.constants}
        missing = [each for each in wanted if _output(each) not in feeds]
        computed = [each for each in missing if each not in flat.constants]
        found = dict(
            zip(computed, imported(definition, mapping, [_output(each) for each in computed]), strict=True)
        )
        return [
            feeds[_output(each)]
            if _output(each) in feeds
            else found[each]
            if each in found
            else self.constant(each)
            for each in wanted
        ]

    def operation(self, node: Node, inputs: Mapping[int, Tensor]) -> Tensor:
        """Import one operation with these inputs; the others are fixed, and come with it."""
        fixed = [each for place, each in enumerate(node.input) if place not in inputs]
        tensors = dict(zip(fixed, self.subgraph(self._graph.nodes, {}, fixed), strict=True))
        alone = copy_of(node)
        alone.name = "operation"
        mapping = {}
        for place, reference in enumerate(node.input):
            alone.input[place] = f"input_{place}"
            mapping[f"input_{place}:0"] = inputs[place] if place in inputs else tensors[reference]
        definition = tf.compat.v1.GraphDef(versions=self._graph.flat.versions)
        definition.node.append(alone)
        [output] = tf.graph_util.import_graph_def(definition, mapping, ["operation:0"], name="")
        return output

    def constant(self, name: str) -> Tensor:
        """Return a constant: a small one as part of the graph, a large one shared by all graphs."""
        value = self._graph.flat.constants[name]
        return tf.constant(value) if value.size <= SMALL else tf.convert_to_tensor(self._weights[name])

    def _needed(
        self, nodes: Iterable[Node], feeds: Mapping[str, Tensor], wanted: Sequence[str]
    ) -> list[Node]:
        """Return the operations before `wanted`, as far as the tensors fed."""
        fed = {first_output(each) for each in feeds}
        by_name = {node.name: node for node in nodes}
        found: dict[str, Node] = {}
        waiting = [each for each in wanted if first_output(each) not in fed]
        while waiting:
            name = name_of(waiting.pop())
            if name in by_name and name not in found:
                found[name] = node = by_name[name]
                waiting += [each for each in node.input if first_output(each) not in fed]
        return list(found.values())


class _Windows:
    """The graph of a batch of windows, while it is traced."""

    def __init__(
        self,
        graph: SizedGraph,
        plan: Plan,
        weights: Weights,
        pixels: _PixelTensors,
        tables: Mapping[str, Tensor],
    ) -> None:
        self._graph = graph
        self._plan = plan
        self._importer = _Importer(graph, weights)
        self._pixels = pixels
        self._tables = tables
        self._fresh: dict[str, Tensor] = {}
        self._matrices: dict[str, Tensor] = {}

    def outputs(self, shown: Tensor, feeds: Mapping[str, Tensor]) -> list[Tensor]:
        """Return the model's outputs, given what the regions of the image show."""
        self._fresh[self._graph.image] = shown
        for step in self._plan.steps:
            self._fresh[step.node.name] = self._computed(step)
        whole = {_output(name): self._whole(name, crop) for name, crop in self._plan.cuts.items()}
        return self._importer.subgraph(self._graph.nodes, {**feeds, **whole}, self._graph.outputs)

    def _computed(self, step: Step) -> Tensor:
        node, operation = step.node, step.operation
        if not isinstance(operation, Windowed):
            source = first_output(node.input[0])
            if node.op in ("Pad", "PadV2"):
                return self._fresh[source]
            return self._importer.operation(node, self._inputs(step))
        local = copy_of(node)
        local.attr["padding"].s = b"VALID"
        if "explicit_paddings" in local.attr:
            local.attr["explicit_paddings"].list.ClearField("i")
        if operation.rows.kernel == operation.columns.kernel == 1:  # the crop leaves out what a stride does
            local.attr["strides"].list.i[:] = (1, 1, 1, 1)
        result = self._importer.operation(local, self._inputs(step))
        if operation.mean_of_inside and step.crops and step.crops[0].outside:
            inside = tf.cast(self._pixels.inside(step.crops[0])[..., None], result.dtype)
            result /= self._importer.operation(local, {0: inside})  # the part of what it saw that is inside
        return result

    def _inputs(self, step: Step) -> Mapping[int, Tensor]:
        """Return the inputs that depend on the image, each of them as large as the step needs it."""
        return {
            place: self._cropped(step.crops[place])
            if place in step.crops
            else self._fresh[first_output(reference)]
            for place, reference in enumerate(step.node.input)
            if self._graph.depends(reference)
        }

    def _whole(self, name: str, crop: Crop) -> Tensor:
        """Return a map put together, (batch, rows, columns, channels)."""
        whole = self._cropped(crop)
        whole.set_shape((None, *(self._graph.shape(name) or ())[1:]))
        return whole

    def _cropped(self, crop: Crop) -> Tensor:
        """Return a window of a map, (batch, rows, columns, channels)."""
        return tf.gather(self._matrix(crop), self._pixels.indices(crop))

    def _matrix(self, crop: Crop) -> Tensor:
        """Return what lies outside of a map, what the batch needs of its table, and all regions' pixels."""
        if crop.tensor not in self._matrices:
            table, fresh = self._tables[crop.tensor], self._fresh[crop.tensor]
            pixels = tf.reshape(fresh, (-1, fresh.shape[3]))
            parts = [table[:PAD_ROWS], self._pixels.band(crop, table), pixels]
            self._matrices[crop.tensor] = tf.concat(parts, 0)
        return self._matrices[crop.tensor]


def _table(whole: Tensor) -> Tensor:
    """Return the rows of a map (1, height, width, channels), after those that stand for what is outside."""
    channels = whole.shape[3]
    lowest = whole.dtype.min if whole.dtype.is_floating or whole.dtype.is_integer else False
    outside = tf.stack([tf.zeros(channels, whole.dtype), tf.fill((channels,), tf.cast(lowest, whole.dtype))])
    return tf.concat([outside, tf.reshape(whole, (-1, channels))], 0)


def _table_spec(graph: SizedGraph, name: str) -> Any:
    _, height, width, channels = graph.shape(name) or (1, 0, 0, 0)
    return tf.TensorSpec((PAD_ROWS + height * width, channels), graph.dtype(name))


def _specs(graph: SizedGraph, batch: int | None) -> list[Any]:
    """Return what the inputs look like in a batch."""
    return [
        tf.TensorSpec((batch, *(graph.shape(name) or ())[1:]), graph.dtype(name))
        for name in graph.flat.inputs
    ]


def _output(reference: str) -> str:
    """Return a reference in the form of a tensor's name."""
    return reference if ":" in reference else f"{reference}:0"
