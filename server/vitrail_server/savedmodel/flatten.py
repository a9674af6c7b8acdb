"""Makes a flat graph of a traced function: calls inlined, variables read, once and for all.

Not done by TensorFlow's `convert_variables_to_constants_v2`, which copies all weights about twenty times.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import config_pb2, meta_graph_pb2
from tensorflow.python.grappler import tf_optimizer

from vitrail_server.savedmodel.flat import (
    Array,
    FlatGraph,
    Node,
    array_of,
    copy_of,
    is_number,
    is_stateful,
    name_of,
)
from vitrail_server.wording import quoted

Outside = Mapping[str, Callable[[], Array] | None]
"""How to read what a function uses from outside, by the placeholder that stands for it. None: not at all."""


class NotFlat(Exception):
    """The function needs something that cannot become a constant; the message says what."""


def flatten(concrete: Any) -> FlatGraph:
    """Return the graph of a concrete function, with the values that its variables have now.

    Raises:
        NotFlat: it uses a table, or a variable in another way than by reading it.

    """
    outside = _outside(concrete)
    definition = _inlined(concrete)
    placeholders = [tensor.op.name for tensor in concrete.inputs]
    found = {node.name: node for node in definition.node}
    for node in definition.node:
        node.attr.pop("_class", None)  # to be placed beside another node, which may be left out
    nodes: dict[str, Node] = {}
    constants: dict[str, Array] = {}
    for node in definition.node:
        if node.op == "ResourceGather":
            constants[f"{node.name}/variable"] = _read(node, found, outside)
            constants[f"{node.name}/axis"] = np.asarray(node.attr["batch_dims"].i, np.int32)
            nodes[node.name] = _gather(node)
        elif (value := _constant(node, found, outside)) is not None:
            constants[node.name] = value
        else:
            nodes[node.name] = node
    graph = FlatGraph(
        nodes=_without_idle_controls(nodes),
        constants=constants,
        inputs=tuple(name for name in placeholders if name not in outside),
        outputs=tuple(tensor.name.removesuffix(":0") for tensor in concrete.outputs),
        library=definition.library,
        versions=definition.versions,
    ).needed()
    for node in graph.nodes.values():
        if not (outside.keys() - constants.keys()).isdisjoint(map(name_of, node.input)):
            raise NotFlat(
                f"operation {quoted(node.name)} ({node.op}) uses something that cannot become a constant: a "
                "table, for example, or a variable within a loop"
            )
    return graph


def _outside(concrete: Any) -> Outside:
    variables = {id(variable.handle): variable.numpy for variable in concrete.graph.variables}
    return {
        placeholder.op.name: variables.get(id(tensor), getattr(tensor, "numpy", None))
        if id(tensor) in variables or is_number(tensor.dtype)
        else None
        for tensor, placeholder in concrete.graph.captures
    }


def _constant(node: Node, nodes: Mapping[str, Node], outside: Outside) -> Array | None:
    """Return the value of a node that is a constant or reads a variable; None of any other."""
    if node.op == "Const":
        return array_of(node)
    if node.op == "ReadVariableOp":
        return _read(node, nodes, outside)
    if node.name in outside and is_number(tf.as_dtype(node.attr["dtype"].type)):
        return _read(node, nodes, outside)
    return None


def _read(node: Node, nodes: Mapping[str, Node], outside: Outside) -> Array:
    """Return the value that a node is or reads, through whatever hands it on."""
    source = node
    while source.name not in outside and source.input:
        source = nodes[name_of(source.input[0])]
    read = outside.get(source.name)
    if read is None:
        raise NotFlat(f"operation {quoted(node.name)} ({node.op}) reads a variable that has no value yet")
    return np.asarray(read())


def _gather(node: Node) -> Node:
    """Return the node that gathers from a constant what this one gathers from a variable."""
    gather = tf.compat.v1.NodeDef(name=node.name, op="GatherV2")
    gather.input.extend([f"{node.name}/variable", node.input[1], f"{node.name}/axis"])
    gather.attr["Tparams"].CopyFrom(node.attr["dtype"])
    gather.attr["Tindices"].CopyFrom(node.attr["Tindices"])
    gather.attr["Taxis"].type = tf.int32.as_datatype_enum
    gather.attr["batch_dims"].CopyFrom(node.attr["batch_dims"])
    return gather


def _without_idle_controls(nodes: Mapping[str, Node]) -> dict[str, Node]:
    """Return the nodes without control inputs that wait for nothing that has an effect.

    Reading a variable waited for its writers; now that its value is known, nothing is left to wait for.
    """
    effective: dict[str, bool] = {}

    def has_effect(name: str) -> bool:
        waiting = [name]
        while waiting:
            current = waiting[-1]
            node = nodes.get(current)
            if current in effective or node is None:
                waiting.pop()
                continue
            before = [name_of(reference) for reference in node.input]
            unknown = [each for each in before if each in nodes and each not in effective]
            if unknown and not is_stateful(node):
                waiting += unknown
                continue
            effective[current] = is_stateful(node) or any(effective.get(each, False) for each in before)
            waiting.pop()
        return effective.get(name, False)

    result = {}
    for name, node in nodes.items():
        kept = [each for each in node.input if not each.startswith("^") or has_effect(name_of(each))]
        if len(kept) < len(node.input):
            node = copy_of(node)
            node.ClearField("input")
            node.input.extend(kept)
        result[name] = node
    return result


def _inlined(concrete: Any) -> Any:
    """Return the function's GraphDef with all calls replaced by what they call, loops as they are."""
    definition = concrete.graph.as_graph_def()
    _keep_loops(definition.node)
    for function in definition.library.function:
        # A second implementation of a layer, for another device, keeps the call from being inlined.
        function.attr.pop("api_implements", None)
        _keep_loops(function.node_def)
    meta_graph = tf.compat.v1.train.export_meta_graph(graph_def=definition, graph=concrete.graph)
    meta_graph.ClearField("collection_def")
    fetched = meta_graph_pb2.CollectionDef()
    fetched.node_list.value.extend(tensor.name for tensor in concrete.inputs + concrete.outputs)
    meta_graph.collection_def["train_op"].CopyFrom(fetched)
    config = config_pb2.ConfigProto()
    options = config.graph_options.rewrite_options
    options.min_graph_nodes = -1
    options.optimizers.append("function")
    return tf_optimizer.OptimizeGraph(config, meta_graph)


def _keep_loops(nodes: Any) -> None:
    """Leave While and If whole: as a tangle of switches and merges they would be no better."""
    for node in nodes:
        if "_lower_using_switch_merge" in node.attr:
            node.attr["_lower_using_switch_merge"].b = False
