"""What the planner knows of operations: how a part of their output is computed from a part of their inputs.

Whatever is not known here is computed in full: never an error, and never wrong.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from vitrail_server.savedmodel.flat import Node
from vitrail_server.savedmodel.incremental.graph import Shape, SizedGraph, attributes, flag, number, text
from vitrail_server.savedmodel.incremental.intervals import Sliding

IMAGE_RANK = 4
ROWS, COLUMNS, CHANNELS = 1, 2, 3
"""The axes of a map."""

UNARY = {
    *(
        "Abs",
        "Cast",
        "Ceil",
        "CheckNumerics",
        "Elu",
        "Erf",
        "Erfc",
        "Exp",
        "Expm1",
        "Floor",
        "Identity",
        "Inv",
    ),
    *("IsFinite", "IsInf", "IsNan", "LeakyRelu", "Log", "Log1p", "LogicalNot", "LogSoftmax", "Neg"),
    *("PreventGradient", "Reciprocal", "Relu", "Relu6", "Rint", "Round", "Rsqrt", "Selu", "Sigmoid", "Sign"),
    *(
        "Snapshot",
        "Softmax",
        "Softplus",
        "Softsign",
        "Sqrt",
        "Square",
        "StopGradient",
        "ZerosLike",
        "OnesLike",
    ),
    *("Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Cos", "Cosh", "Sin", "Sinh", "Tan", "Tanh"),
}
"""Each pixel of the output depends on the same pixel of the input only."""

ELEMENTWISE = {
    *("Add", "AddN", "AddV2", "Atan2", "ClipByValue", "Div", "DivNoNan", "FloorDiv", "FloorMod", "Maximum"),
    *("Minimum", "Mod", "Mul", "MulNoNan", "Pow", "RealDiv", "SelectV2", "SquaredDifference", "Sub", "Xdivy"),
    *(
        "Xlogy",
        "Equal",
        "Greater",
        "GreaterEqual",
        "Less",
        "LessEqual",
        "LogicalAnd",
        "LogicalOr",
        "NotEqual",
    ),
}
"""The same of several inputs, which may be broadcast."""

CHANNEL_REDUCTIONS = frozenset({"Max", "Mean", "Min", "Prod", "Sum", "All", "Any"})

CONVOLUTIONS = frozenset({"Conv2D", "_FusedConv2D"})
DEPTHWISE = frozenset({"DepthwiseConv2dNative", "_FusedDepthwiseConv2dNative"})
POOLINGS = frozenset({"MaxPool", "AvgPool"})


@dataclass(frozen=True, slots=True)
class Pointwise:
    """Each pixel of the output depends on the same pixel of these inputs, and on what is fixed."""

    inputs: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Padding:
    """The first input is put into a larger map."""

    before: tuple[int, int]
    """Rows above and columns to the left."""


@dataclass(frozen=True, slots=True)
class Windowed:
    """A window slides over the first input; the other inputs that depend on the image go with its output."""

    rows: Sliding
    columns: Sliding
    others: tuple[int, ...] = ()
    outside: Literal["zero", "lowest"] = "zero"
    """What stands for what lies outside of the map."""
    mean_of_inside: bool = False
    """The result is a mean of what lies inside of the map."""


Operation = Pointwise | Padding | Windowed


def understand(graph: SizedGraph, node: Node) -> Operation | None:
    """Return what is known of an operation that depends on the image; None: it is to be computed in full."""
    if any(each.startswith("^") for each in node.input) or not _is_map(graph.shape(node.name)):
        return None
    if text(node, "data_format", "NHWC") != "NHWC":
        return None
    reader = _READERS.get(node.op)
    return None if reader is None else reader(graph, node)


def multiplications(graph: SizedGraph, node: Node) -> int:
    """Return the multiplications of an operation for one image; 0 of the many that have few or none."""
    output = graph.shape(node.name)
    operands = [graph.shape(each) for each in node.input[:2]]
    if output is None or len(operands) < 2 or None in operands:
        return 0
    first, second = (shape or () for shape in operands)
    size = int(np.prod(output))
    if node.op in CONVOLUTIONS:
        return size * int(np.prod(second[:3]))
    if node.op in DEPTHWISE:
        return size * int(np.prod(second[:2]))
    if node.op in ("MatMul", "_FusedMatMul"):
        return size * first[0 if flag(node, "transpose_a") else 1]
    if node.op in ("BatchMatMul", "BatchMatMulV2", "BatchMatMulV3"):
        return size * first[-2 if flag(node, "adj_x") else -1]
    if node.op == "Einsum":
        return _einsum(text(node, "equation", ""), first, second)
    return 0


def _is_map(shape: Shape | None) -> bool:
    return shape is not None and len(shape) == IMAGE_RANK and shape[0] == 1 and min(shape) > 0


def _pointwise(graph: SizedGraph, node: Node, count: int | None = None) -> Pointwise | None:
    """Return an operation on the first `count` inputs, element by element; None if one does not fit."""
    shape = graph.shape(node.name) or ()
    inputs = []
    for place, each in enumerate(node.input[:count]):
        other = graph.shape(each)
        if other is None:
            return None
        if graph.depends(each):
            if not _is_map(other) or other[ROWS:CHANNELS] != shape[ROWS:CHANNELS]:
                return None
            inputs.append(place)
        elif not graph.is_fixed(each) or not _same_everywhere(other):
            return None
    return Pointwise(tuple(inputs)) if inputs else None


def _same_everywhere(shape: Shape) -> bool:
    """Return whether a tensor of this shape, broadcast to maps, is the same at every pixel."""
    return len(shape) <= IMAGE_RANK and all(extent == 1 for extent in shape[:-1])


def _unary(graph: SizedGraph, node: Node) -> Operation | None:
    return _pointwise(graph, node, 1)


def _batch_norm(graph: SizedGraph, node: Node) -> Operation | None:
    return None if flag(node, "is_training") else _pointwise(graph, node)


def _concatenation(graph: SizedGraph, node: Node) -> Operation | None:
    axis = graph.constant(node.input[-1])
    parts = node.input[:-1]
    if axis is None or int(axis) not in (CHANNELS, -1) or not all(graph.depends(each) for each in parts):
        return None
    return _pointwise(graph, node, len(parts))


def _channel_reduction(graph: SizedGraph, node: Node) -> Operation | None:
    axes = graph.constant(node.input[1])
    if axes is None or axes.size != 1 or int(axes.reshape(-1)[0]) not in (CHANNELS, -1):
        return None
    return _pointwise(graph, node, 1) if flag(node, "keep_dims") else None


def _channel_reversal(graph: SizedGraph, node: Node) -> Operation | None:
    axes = graph.constant(node.input[1])
    if axes is None or axes.size != 1 or int(axes[0]) not in (CHANNELS, -1):
        return None
    return _pointwise(graph, node, 1)


def _channel_slice(graph: SizedGraph, node: Node) -> Operation | None:
    """Understand `x[..., a:b:c]`, which keeps every pixel."""
    begin = graph.constant(node.input[1])
    plain = not (number(node, "new_axis_mask") or number(node, "shrink_axis_mask"))
    if begin is None or len(begin) != 2 or number(node, "ellipsis_mask") != 1 or not plain:
        return None
    return _pointwise(graph, node, 1) if all(graph.is_fixed(each) for each in node.input[1:]) else None


def _pad(graph: SizedGraph, node: Node) -> Operation | None:
    paddings = graph.constant(node.input[1])
    if paddings is None or paddings.shape != (IMAGE_RANK, 2) or (paddings < 0).any():
        return None
    if paddings[[0, CHANNELS]].any() or not all(graph.is_fixed(each) for each in node.input[1:]):
        return None
    return Padding((int(paddings[ROWS, 0]), int(paddings[COLUMNS, 0])))


def _windowed(graph: SizedGraph, node: Node) -> Operation | None:
    if node.op in POOLINGS:
        kernel = attributes(node, "ksize")[ROWS:CHANNELS]
        plain = attributes(node, "ksize")[::CHANNELS] == (1, 1)
    else:
        kernel = (graph.shape(node.input[1]) or (0, 0))[:2]
        plain = graph.is_fixed(node.input[1])
    strides, dilations = attributes(node, "strides"), attributes(node, "dilations") or (1,) * IMAGE_RANK
    source, target = graph.shape(node.input[0]), graph.shape(node.name)
    if not plain or not _is_map(source) or not kernel[0] or source is None or target is None:
        return None
    if strides[CHANNELS] != 1 or dilations[CHANNELS] != 1 or strides[0] != 1:
        return None
    slidings: list[Sliding] = []
    for axis in (ROWS, COLUMNS):
        sliding = Sliding(kernel[axis - 1], strides[axis], dilations[axis])
        before = _padding_before(node, axis, sliding, source[axis], target[axis])
        if before is None:
            return None
        slidings.append(Sliding(sliding.kernel, sliding.stride, sliding.dilation, before))
    others = []
    for place, each in enumerate(node.input[2:], 2):
        if graph.depends(each):
            if graph.shape(each) != target:
                return None
            others.append(place)
        elif not graph.is_fixed(each):
            return None
    rows, columns = slidings
    return Windowed(
        rows,
        columns,
        others=tuple(others),
        outside="lowest" if node.op == "MaxPool" else "zero",
        mean_of_inside=node.op == "AvgPool",
    )


def _padding_before(node: Node, axis: int, sliding: Sliding, source: int, target: int) -> int | None:
    match text(node, "padding", ""):
        case "VALID":
            return 0
        case "SAME":
            return max(0, (target - 1) * sliding.stride + sliding.reach - source) // 2
        case "EXPLICIT":
            return attributes(node, "explicit_paddings")[2 * axis]
    return None


def _einsum(equation: str, first: Shape, second: Shape) -> int:
    inputs, _, _ = equation.partition("->")
    sizes: dict[str, int] = {}
    for labels, shape in zip(inputs.split(","), (first, second), strict=False):
        if len(labels) != len(shape):  # an ellipsis
            return 0
        sizes.update(zip(labels, shape, strict=True))
    return int(np.prod(list(sizes.values())))


_READERS: Mapping[str, Callable[[SizedGraph, Node], Operation | None]] = {
    **dict.fromkeys(UNARY, _unary),
    **dict.fromkeys(ELEMENTWISE, _pointwise),
    **dict.fromkeys(CHANNEL_REDUCTIONS, _channel_reduction),
    **dict.fromkeys(CONVOLUTIONS | DEPTHWISE | POOLINGS, _windowed),
    **dict.fromkeys(("FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3"), _batch_norm),
    **dict.fromkeys(("Pad", "PadV2"), _pad),
    "BiasAdd": _pointwise,
    "ConcatV2": _concatenation,
    "ReverseV2": _channel_reversal,
    "StridedSlice": _channel_slice,
}

KNOWN = frozenset(_READERS)
"""The operations that can be computed in part."""
