"""A flat graph for images of one size: what every tensor depends on, and its shape for one image."""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, NamedTuple

import tensorflow as tf

from vitrail_server.savedmodel.flat import Array, FlatGraph, Node, first_output, name_of
from vitrail_server.servable import ImageSize

Shape = tuple[int, ...]

SMALL = 64
"""Elements. Constants up to this size (shapes, axes, paddings) are written into the graphs that are made of
this one; larger ones are shared by them."""


class _Spec(NamedTuple):
    """What is known of a tensor."""

    shape: Shape | None
    dtype: Any


class SizedGraph:
    """The operations that an output needs, each after those it uses."""

    def __init__(self, flat: FlatGraph, image: str, size: ImageSize) -> None:
        """`image` is the placeholder of the image input."""
        self.flat = flat
        self.image = image
        self.size = size
        self.nodes: Sequence[Node] = _in_order(flat)
        self._by_image = _users(self.nodes, {image})
        self._by_input = _users(self.nodes, set(flat.inputs))
        self._specs = _specs(flat, image, size)
        self.outputs = tuple(first_output(each) for each in flat.outputs)

    def depends(self, reference: str) -> bool:
        """Return whether a tensor depends on the image."""
        return name_of(reference) in self._by_image

    def is_fixed(self, reference: str) -> bool:
        """Return whether a tensor depends on no input at all."""
        return name_of(reference) not in self._by_input

    def constant(self, reference: str) -> Array | None:
        """Return the value of a tensor that is a constant."""
        return self.flat.constants.get(first_output(reference))

    def shape(self, reference: str) -> Shape | None:
        """Return the shape of a tensor for one image; None where it is not known."""
        return self._specs[first_output(reference)].shape

    def dtype(self, reference: str) -> Any:
        """Return the TensorFlow type of a tensor."""
        return self._specs[first_output(reference)].dtype

    def tensor_bytes(self, reference: str) -> int:
        """Return how large a tensor is for one image; 0 where that is not known."""
        spec = self._specs.get(first_output(reference))
        return 0 if spec is None or spec.shape is None else prod(spec.shape) * int(spec.dtype.size)


def _in_order(flat: FlatGraph) -> list[Node]:
    """Return what the outputs need, each node after those it uses; a cycle stays in any order."""
    ordered: dict[str, Node] = {}
    for output in flat.outputs:
        waiting = [(name_of(output), False)]
        while waiting:
            name, ready = waiting.pop()
            if name in ordered or name not in flat.nodes:
                continue
            node = flat.nodes[name]
            if ready:
                ordered[name] = node
            else:
                waiting.append((name, True))
                waiting.extend((name_of(each), False) for each in node.input if name_of(each) not in ordered)
    return list(ordered.values())


def _users(nodes: Sequence[Node], sources: set[str]) -> set[str]:
    """Return the names of what depends on one of the sources, which included."""
    found = set(sources)
    for node in nodes:
        if any(name_of(each) in found for each in node.input):
            found.add(node.name)
    return found


def _specs(flat: FlatGraph, image: str, size: ImageSize) -> Mapping[str, _Spec]:
    """Return all tensors with their shapes, where TensorFlow can infer them, for a batch of one image."""
    with tf.Graph().as_default() as graph:
        inputs = {}
        for name in flat.inputs:
            node = flat.nodes[name]
            shape = tf.TensorShape(node.attr["shape"].shape)
            if shape.rank:
                extents = shape.as_list()
                shape = [1, *size, extents[3]] if name == image else [1, *extents[1:]]
            inputs[f"{name}:0"] = tf.compat.v1.placeholder(tf.as_dtype(node.attr["dtype"].type), shape)
        small = [name for name, value in flat.constants.items() if value.size <= SMALL]
        tf.graph_util.import_graph_def(flat.definition(small), inputs, name="")
        found = {
            first_output(tensor.name): _spec(tensor)
            for each in graph.get_operations()
            for tensor in each.outputs
        }
    return found | {name[:-2]: _spec(tensor) for name, tensor in inputs.items()}


def _spec(tensor: Any) -> _Spec:
    """Return what is known of a tensor, without its graph."""
    return _Spec(tuple(tensor.shape) if tensor.shape.is_fully_defined() else None, tensor.dtype)


def attributes(node: Node, name: str) -> tuple[int, ...]:
    """Return an attribute that is a list of numbers; empty if it is not there."""
    # Never looked up without asking: a protobuf map makes what is missing.
    return tuple(node.attr[name].list.i) if name in node.attr else ()


def flag(node: Node, name: str) -> bool:
    """Return an attribute that is yes or no; no if it is not there."""
    return bool(node.attr[name].b) if name in node.attr else False


def number(node: Node, name: str) -> int:
    """Return an attribute that is a number; 0 if it is not there."""
    return int(node.attr[name].i) if name in node.attr else 0


def text(node: Node, name: str, default: str) -> str:
    """Return an attribute that is text."""
    return node.attr[name].s.decode() if name in node.attr else default
