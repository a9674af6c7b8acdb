"""Rewrites a flat graph so that it computes the same with fewer and larger operations.

Every pass is a pure function from graph to graph, exact to rounding. Keras exports a batch normalisation as
a dozen operations on its variables; after these passes it is part of a kernel and a bias.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import tensorflow as tf

from vitrail_server.savedmodel.flat import (
    Array,
    FlatGraph,
    Node,
    copy_of,
    first_output,
    in_order,
    is_number,
    is_stateful,
    name_of,
)

CONVOLUTION, DEPTHWISE, PRODUCT = "Conv2D", "DepthwiseConv2dNative", "MatMul"
KERNELS = frozenset({CONVOLUTION, DEPTHWISE, PRODUCT})
"""Operations that are linear in a kernel, their second input."""

HANDING_ON = frozenset({"Identity", "StopGradient", "PreventGradient", "Snapshot"})
"""Operations whose output is their input; no gradient is ever taken of a flat graph."""

CALLS = frozenset({"PartitionedCall", "StatelessWhile", "StatelessIf", "StatelessCase"})
"""Operations that run a function of the library."""

LARGEST_FOLDED = 1 << 20
"""Bytes. What would be larger than this, and than every constant there is, stays a computation."""

LARGEST_SHAPE = 32
"""Elements of the largest constant that may be a shape."""


def simplify(graph: FlatGraph) -> FlatGraph:
    """Apply all passes."""
    for each in (
        fold_constants,
        skip_identities,
        spell_out_batch_norms,
        bias_adds,
        fold_scales,
        bias_adds,
        fold_pads,
    ):
        graph = each(graph).needed()
    return graph


def fold_constants(graph: FlatGraph) -> FlatGraph:
    """Compute what depends on constants only."""
    foldable: dict[str, Node] = {}
    for node in in_order(graph):
        known = node.input and all(
            not each.startswith("^") and (name_of(each) in graph.constants or name_of(each) in foldable)
            for each in node.input
        )
        if known and not is_stateful(node) and node.op not in CALLS:
            foldable[node.name] = node
    used = {first_output(reference) for reference in graph.outputs}
    for name, node in graph.nodes.items():
        if name not in foldable:
            used.update(first_output(reference) for reference in node.input)
    wanted = sorted(each for each in used if name_of(each) in foldable and not each.startswith("^"))
    if not wanted:
        return graph
    values = _evaluated(replace(graph, nodes=foldable, inputs=(), outputs=tuple(wanted)).needed())
    names: dict[str, str] = {}
    constants = dict(graph.constants)
    largest = max((value.nbytes for value in graph.constants.values()), default=0)
    for reference, value in values.items():
        if value.nbytes <= max(largest, LARGEST_FOLDED):
            names[reference] = f"{reference.replace(':', '/')}/folded"
            constants[names[reference]] = value
    return replace(_renamed(graph, names), constants=constants)


def skip_identities(graph: FlatGraph) -> FlatGraph:
    """Refer past operations that only hand on what they are given."""
    names: dict[str, str] = {}
    for node in in_order(graph):
        if node.op in HANDING_ON and len(node.input) == 1:
            source = first_output(node.input[0])
            names[node.name] = names.get(source, source)
    return _renamed(graph, names)


def spell_out_batch_norms(graph: FlatGraph) -> FlatGraph:
    """Write a batch normalisation after a convolution as a multiplication and an addition, to be folded."""
    uses = graph.uses()
    nodes, constants = dict(graph.nodes), dict(graph.constants)
    for node in graph.nodes.values():
        if not node.op.startswith("FusedBatchNorm") or node.attr["is_training"].b or not channels_last(node):
            continue
        source = graph.nodes.get(first_output(node.input[0]))
        statistics = [graph.constants.get(first_output(each)) for each in node.input[1:5]]
        if (
            source is None
            or source.op not in KERNELS
            or len(node.input) != 5
            or any(value is None for value in statistics)
            or any(uses[f"{node.name}:{place}"] for place in range(1, 6))
        ):
            continue
        scale, offset, mean, variance = (np.asarray(value, np.float64) for value in statistics)
        factor = scale / np.sqrt(variance + node.attr["epsilon"].f)
        kind = _dtype(node)
        constants[f"{node.name}/factor"] = factor.astype(kind)
        constants[f"{node.name}/offset"] = (offset - mean * factor).astype(kind)
        scaled = f"{node.name}/scaled"
        nodes[scaled] = binary(scaled, "Mul", node, first_output(node.input[0]), f"{node.name}/factor")
        nodes[node.name] = binary(node.name, "AddV2", node, scaled, f"{node.name}/offset")
    return replace(graph, nodes=nodes, constants=constants)


def bias_adds(graph: FlatGraph) -> FlatGraph:
    """Write the addition of a vector after a kernel as BiasAdd, and two of them as one."""
    uses = graph.uses()
    nodes, constants = dict(graph.nodes), dict(graph.constants)
    for node in in_order(graph):
        if node.op not in ("Add", "AddV2", "Sub", "BiasAdd") or not channels_last(node):
            continue
        operands = tensor_and_constant(node, constants)
        source = nodes.get(first_output(operands[0])) if operands else None
        if operands is None or source is None or source.op not in KERNELS | {"BiasAdd"}:
            continue
        reference, value = operands
        kernel = _kernel_behind(source, nodes)
        vector = None if kernel is None else per_channel(value, _channels(kernel, constants))
        if vector is None:
            continue
        if node.op == "Sub":
            if first_output(node.input[0]) != reference:
                continue
            vector = -vector
        name = f"{node.name}/bias"
        if source.op == "BiasAdd" and uses[source.name] == 1:
            before = constants.get(first_output(source.input[1]))
            if before is not None:
                reference, vector = source.input[0], before + vector
        constants[name] = vector
        biased = binary(node.name, "BiasAdd", node, reference, name)
        biased.attr["data_format"].s = b"NHWC"
        nodes[node.name] = biased
    return replace(graph, nodes=nodes, constants=constants)


def fold_scales(graph: FlatGraph) -> FlatGraph:
    """Multiply kernels and biases instead of what they produce."""
    uses = graph.uses()
    nodes, constants = dict(graph.nodes), dict(graph.constants)
    names: dict[str, str] = {}
    for node in in_order(graph):
        operands = tensor_and_constant(node, constants) if node.op == "Mul" else None
        if operands is None:
            continue
        source = nodes.get(names.get(first_output(operands[0]), first_output(operands[0])))
        if source is None or uses[source.name] != 1:
            continue
        biased = source if source.op == "BiasAdd" else None
        kernel = _kernel_behind(source, nodes)
        if kernel is None or (biased is not None and uses[kernel.name] != 1):
            continue
        factor = per_channel(operands[1], _channels(kernel, constants))
        if factor is None:
            continue
        if biased is not None:
            bias = constants.get(first_output(biased.input[1]))
            if bias is None:
                continue
            constants[f"{node.name}/bias"] = bias * factor
            nodes[biased.name] = _with_input(biased, 1, f"{node.name}/bias")
        constants[f"{node.name}/kernel"] = _scaled(kernel, constants[first_output(kernel.input[1])], factor)
        nodes[kernel.name] = _with_input(kernel, 1, f"{node.name}/kernel")
        # What used the product uses what it was made of, as often as it was used itself.
        uses[source.name] = uses[node.name]
        names[node.name] = source.name
    return _renamed(replace(graph, nodes=nodes, constants=constants), names)


def fold_pads(graph: FlatGraph) -> FlatGraph:
    """Let a convolution pad its image itself.

    Not a depthwise one: TensorFlow 2.21 fuses it with its bias all the same, and then aborts the process.
    """
    nodes = dict(graph.nodes)
    for node in graph.nodes.values():
        if node.op != CONVOLUTION or not channels_last(node):
            continue
        pad = graph.nodes.get(first_output(node.input[0]))
        paddings = _zero_paddings(pad, graph.constants) if pad is not None else None
        own = _own_paddings(node)
        if pad is None or paddings is None or own is None:
            continue
        merged = _with_input(node, 0, first_output(pad.input[0]))
        merged.attr["padding"].s = b"EXPLICIT"
        merged.attr["explicit_paddings"].list.i[:] = (paddings + own).reshape(-1).tolist()
        nodes[node.name] = merged
    return replace(graph, nodes=nodes)


def _zero_paddings(pad: Node, constants: Mapping[str, Array]) -> Array | None:
    """Return the (4, 2) paddings of a node that pads height and width with zeros; None of any other."""
    if pad.op not in ("Pad", "PadV2") or any(each.startswith("^") for each in pad.input):
        return None
    paddings = constants.get(first_output(pad.input[1]))
    if pad.op == "PadV2":
        value = constants.get(first_output(pad.input[2]))
        if value is None or value.any():
            return None
    if paddings is None or paddings.shape != (4, 2) or paddings[[0, 3]].any() or (paddings < 0).any():
        return None
    return paddings


def _own_paddings(node: Node) -> Array | None:
    """Return the (4, 2) paddings of a convolution; None where they depend on the image's size."""
    match node.attr["padding"].s:
        case b"VALID":
            return np.zeros((4, 2), np.int64)
        case b"EXPLICIT":
            return np.array(node.attr["explicit_paddings"].list.i, np.int64).reshape(4, 2)
    return None


