"""A forward as one flat graph: no function calls, no variables, constants kept apart from the nodes.

The form that `passes` rewrite, that is sent from one process to another, and that programs are made of.
The nodes of a large network take a few hundred kilobytes, so rewriting them copies no weights.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from tensorflow.python.framework import op_def_registry

Node: TypeAlias = Any
"""A NodeDef; TensorFlow carries no types."""

Array: TypeAlias = NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class FlatGraph:
    """Operations and constants by name; what no output needs may be missing.

    A tensor is referred to as in a GraphDef: `name` is the first output of the node, `name:1` the second,
    `^name` a control input.
    """

    nodes: Mapping[str, Node]
    """All operations but the constants. Not to be changed."""
    constants: Mapping[str, Array]
    """The values of the constants, by the names under which nodes refer to them. Not to be changed."""
    inputs: tuple[str, ...]
    """The placeholders to feed, in order."""
    outputs: tuple[str, ...]
    """The tensors wanted, in order."""
    library: Any
    """A FunctionDefLibrary: the bodies of what could not be made flat, a loop for example."""
    versions: Any
    """A VersionDef: which semantics the operations have."""

    def uses(self) -> Counter[str]:
        """Return how often each tensor is used, being an output included."""
        uses = Counter(first_output(reference) for reference in self.outputs)
        for node in self.nodes.values():
            uses.update(first_output(reference) for reference in node.input)
        return uses

    def needed(self) -> "FlatGraph":
        """Return the graph without what no output needs; the inputs stay."""
        found: set[str] = set(self.inputs)
        waiting = [name_of(reference) for reference in self.outputs]
        while waiting:
            name = waiting.pop()
            if name not in found:
                found.add(name)
                waiting += [name_of(each) for each in self.nodes[name].input] if name in self.nodes else []
        return replace(
            self,
            nodes={name: node for name, node in self.nodes.items() if name in found},
            constants={name: value for name, value in self.constants.items() if name in found},
        )

    def definition(self, embed: Iterable[str] | None = None) -> Any:
        """Return a GraphDef; the constants not in `embed` are placeholders in it. None: embed all of them.

        A GraphDef has at most 2 GB.
        """
        definition = tf.compat.v1.GraphDef(library=self.library, versions=self.versions)
        embedded = set(self.constants if embed is None else embed)
        for name, value in self.constants.items():
            node = definition.node.add(name=name, op="Const" if name in embedded else "Placeholder")
            dtype = tf.as_dtype(value.dtype)
            node.attr["dtype"].type = dtype.as_datatype_enum
            if name in embedded:
                node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value, dtype, value.shape))
            else:
                node.attr["shape"].shape.CopyFrom(tf.TensorShape(value.shape).as_proto())
        definition.node.extend(self.nodes.values())
        return definition

    def input_specs(self) -> list[Any]:
        """Return a TensorSpec for each input."""
        return [
            tf.TensorSpec(
                tf.TensorShape(self.nodes[name].attr["shape"].shape),
                tf.as_dtype(self.nodes[name].attr["dtype"].type),
                name=f"input_{place}",
            )
            for place, name in enumerate(self.inputs)
        ]

    @property
    def constant_bytes(self) -> int:
        """The bytes of all constants."""
        return sum(value.nbytes for value in self.constants.values())


def in_order(graph: FlatGraph) -> list[Node]:
    """Return the nodes so that each comes after those it uses; those in a cycle are left out."""
    users: dict[str, list[str]] = {}
    missing: dict[str, int] = {}
    for name, node in graph.nodes.items():
        sources = {name_of(each) for each in node.input} & graph.nodes.keys()
        missing[name] = len(sources)
        for source in sources:
            users.setdefault(source, []).append(name)
    ready = [name for name, count in missing.items() if not count]
    for name in ready:  # grows meanwhile
        for user in users.get(name, ()):
            missing[user] -= 1
            if not missing[user]:
                ready.append(user)
    return [graph.nodes[name] for name in ready]


def first_output(reference: str) -> str:
    """Return a reference in its only form: the first output without its number."""
    return reference.removesuffix(":0")


def name_of(reference: str) -> str:
    """Return the node that a tensor or a control input comes from."""
    return reference.removeprefix("^").partition(":")[0]


def copy_of(node: Node) -> Node:
    """Return a node to change."""
    copy = tf.compat.v1.NodeDef()
    copy.CopyFrom(node)
    return copy


def is_stateful(node: Node) -> bool:
    """Return whether running a node may have an effect, or give something else the next time."""
    operation = op_def_registry.get(node.op)
    return operation is None or bool(operation.is_stateful)


def is_number(dtype: Any) -> bool:
    """Return whether a TensorFlow type has a NumPy type for computing with."""
    return bool(dtype.is_floating or dtype.is_integer or dtype.is_bool or dtype.is_complex) and (
        not dtype.is_quantized
    )


def array_of(node: Node) -> Array | None:
    """Return the value of a Const node; None where it is not made of numbers."""
    if not is_number(tf.as_dtype(node.attr["dtype"].type)):
        return None
    return np.asarray(tf.make_ndarray(node.attr["value"].tensor))
