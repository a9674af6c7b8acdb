"""Forwards in a lower precision, for models that opt in: `vitrail.precision` in the configuration.

BF16 and FP16 are a rewriting of the flat graph: what is linear in a kernel multiplies numbers of 16 bits, and
what only hands them on (biases, activations, the largest of a window) does so too. Sums of branches, means,
everything that ends in an output, and the last kernel before it stay in float32: there the differences
that a map is made of would be lost. TF32 is a switch of the GPU (`products`), and rewrites nothing.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from vitrail.errors import FailedPrecondition
from vitrail_server.savedmodel.flat import Array, FlatGraph, Node, copy_of, first_output, in_order, name_of
from vitrail_server.savedmodel.functions import Forward, flat_forward
from vitrail_server.savedmodel.passes import KERNELS
from vitrail_server.savedmodel.platform import gpu_capability
from vitrail_server.savedmodel.probe import Answers, Behaviour, Run, Sample, answers
from vitrail_server.servable import Precision
from vitrail_server.wording import reason_of

TYPES: Mapping[Precision, Any] = {"BF16": tf.bfloat16, "FP16": tf.float16}
"""The precisions in which a graph is rewritten."""

LINEAR = KERNELS | {"BatchMatMul", "BatchMatMulV2"}
"""What multiplies: the operations that are worth it."""

FOLLOWING = frozenset(
    {"BiasAdd", "Relu", "Relu6", "LeakyRelu", "MaxPool", "Pad", "Reshape", "Squeeze", "Transpose"}
)
"""What rounds nothing further, or adds one number per channel to a product that is rounded anyway."""

LARGEST_DIFFERENCE = 0.2
"""How far outputs for random images may be from those in float32, as a part of the largest.

Trained networks were at 0.01 to 0.06; what is beyond has overflown, or lives on differences of large numbers.
"""

NVIDIA_SINCE = {"TF32": (8, 0), "BF16": (8, 0), "FP16": (7, 0)}
"""The compute capability from which on NVIDIA's GPUs multiply in it."""

PROCESSOR_FLAGS = {"BF16": ("avx512_bf16", "amx_bf16"), "FP16": ("avx512_fp16", "amx_fp16")}
"""What /proc/cpuinfo calls the instructions, any of which is enough."""


def require(precision: Precision) -> None:
    """Check that the device of the calling thread multiplies in a precision by itself.

    Raises:
        FailedPrecondition: it does not; emulated it would be slower than float32.

    """
    if precision == "FP32":
        return
    capability = gpu_capability()
    if capability is not None:
        since = NVIDIA_SINCE[precision]
        if capability < since:
            raise _refusal(
                precision,
                f"this GPU has compute capability {capability[0]}.{capability[1]}, and {precision} needs "
                f"{since[0]}.{since[1]}",
            )
    elif precision == "TF32":
        raise _refusal(precision, "only NVIDIA's GPUs have it, and this model runs on the CPU")
    elif not processor_flags() & set(PROCESSOR_FLAGS[precision]):
        raise _refusal(
            precision, f"this processor has none of the instructions {', '.join(PROCESSOR_FLAGS[precision])}"
        )


def lowered_forward(
    forward: Forward,
    frozen_reason: str,
    precision: Precision,
    behaviour: Behaviour,
    sample: Sample,
    run: Run,
) -> tuple[Forward, float]:
    """Return a frozen forward that multiplies in BF16 or FP16, and how far it is from the one given.

    The distance is the largest difference of outputs for random images, as a part of the largest output.

    Raises:
        FailedPrecondition: the forward is not frozen, fails, or is too far away.

    """
    if forward.flat is None:
        raise _refusal(precision, f"that needs a frozen graph: {frozen_reason}")
    graph = lowered(forward.flat, TYPES[precision])
    if graph is None:
        raise _refusal(
            precision,
            "beside the last one, no convolution or matrix product of its graph is in float32",
        )
    expected = answers(forward, behaviour.elements, sample, behaviour.trial, run)
    try:
        result = flat_forward(graph, forward.inputs, forward.outputs)
        found = answers(result, behaviour.elements, sample, behaviour.trial, run)
    except (tf.errors.OpError, ValueError) as error:
        raise _refusal(precision, f"the graph fails in it: {reason_of(error)}") from error
    distance = _distance(expected, found)
    if not distance <= LARGEST_DIFFERENCE:
        raise _refusal(
            precision,
            f"outputs for random images differ by {distance:.2g} of the largest, and more than "
            f"{LARGEST_DIFFERENCE} is refused",
        )
    return result, distance


