"""Rewrites the flat graph of a gradient so that its backward half computes the same with less work.

The forward half keeps every bit: where the input of a ReLU is next to 0, the last bit of it decides whether
a whole path has a slope, and the gradient of the signature is the one that is promised. Once these choices
are made the backward half is linear, so there a scale may move from a map into a kernel: exact to rounding.
"""

from dataclasses import replace

import numpy as np
import tensorflow as tf

from vitrail_server.savedmodel.backward_convolutions import (
    DEPTHWISE,
    backward_half,
    convolve,
    convolve_phases,
    kernel_of,
)
from vitrail_server.savedmodel.flat import FlatGraph, copy_of, first_output
from vitrail_server.savedmodel.passes import (
    binary,
    channels_last,
    fold_constants,
    per_channel,
    skip_identities,
    tensor_and_constant,
)

BATCH_NORM = "FusedBatchNormGradV3"


def cheapen(graph: FlatGraph) -> FlatGraph:
    """Apply all passes."""
    for each in (
        fold_constants,
        skip_identities,
        spell_out_batch_norms,
        fold_scales,
        convolve,
        convolve_phases,
    ):
        graph = each(graph).needed()
    return graph


def spell_out_batch_norms(graph: FlatGraph) -> FlatGraph:
    """Write the derivative of a batch normalisation by what it normalises as the multiplication that it is.

    TensorFlow's operation also computes the derivatives by scale and offset, which nobody asks for. What it
    took from the normalisation becomes an output that nobody asks for: a normalisation of which only the
    first output is used is merged with the convolution before it when the graph runs, and rounds otherwise.
    """
    uses = graph.uses()
    nodes, constants = dict(graph.nodes), dict(graph.constants)
    *outputs, gradient = graph.outputs
    for node in backward_half(graph):
        if node.op != BATCH_NORM or node.attr["is_training"].b or not channels_last(node):
            continue
        scale, variance = (constants.get(first_output(node.input[place])) for place in (2, 4))
        if scale is None or variance is None or any(uses[f"{node.name}:{place}"] for place in range(1, 5)):
            continue
        factor = scale.astype(np.float64) / np.sqrt(variance.astype(np.float64) + node.attr["epsilon"].f)
        constants[f"{node.name}/factor"] = factor.astype(tf.as_dtype(node.attr["T"].type).as_numpy_dtype)
        nodes[node.name] = binary(node.name, "Mul", node, node.input[0], f"{node.name}/factor")
        outputs.append(node.input[5])
    return replace(graph, nodes=nodes, constants=constants, outputs=(*outputs, gradient))


def fold_scales(graph: FlatGraph) -> FlatGraph:
    """Multiply the kernel of a convolution's derivative instead of the slopes that it takes."""
    nodes, constants = dict(graph.nodes), dict(graph.constants)
    for node in backward_half(graph):
        kernel = kernel_of(node, constants)
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
