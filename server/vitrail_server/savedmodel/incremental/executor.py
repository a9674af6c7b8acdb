"""The two TensorFlow functions of a plan: the tables of a clean image, and a batch of its windows.

A table holds a map of the clean image as rows, one per pixel, after two rows for what lies outside of it.
What an operation sees of a map is then one concatenation (the table, and the pixels of all regions) and one
gather; the operation itself runs on that with VALID padding. Where the plan cuts, maps are put together
whole in the same way, and the rest of the original graph is imported behind them, in full batch.

Indices are made in the graph from where the regions begin: nothing of the size of windows times pixels is
held anywhere.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple
from typing import Any, TypeAlias

import numpy as np
import tensorflow as tf

from vitrail_server.savedmodel.flat import Node, copy_of, first_output, name_of
from vitrail_server.savedmodel.importing import imported
from vitrail_server.savedmodel.incremental.compact import CompactFunction
from vitrail_server.savedmodel.incremental.graph import SMALL, SizedGraph
from vitrail_server.savedmodel.incremental.operations import Windowed
from vitrail_server.savedmodel.incremental.plan import PAD_ROWS, Crop, Plan, Region, Step
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


def trace_windows(graph: SizedGraph, plan: Plan, weights: Weights) -> CompactFunction:
    """Return a function from windows of an image to the model's outputs.

    It takes where the regions begin (places, 2, batch), what the regions of the image show (batch, rows,
    columns, channels), the tables, and the inputs beside the image in a batch.
    """
    others = [name for name in graph.flat.inputs if name != graph.image]
    specs = dict(zip(graph.flat.inputs, _specs(graph, None), strict=True))
    image = specs[graph.image]
    rows, columns = plan.regions[graph.image].size

    def windows(starts: Tensor, shown: Tensor, *arguments: Tensor) -> list[Tensor]:
        tables = dict(zip(plan.tables, arguments[: len(plan.tables)], strict=True))
        feeds = dict(zip((f"{each}:0" for each in others), arguments[len(plan.tables) :], strict=True))
        return _Windows(graph, plan, weights, starts, tables).outputs(shown, feeds)

    concrete = tf.function(windows, autograph=False).get_concrete_function(
        tf.TensorSpec((None, 2, None), tf.int32),
        tf.TensorSpec((None, rows, columns, image.shape[3]), image.dtype),
        *(_table_spec(graph, each) for each in plan.tables),
        *(specs[each] for each in others),
    )
    return CompactFunction(concrete)


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
        self, graph: SizedGraph, plan: Plan, weights: Weights, starts: Tensor, tables: Mapping[str, Tensor]
    ) -> None:
        self._graph = graph
        self._plan = plan
        self._importer = _Importer(graph, weights)
        self._starts = starts
        self._tables = tables
        self._fresh: dict[str, Tensor] = {}
        self._rows: dict[str, Tensor] = {}
        self._made: dict[tuple[object, ...], Tensor] = {}
        self._batch = tf.range(tf.shape(starts)[2])

    def outputs(self, shown: Tensor, feeds: Mapping[str, Tensor]) -> list[Tensor]:
        """Return the model's outputs, given what the regions of the image show."""
        self._fresh[self._graph.image] = shown
        for step in self._plan.steps:
            self._fresh[step.node.name] = self._computed(step)
        whole = {_output(name): self._cropped(crop) for name, crop in self._plan.cuts.items()}
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
            result *= tf.cast(self._shares(step, operation), result.dtype)
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

    def _cropped(self, crop: Crop) -> Tensor:
        """Return a window of a map, (batch, rows, columns, channels)."""
        return tf.gather(self._all_rows(crop.tensor), self._indices(crop))

    def _all_rows(self, tensor: str) -> Tensor:
        """Return the rows of a table and, after them, the pixels of all regions of that tensor."""
        if tensor not in self._rows:
            fresh = self._fresh[tensor]
            pixels = tf.reshape(fresh, (-1, fresh.shape[3]))
            self._rows[tensor] = tf.concat([self._tables[tensor], pixels], 0)
        return self._rows[tensor]

    def _indices(self, crop: Crop) -> Tensor:
        """Return which of these rows each pixel of a window is, (batch, rows, columns)."""
        region = self._plan.regions[crop.tensor]
        place = self._plan.places[crop.tensor]
        # Maps of the same geometry, of which a network has many, share what says where their pixels are.
        key = place, region.extent, region.size, astuple(crop)[1:]
        if key not in self._made:
            self._made[key] = self._new_indices(crop, region, place)
        return self._made[key]

    def _new_indices(self, crop: Crop, region: Region, place: int) -> Tensor:
        (height, width), (tall, wide) = region.extent, region.size
        (y, is_new_y, is_in_y), (x, is_new_x, is_in_x) = (self._along(crop, axis) for axis in (0, 1))
        first, left = self._begins(place, 0), self._begins(place, 1)
        new = (PAD_ROWS + height * width + self._batch * (tall * wide) - first * wide - left)[
            :, None
        ] + y * wide
        old = PAD_ROWS + y * width
        is_new = is_new_y[:, :, None] & is_new_x[:, None, :]
        columns = x[:, None, :]
        index = tf.where(is_new, new[:, :, None], old[:, :, None]) + columns
        if crop.outside:
            is_in = is_in_y[:, :, None] & is_in_x[:, None, :]
            index = tf.where(is_in, index, 0 if crop.outside == "zero" else 1)
        return index

    def _along(self, crop: Crop, axis: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return a window's coordinates along an axis (batch, size), and which are in the region and map."""
        region = self._plan.regions[crop.tensor]
        offsets = np.arange(crop.size[axis], dtype=np.int32) * crop.step[axis] - crop.before[axis]
        begin = self._batch * 0 if crop.at is None else self._begins(crop.at, axis) * crop.stride[axis]
        where = begin[:, None] + offsets
        within = where - self._begins(self._plan.places[crop.tensor], axis)[:, None]
        is_new = (within >= 0) & (within < region.size[axis])
        return where, is_new, (where >= 0) & (where < region.extent[axis])

    def _begins(self, place: int, axis: int) -> Tensor:
        """Return where the regions of a place begin along an axis, (batch,)."""
        key = place, axis
        if key not in self._made:
            self._made[key] = self._starts[place, axis]
        return self._made[key]

    def _shares(self, step: Step, operation: Windowed) -> Tensor:
        """Return by what a mean over whole windows is multiplied to be one over what is in the map."""
        crop = step.crops[0]
        extent = self._plan.regions[crop.tensor].extent
        size = self._plan.regions[step.node.name].size
        inside = []
        for axis, sliding in enumerate((operation.rows, operation.columns)):
            offsets = np.arange(size[axis], dtype=np.int32) * sliding.stride - sliding.before
            begin = self._begins(self._plan.places[step.node.name], axis)[:, None] * sliding.stride + offsets
            count = tf.minimum(begin + sliding.kernel, extent[axis]) - tf.maximum(begin, 0)
            inside.append(tf.cast(sliding.kernel, tf.float32) / tf.cast(count, tf.float32))
        return (inside[0][:, :, None] * inside[1][:, None, :])[..., None]


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