def lowered(graph: FlatGraph, dtype: Any) -> FlatGraph | None:
    """Return a flat graph whose inner kernels multiply in a type of 16 bits; None if there are none.

    Inputs and outputs keep their types.
    """
    lowering = _Lowering(graph, dtype)
    ordered = in_order(graph)
    last = _last_kernels(ordered)
    for node in ordered:
        lowering.add(node, linear=node.op in LINEAR and node.name not in last)
    return lowering.graph().needed() if lowering.low else None


class _Lowering:
    """A graph while it is rewritten, from the inputs on."""

    def __init__(self, graph: FlatGraph, dtype: Any) -> None:
        self.low: set[str] = set()
        """The nodes whose only output has 16 bits."""
        self._graph = graph
        self._dtype = dtype
        self._nodes: dict[str, Node] = {}
        self._constants: dict[str, Array] = dict(graph.constants)

    def add(self, node: Node, *, linear: bool) -> None:
        """Add a node, which comes after those it uses; one that is linear is to multiply in 16 bits."""
        is_float = "T" in node.attr and node.attr["T"].type == tf.float32.as_datatype_enum
        follows = node.op in FOLLOWING and first_output(node.input[0]) in self.low
        changed = copy_of(node)
        if is_float and (linear or follows):
            operands = 2 if linear or node.op == "BiasAdd" else 1
            changed.input[:operands] = [self._in_low(each) for each in node.input[:operands]]
            changed.attr["T"].type = self._dtype.as_datatype_enum
            self.low.add(node.name)
        else:
            changed.input[:] = [self._in_float(each) for each in node.input]
        self._nodes[node.name] = changed

    def graph(self) -> FlatGraph:
        """Return what was added."""
        outputs = tuple(self._in_float(each) for each in self._graph.outputs)
        return replace(self._graph, nodes=self._nodes, constants=self._constants, outputs=outputs)

    def _in_low(self, reference: str) -> str:
        reference = first_output(reference)
        if reference in self.low:
            return reference
        name = f"{name_of(reference)}/{self._dtype.name}{reference.partition(':')[2]}"
        if reference in self._graph.constants:
            self._constants[name] = self._graph.constants[reference].astype(self._dtype.as_numpy_dtype)
            return name
        return self._cast(reference, name, tf.float32, self._dtype)

    def _in_float(self, reference: str) -> str:
        if first_output(reference) not in self.low:
            return reference
        return self._cast(reference, f"{name_of(reference)}/float32", self._dtype, tf.float32)

    def _cast(self, reference: str, name: str, source: Any, target: Any) -> str:
        if name not in self._nodes:
            self._nodes[name] = cast = tf.compat.v1.NodeDef(name=name, op="Cast", input=[reference])
            cast.attr["SrcT"].type = source.as_datatype_enum
            cast.attr["DstT"].type = target.as_datatype_enum
        return name


def _last_kernels(ordered: list[Node]) -> set[str]:
    """Return the kernels that no other kernel comes after."""
    before_kernel: set[str] = set()
    last = set()
    for node in reversed(ordered):
        if node.op in LINEAR and node.name not in before_kernel:
            last.add(node.name)
        if node.op in LINEAR or node.name in before_kernel:
            before_kernel.update(name_of(each) for each in node.input)
    return last


def _distance(expected: Answers, found: Answers) -> float:
    """Return the largest difference, as a part of the largest value of its output."""
    return max(_output_distance(expected[name], found[name]) for name in found)


def _output_distance(expected: NDArray[np.generic], found: NDArray[np.generic]) -> float:
    one, other = expected.astype(np.float64), found.astype(np.float64)
    finite = np.isfinite(one)
    if not np.array_equal(finite, np.isfinite(other)):
        return np.inf
    largest = np.abs(one[finite]).max(initial=0.0)
    difference = np.abs(one[finite] - other[finite]).max(initial=0.0)
    return float(difference / largest) if largest else float(difference)


def _refusal(precision: Precision, reason: str) -> FailedPrecondition:
    return FailedPrecondition(
        f"parameter 'vitrail.precision' is {precision}, and the model cannot be computed in it: {reason}; "
        "leave it out for FP32"
    )


@cache
def processor_flags() -> frozenset[str]:
    """Return the instructions that the processor has, by Linux's names; none where that is not told."""
    try:
        lines = Path("/proc/cpuinfo").read_text("ascii", "replace").splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.partition(":")[2] for line in lines if line.startswith("flags")), "").split())