def _evaluated(graph: FlatGraph) -> Mapping[str, Array]:
    """Compute those outputs of a graph without inputs that are numbers: not a loop's lists, for example."""
    constants = graph.constants.items()
    # Some operations take shapes from constants only.
    embedded = {name for name, value in constants if value.dtype.kind == "i" and value.size <= LARGEST_SHAPE}
    given = {f"{name}:0": value for name, value in constants if name not in embedded}
    host = tf.compat.v1.ConfigProto(device_count={"GPU": 0})
    with tf.Graph().as_default(), tf.compat.v1.Session(config=host) as session:
        references = [each if ":" in each else f"{each}:0" for each in graph.outputs]
        tensors = tf.graph_util.import_graph_def(
            graph.definition(embedded), return_elements=references, name=""
        )
        found = zip(graph.outputs, tensors, strict=True)
        wanted = {reference: tensor for reference, tensor in found if is_number(tensor.dtype)}
        computed: Mapping[str, Any] = session.run(wanted, given)
    return {reference: np.asarray(value) for reference, value in computed.items()}


def _renamed(graph: FlatGraph, names: Mapping[str, str]) -> FlatGraph:
    """Let everything that refers to a tensor in `names` refer to another one."""
    if not names:
        return graph
    nodes = {}
    for name, node in graph.nodes.items():
        references = [names.get(first_output(each), each) for each in node.input]
        if references != list(node.input):
            node = copy_of(node)
            node.input[:] = references
        nodes[name] = node
    return replace(
        graph,
        nodes=nodes,
        outputs=tuple(names.get(first_output(each), each) for each in graph.outputs),
    )


