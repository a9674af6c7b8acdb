"""Derivatives of convolutions by what they convolve, written as convolutions themselves.

TensorFlow turns the kernel around in every call; here it is turned once. The numbers are the same to
rounding, for they are sums of the same products.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import tensorflow as tf

from vitrail_server.savedmodel.flat import Array, FlatGraph, Node, first_output, name_of
from vitrail_server.savedmodel.passes import binary, channels_last

CONVOLUTION, DEPTHWISE = "Conv2DBackpropInput", "DepthwiseConv2dNativeBackpropInput"
"""The derivatives of convolutions by the image: linear in a kernel, their second input, and in the slopes of
what the convolution gave, their third."""

IMAGE_CHANNELS = 4
"""The most channels that an image has."""

SMALL = 8
"""Elements of the largest constant that may say something about a shape."""

LARGEST_COPY = 1 << 24
"""Bytes of the largest kernel of which the backward half gets a copy of its own: all that are usual."""


def convolve(graph: FlatGraph) -> FlatGraph:
    """Write the derivative of a convolution without strides as the convolution that it is.

    For the last layers of a network, turning the kernel takes longer than the slopes of one small map.
    """
    nodes, constants = dict(graph.nodes), dict(graph.constants)
    shapes = _Shapes(graph)
    for node in backward_half(graph):
        kernel = kernel_of(node, constants)
        if node.op != CONVOLUTION or kernel is None or _strides(node) != (1, 1):
            continue
        # A convolution in groups has fewer channels in its kernel.
        if (shapes.of(node.input[0]) or (None,))[-1] != kernel.shape[2]:
            continue
        dilations = node.attr["dilations"].list.i or (1, 1, 1, 1)
        reach = [(size - 1) * by for size, by in zip(kernel.shape[:2], dilations[1:3], strict=True)]
        own = _paddings(node)
        if node.attr["padding"].s == b"SAME":
            own = [(each // 2, each - each // 2) for each in reach]
        # Together both pad each side by as much as the kernel reaches.
        rest = [(each - before, each - after) for each, (before, after) in zip(reach, own, strict=True)]
        if min(min(each) for each in rest) < 0:
            continue
        constants[f"{node.name}/turned"] = np.ascontiguousarray(kernel[::-1, ::-1].transpose(0, 1, 3, 2))
        convolution = _convolution(node.name, node, f"{node.name}/turned", rest)
        convolution.attr["dilations"].CopyFrom(node.attr["dilations"])
        nodes[node.name] = convolution
    return replace(graph, nodes=nodes, constants=constants)


def convolve_phases(graph: FlatGraph) -> FlatGraph:
    """Write the derivative of a convolution with strides by the image as a convolution without.

    Pixels that lie in the same place between two positions of the kernel, a phase, see the same part of it.
    All phases are one convolution with a channel for each, and the channels are then dealt out to the
    pixels (sub-pixel convolution: Shi et al., CVPR 2016). An image has so few channels that TensorFlow's
    operation leaves most of a processor's width idle: 12 ms for the first layer of ResNet50V2, where this
    takes 4.5. For other maps it is the other way round.
    """
    nodes, constants = dict(graph.nodes), dict(graph.constants)
    shapes = _Shapes(graph)
    for node in backward_half(graph):
        kernel = kernel_of(node, constants)
        if node.op != CONVOLUTION or kernel is None or kernel.shape[2] > IMAGE_CHANNELS:
            continue
        stride, other = _strides(node)
        shape = shapes.of(node.input[0]) or (None,)
        taps = [-(-size // stride) for size in kernel.shape[:2]]
        if (
            stride == 1
            or stride != other
            or any(each != 1 for each in node.attr["dilations"].list.i)
            or shape[-1] != kernel.shape[2]
            # Else pixels behind the last position of the kernel would be missing.
            or any(
                stride * many < size + stride - 1 for many, size in zip(taps, kernel.shape[:2], strict=True)
            )
        ):
            continue
        before = [first for first, _ in _paddings(node)]
        if node.attr["padding"].s == b"SAME":
            extents = [each for each in shape[1:3] if each is not None]
            if len(extents) != 2:
                continue
            before = [
                max((-(-extent // stride) - 1) * stride + size - extent, 0) // 2
                for extent, size in zip(extents, kernel.shape[:2], strict=True)
            ]
        constants[f"{node.name}/phases"] = _phases(kernel, taps, stride)
        constants[f"{node.name}/begin"] = np.array([0, *before, 0], np.int32)
        phases = _convolution(
            f"{node.name}/convolution", node, f"{node.name}/phases", [(each - 1, each - 1) for each in taps]
        )
        pixels = tf.compat.v1.NodeDef(
            name=f"{node.name}/pixels", op="DepthToSpace", device=node.device, input=[phases.name]
        )
        pixels.attr["block_size"].i = stride
        cut = binary(node.name, "Slice", node, pixels.name, f"{node.name}/begin")
        cut.input.append(node.input[0])
        cut.attr["Index"].type = tf.int32.as_datatype_enum
        pixels.attr["T"].CopyFrom(node.attr["T"])
        nodes |= {each.name: each for each in (phases, pixels, cut)}
    return replace(graph, nodes=nodes, constants=constants)


def backward_half(graph: FlatGraph) -> list[Node]:
    """Return the operations of a gradient, its graph's last output, that no other output needs.

    A transposed convolution is the derivative of one, too: in the forward half it stays as it is.
    """
    forward = replace(graph, outputs=graph.outputs[:-1]).needed()
    return [node for name, node in graph.nodes.items() if name not in forward.nodes]


def kernel_of(node: Node, constants: Mapping[str, Array]) -> Array | None:
    """Return the kernel of a convolution's derivative, if there may be another copy of it."""
    if node.op not in (CONVOLUTION, DEPTHWISE) or len(node.input) != 3 or not channels_last(node):
        return None
    kernel = constants.get(first_output(node.input[1]))
    if kernel is None or kernel.nbytes > LARGEST_COPY or kernel.dtype not in (np.float32, np.float64):
        return None
    return kernel


