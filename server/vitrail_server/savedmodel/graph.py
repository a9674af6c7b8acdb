"""Reads facts off a traced function's graph, without running it.

Works on the graph as exported, with its nested functions, so nothing depends on freezing having worked.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

ELEMENT_BYTES = 4
"""Activations are taken to be float32."""

PASSING = frozenset({"Identity", "Reshape", "Squeeze", "Cast"})
"""Operations that hand on what they are given, in another form."""

CALLS = frozenset({"PartitionedCall", "StatefulPartitionedCall"})

SOFTMAX = "Softmax"
SIGMOID = "Sigmoid"


@dataclass(frozen=True, slots=True)
class Activations:
    """What one row of a batch occupies on its way through the graph, in bytes."""

    largest: int
    """The largest tensor."""
    total: int
    """All tensors together."""


@dataclass(frozen=True, slots=True)
class _Body:
    """A function's nodes by name, its arguments' positions by name, and what each result refers to."""

    nodes: Mapping[str, Any]
    arguments: Mapping[str, int]
    results: tuple[str, ...]


class Graph:
    """The graph of a traced function, read once."""

    def __init__(self, concrete: Any) -> None:
        definition = concrete.graph.as_graph_def(add_shapes=True)
        self._bodies = {each.signature.name: _body(each) for each in definition.library.function}
        self._main = _Body(
            {node.name: node for node in definition.node}, {}, tuple(each.name for each in concrete.outputs)
        )

    def producer(self, output: int) -> str:
        """Return the operation that the output at a position ends in, reshaping and casts aside."""
        return str(self._origin(self._main, self._main.results[output]))

    def activations(self) -> Activations:
        """Return an estimate from the static shapes; tensors of unknown shape are left out."""
        sizes = self._sizes(self._main)
        return Activations(max(sizes, default=0), sum(sizes))

    def _origin(self, body: _Body, reference: str) -> str | int:
        """Follow a tensor back to an operation, or to the position of one of the body's arguments."""
        while True:
            name, _, place = reference.partition(":")
            if name in body.arguments:
                return body.arguments[name]
            node = body.nodes[name]
            if node.op in PASSING:
                reference = node.input[0]
            elif node.op in CALLS:
                callee = self._bodies[node.attr["f"].func.name]
                origin = self._origin(callee, callee.results[int(place.rpartition(":")[2] or 0)])
                if isinstance(origin, str):
                    return origin
                reference = node.input[origin]
            else:
                return str(node.op)

    def _sizes(self, body: _Body) -> list[int]:
        sizes = []
        for node in body.nodes.values():
            if node.op in CALLS:
                sizes += self._sizes(self._bodies[node.attr["f"].func.name])
            else:
                sizes += [_row_bytes(shape) for shape in node.attr["_output_shapes"].list.shape]
        return sizes


def _body(function: Any) -> _Body:
    return _Body(
        {node.name: node for node in function.node_def},
        {argument.name: position for position, argument in enumerate(function.signature.input_arg)},
        tuple(function.ret[result.name] for result in function.signature.output_arg),
    )


def _row_bytes(shape: Any) -> int:
    """Return the bytes of one row of a tensor whose first axis is the batch, else 0."""
    extents = [dimension.size for dimension in shape.dim]
    if shape.unknown_rank or extents[:1] != [-1] or min(extents[1:], default=1) < 0:
        return 0
    size = ELEMENT_BYTES
    for extent in extents[1:]:
        size *= extent
    return size