def tensor_and_constant(node: Node, constants: Mapping[str, Array]) -> tuple[str, Array] | None:
    """Return the reference of one operand and the value of the other; None unless exactly one is known."""
    if len(node.input) != 2:
        return None
    first, second = (first_output(each) for each in node.input)
    if second in constants and first not in constants:
        return first, constants[second]
    if first in constants and second not in constants:
        return second, constants[first]
    return None


def _kernel_behind(node: Node, nodes: Mapping[str, Node]) -> Node | None:
    """Return the node with the kernel that a node is, or adds a bias to."""
    if node.op == "BiasAdd":
        behind = nodes.get(first_output(node.input[0]))
        return None if behind is None or behind.op not in KERNELS else behind
    return node if node.op in KERNELS else None


def _channels(kernel: Node, constants: Mapping[str, Array]) -> int:
    """Return how many channels a kernel produces; 0 where that is not known, or they are not last."""
    value = constants.get(first_output(kernel.input[1]))
    if value is None or not channels_last(kernel) or len(kernel.input) != 2:
        return 0
    if kernel.op == PRODUCT:
        return int(value.shape[0 if kernel.attr["transpose_b"].b else 1])
    return int(np.prod(value.shape[2:])) if kernel.op == DEPTHWISE else int(value.shape[3])


def per_channel(value: Array, channels: int) -> Array | None:
    """Return a constant as one number per channel; None if it is not that."""
    if not channels or value.size not in (1, channels) or value.size != (value.shape or (1,))[-1]:
        return None
    return np.broadcast_to(value.reshape(-1), channels).copy()


def _scaled(kernel: Node, value: Array, factor: Array) -> Array:
    if kernel.op == PRODUCT and kernel.attr["transpose_b"].b:
        return np.asarray(value * factor[:, None])
    if kernel.op == DEPTHWISE:
        return np.asarray(value * factor.reshape(value.shape[2:]))
    return np.asarray(value * factor)


def channels_last(node: Node) -> bool:
    """Return whether the last axis of a node's maps counts their channels, where it has any."""
    return "data_format" not in node.attr or node.attr["data_format"].s in (b"NHWC", b"")


def _dtype(node: Node) -> Any:
    return tf.as_dtype(node.attr["T"].type).as_numpy_dtype


def binary(name: str, operation: str, like: Node, first: str, second: str) -> Node:
    """Return an operation on two tensors of the type and on the device of another one."""
    node = tf.compat.v1.NodeDef(name=name, op=operation, device=like.device)
    node.input.extend([first, second])
    node.attr["T"].CopyFrom(like.attr["T"])
    return node


def _with_input(node: Node, place: int, reference: str) -> Node:
    changed = copy_of(node)
    changed.input[place] = reference
    return changed
