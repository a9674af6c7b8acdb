"""Rewrites the flat graph of a gradient so that its backward half computes the same with less work.

The forward half keeps every bit: where the input of a ReLU is next to 0, the last bit of it decides whether
a whole path has a slope, and the gradient of the signature is the one that is promised. Once these choices
are made the backward half is linear, so there a scale may move from a map into a kernel: exact to rounding.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import tensorflow as tf

from vitrail_server.savedmodel.flat import Array, FlatGraph, Node, copy_of, first_output, name_of
from vitrail_server.savedmodel.passes import (
    binary,
    channels_last,
    fold_constants,
    per_channel,
    skip_identities,
    tensor_and_constant,
)

CONVOLUTION, DEPTHWISE = "Conv2DBackpropInput", "DepthwiseConv2dNativeBackpropInput"
"""The derivatives of convolutions by the image: linear in a kernel, their second input, and in the slopes of
what the convolution gave, their third."""

BATCH_NORM = "FusedBatchNormGradV3"

LARGEST_COPY = 1 << 21
"""Bytes of the largest kernel of which the backward half gets a copy of its own. In a network with larger
ones the multiplications saved are few beside the others, and memory is dear."""


def cheapen(graph: FlatGraph) -> FlatGraph:
    """Apply all passes."""
    for each in (fold_constants, skip_identities, spell_out_batch_norms, fold_scales, convolve):
        graph = each(graph).needed()
    return graph


def spell_out_batch_norms(graph: FlatGraph) -> FlatGraph:
    """Write the derivative of a batch normalisation by what it normalises as the multiplication that it is.

    TensorFlow's operation also computes the derivatives by scale and offset, which nobody asks for.
    """
    uses = graph.uses()
    nodes, constants = dict(graph.nodes), dict(graph.constants)
    for node in graph.nodes.values():
        if node.op != BATCH_NORM or node.attr["is_training"].b or not channels_last(node):
            continue
        scale, variance = (constants.get(first_output(node.input[place])) for place in (2, 4))
        if scale is None or variance is None or any(uses[f"{node.name}:{place}"] for place in range(1, 5)):
            continue
        factor = scale.astype(np.float64) / np.sqrt(variance.astype(np.float64) + node.attr["epsilon"].f)
        constants[f"{node.name}/factor"] = factor.astype(tf.as_dtype(node.attr["T"].type).as_numpy_dtype)
        nodes[node.name] = binary(node.name, "Mul", node, node.input[0], f"{node.name}/factor")
    return replace(graph, nodes=nodes, constants=constants)


def fold_scales(graph: FlatGraph) -> FlatGraph:
    """Multiply the kernel of a convolution's derivative instead of the slopes that it takes."""
    nodes, constants = dict(graph.nodes), dict(graph.constants)
    for node in graph.nodes.values():
        kernel = _kernel(node, constants)
        product = None if kernel is None else graph.nodes.get(first_output(node.input[2]))
        if kernel is None or product is None or product.op != "Mul":
            continue
        operands = tensor_and_constant(product, constants)
        channels = kernel.shape[2:] if node.op == DEPTHWISE else kernel.shape[3:]
        factor = None if operands is None else per_channel(operands[1], int(np.prod(channels)))
        if operands is None or factor is None:
            continue
        constants[f"{node.name}/kernel"] = np.asarray(kernel * factor.reshape(channels))
        folded = copy_of(node)
        folded.input[1:] = [f"{node.name}/kernel", operands[0]]
        nodes[node.name] = folded
    return replace(graph, nodes=nodes, constants=constants)


def convolve(graph: FlatGraph) -> FlatGraph:
    """Write the derivative of a convolution without strides as the convolution that it is.

    TensorFlow turns the kernel around in every call otherwise, which for the last layers of a network takes
    longer than the slopes of one small map.
    """
    nodes, constants = dict(graph.nodes), dict(graph.constants)
    channels = _Channels(graph)
    for node in graph.nodes.values():
        kernel = _kernel(node, constants)
        if node.op != CONVOLUTION or kernel is None or any(each != 1 for each in node.attr["strides"].list.i):
            continue
        paddings = _paddings(node, kernel)
        # A convolution in groups has fewer channels in its kernel.
        if (paddings < 0).any() or channels.of(node.input[0]) != kernel.shape[2]:
            continue
        constants[f"{node.name}/turned"] = np.ascontiguousarray(kernel[::-1, ::-1].transpose(0, 1, 3, 2))
        convolution = binary(node.name, "Conv2D", node, node.input[2], f"{node.name}/turned")
        for name in ("strides", "dilations", "data_format"):
            convolution.attr[name].CopyFrom(node.attr[name])
        convolution.attr["padding"].s = b"EXPLICIT" if paddings.any() else b"VALID"
        convolution.attr["explicit_paddings"].list.i[:] = (
            paddings.reshape(-1).tolist() if paddings.any() else []
        )
        nodes[node.name] = convolution
    return replace(graph, nodes=nodes, constants=constants)


class _Channels:
    """How many channels the maps have whose shapes a graph asks for."""

    def __init__(self, graph: FlatGraph) -> None:
        self._graph = graph
        self._tensors: Any = None
        """The graph as TensorFlow sees it, once it is asked."""

    def of(self, shape: str) -> int | None:
        """Return the last number of a shape, given by its name; None if it is not known."""
        value = self._graph.constants.get(first_output(shape))
        if value is not None:
            return int(value[-1])
        node = self._graph.nodes[name_of(shape)]
        if node.op not in ("Shape", "ShapeN"):
            return None
        source = first_output(node.input[int(shape.partition(":")[2] or 0)])
        found = self._tensor(source if ":" in source else f"{source}:0").shape
        return found[-1] if found.rank else None

    def _tensor(self, name: str) -> Any:
        if self._tensors is None:
            with tf.Graph().as_default() as self._tensors:
                tf.graph_util.import_graph_def(self._graph.definition(embed=()), name="")
        return self._tensors.get_tensor_by_name(name)


def _kernel(node: Node, constants: Mapping[str, Array]) -> Array | None:
    """Return the kernel of a convolution's derivative, if there may be another copy of it."""
    if node.op not in (CONVOLUTION, DEPTHWISE) or len(node.input) != 3 or not channels_last(node):
        return None
    kernel = constants.get(first_output(node.input[1]))
    if kernel is None or kernel.nbytes > LARGEST_COPY or kernel.dtype not in (np.float32, np.float64):
        return None
    return kernel


def _paddings(node: Node, kernel: Array) -> Array:
    """Return the paddings (4, 2) of the convolution that is the derivative of one without strides.

    Both together pad each side by as much as the kernel reaches.
    """
    dilations = node.attr["dilations"].list.i or (1, 1, 1, 1)
    reach = [(size - 1) * by for size, by in zip(kernel.shape[:2], dilations[1:3], strict=True)]
    match node.attr["padding"].s:
        case b"SAME":
            own = [(each // 2, each - each // 2) for each in reach]
        case b"EXPLICIT":
            explicit = node.attr["explicit_paddings"].list.i
            own = [tuple(explicit[2:4]), tuple(explicit[4:6])]
        case _:
            own = [(0, 0), (0, 0)]
    rest = [(each - before, each - after) for each, (before, after) in zip(reach, own, strict=True)]
    return np.array([(0, 0), *rest, (0, 0)])