def _phases(kernel: Array, taps: Sequence[int], stride: int) -> Array:
    """Return the kernel (taps, taps, outputs, stride * stride * inputs) that makes all phases."""
    rows, columns, inputs, outputs = kernel.shape
    tall, wide = taps
    whole = np.zeros((tall * stride, wide * stride, inputs, outputs), kernel.dtype)
    whole[:rows, :columns] = kernel
    parts = whole.reshape(tall, stride, wide, stride, inputs, outputs)[::-1, :, ::-1]
    return np.ascontiguousarray(
        parts.transpose(0, 2, 5, 1, 3, 4).reshape(tall, wide, outputs, stride * stride * inputs)
    )


class _Shapes:
    """The shapes that a graph asks for, as far as they are known before it runs."""

    def __init__(self, graph: FlatGraph) -> None:
        self._graph = graph
        self._tensors: Any = None
        """The graph as TensorFlow sees it, once it is asked."""

    def of(self, reference: str) -> tuple[int | None, ...] | None:
        """Return the numbers in a tensor that is a shape; None for those, or for all, that are not known."""
        value = self._graph.constants.get(first_output(reference))
        if value is not None:
            return tuple(value.tolist())
        node = self._graph.nodes[name_of(reference)]
        if node.op not in ("Shape", "ShapeN"):
            return None
        source = first_output(node.input[int(reference.partition(":")[2] or 0)])
        found = self._tensor(source if ":" in source else f"{source}:0").shape
        return tuple(found) if found.rank else None

    def _tensor(self, name: str) -> Any:
        if self._tensors is None:
            # The small constants tell shapes: how far an image is padded, for example.
            small = [name for name, value in self._graph.constants.items() if value.size <= SMALL]
            with tf.Graph().as_default() as self._tensors:
                tf.graph_util.import_graph_def(self._graph.definition(small), name="")
        return self._tensors.get_tensor_by_name(name)


def _strides(node: Node) -> tuple[int, int]:
    _, rows, columns, _ = node.attr["strides"].list.i
    return rows, columns


def _paddings(node: Node) -> list[tuple[int, int]]:
    """Return how far a convolution pads its rows and its columns, before and after; (0, 0) if SAME."""
    if node.attr["padding"].s != b"EXPLICIT":
        return [(0, 0), (0, 0)]
    explicit = node.attr["explicit_paddings"].list.i
    return [(explicit[2], explicit[3]), (explicit[4], explicit[5])]


def _convolution(name: str, derivative: Node, kernel: str, paddings: Sequence[tuple[int, int]]) -> Node:
    """Return a convolution without strides of the slopes that a derivative takes."""
    node = binary(name, "Conv2D", derivative, derivative.input[2], kernel)
    node.attr["strides"].list.i[:] = (1, 1, 1, 1)
    explicit = [0, 0, *(size for each in paddings for size in each), 0, 0]
    node.attr["padding"].s = b"EXPLICIT" if any(explicit) else b"VALID"
    node.attr["explicit_paddings"].list.i[:] = explicit if any(explicit) else []
    return node
