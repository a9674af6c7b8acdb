"""The two TensorFlow functions of a servable, NumPy in and NumPy out: forward and gradient.

Both are traced once, with the batch size and the image size left as free as the signature leaves them,
and called as concrete functions, which cannot trace again whatever they are given. Tracing belongs on
the loading thread, calls on the device's.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from vitrail_server.savedmodel.compact import CompactFunction
from vitrail_server.savedmodel.constants import tensor_of
from vitrail_server.savedmodel.flat import FlatGraph
from vitrail_server.savedmodel.importing import imported
from vitrail_server.savedmodel.products import Products
from vitrail_server.savedmodel.programs import Derivatives
from vitrail_server.savedmodel.rows import Arrays
from vitrail_server.savedmodel.signature import DATATYPES, Exported
from vitrail_server.servable import TensorSpec
from vitrail_server.wording import reason_of
from vitrail_server.work import Objective, OutOfMemory

Tensor: TypeAlias = Any
"""A tf.Tensor; TensorFlow carries no types."""

TYPE_NAMES = {datatype: name for name, datatype in DATATYPES.items()}
"""TensorFlow's name of each datatype."""

FLOATS = frozenset({"FP16", "BF16", "FP32", "FP64"})
"""The datatypes that have a gradient."""

SMALLEST = np.finfo(np.float32).tiny
"""Stands for a probability of 0 in CROSS_ENTROPY, as in `explainers.objectives`."""


EMBEDDED = 1 << 20
"""Bytes of the largest constant that is made part of a graph.

Of those TensorFlow holds about five copies, for a speed that only small ones repay: on CPUs 0 to 10 per
cent. Larger ones are tensors outside the graph, which every function made of it can share.
"""


SCALARS = 8
"""Elements of the largest constant that is a parameter of an operation rather than a weight."""


class Forward:
    """The outputs of a model for a batch: a `programs.ForwardFunction`.

    `keep` is what TensorFlow's function needs and does not refer to: the owner of its variables. `flat` is
    the graph that the function was made of; None for a signature as it was exported.
    """

    def __init__(
        self,
        concrete: Any,
        inputs: Sequence[str],
        outputs: Sequence[str],
        keep: object,
        flat: FlatGraph | None = None,
        held: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.concrete = concrete
        """TensorFlow's function: takes the inputs and returns the outputs, both as lists in this order."""
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self.flat = flat
        """The large constants in it are views of the tensors in `held`."""
        self.held = held or {}
        """The constants of `flat` that are tensors outside of the function, by name."""
        self.products: Products = nullcontext
        """How the function is to be run."""
        self._keep = keep

    def __call__(self, arrays: Arrays, wanted: Collection[str]) -> dict[str, NDArray[np.generic]]:
        """Return the wanted outputs by name, as the model gives them.

        Raises:
            OutOfMemory: the device could not hold the batch.

        """
        with memory_errors(), self.products():
            tensors = self.concrete(*(_tensor(arrays[name]) for name in self.inputs))
            return {name: _array(tensors[self.outputs.index(name)]) for name in wanted}


def trace_forward(exported: Exported, outputs: Sequence[str]) -> Forward:
    """Trace the signature as it is, with its variables."""
    inputs = tuple(exported.signature.inputs)

    def forward(*tensors: Tensor) -> list[Tensor]:
        found = exported.call(**dict(zip(inputs, tensors, strict=True)))
        return [found[name] for name in outputs]

    function = tf.function(forward, autograph=False)
    concrete = function.get_concrete_function(*_specs(exported))
    return Forward(concrete, inputs, outputs, keep=exported.root)


class Shared:
    """The tensors that functions use from outside; constants that are one array become one tensor."""

    def __init__(self) -> None:
        self._tensors: dict[int, tuple[NDArray[Any], Tensor]] = {}

    def tensor(self, value: NDArray[Any]) -> Tensor:
        """Return the tensor that holds a constant."""
        if id(value) not in self._tensors:
            # The array is held too, so that no other one gets its id.
            self._tensors[id(value)] = value, tensor_of(value)
        return self._tensors[id(value)][1]


def flat_forward(
    graph: FlatGraph, inputs: Sequence[str], outputs: Sequence[str], shared: Shared | None = None
) -> Forward:
    """Trace a flat graph whose inputs and outputs have these names, in the graph's order."""
    large = large_constants(graph)
    function, held = _compact(graph, large, shared or Shared())
    views = {name: _view(tensor) for name, tensor in held.items()}
    flat = replace(graph, constants={**graph.constants, **views})
    return Forward(function, inputs, outputs, keep=None, flat=flat, held=held)


def flat_gradient(
    graph: FlatGraph,
    inputs: Sequence[str],
    outputs: Sequence[str],
    differentiable: Collection[str],
    shared: Shared | None = None,
) -> "Gradient":
    """Trace a flat graph of a traced gradient.

    Its weights stay outside, however small: TensorFlow would fold those that it sees into one another, and
    at a tie of a ReLU the last bit decides about a slope.
    """
    weights = {
        name
        for name, value in graph.constants.items()
        if value.size > SCALARS and tf.as_dtype(value.dtype).is_floating
    }
    function, held = _compact(graph, weights, shared or Shared())
    return Gradient(function, inputs, outputs, differentiable, keep=held)


def large_constants(graph: FlatGraph) -> set[str]:
    """Return the names of the constants that a forward takes from outside."""
    return {name for name, value in graph.constants.items() if value.nbytes > EMBEDDED}


def _compact(
    graph: FlatGraph, outside: Collection[str], shared: Shared
) -> tuple[CompactFunction, dict[str, Tensor]]:
    """Return the function that computes a graph, and the constants that it takes from outside."""
    held = {name: shared.tensor(graph.constants[name]) for name in outside}
    return CompactFunction(trace_flat(graph, held)), held


def trace_flat(graph: FlatGraph, held: Mapping[str, Tensor]) -> Any:
    """Return TensorFlow's function that computes a graph with the constants held outside of it."""
    definition = graph.definition(graph.constants.keys() - held.keys())

    def compute(*tensors: Tensor) -> list[Tensor]:
        given = dict(zip(graph.inputs, tensors, strict=True)) | {
            name: tf.identity(tensor) for name, tensor in held.items()
        }
        computed = [each for each in graph.outputs if each not in given]
        found = imported(
            definition,
            {f"{name}:0": tensor for name, tensor in given.items()},
            [each if ":" in each else f"{each}:0" for each in computed],
        )
        results = given | dict(zip(computed, found, strict=True))
        return [tf.identity(results[each]) for each in graph.outputs]

    return tf.function(compute, autograph=False).get_concrete_function(*graph.input_specs())


class Gradient:
    """Outputs and gradients of a model for a batch: a `programs.GradientFunction`."""

    def __init__(
        self,
        concrete: Any,
        inputs: Sequence[str],
        outputs: Sequence[str],
        differentiable: Collection[str],
        keep: object,
    ) -> None:
        self.concrete = concrete
        """TensorFlow's function: returns a list of the outputs and, last, the gradient."""
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        """The outputs, flattened to (n, elements), in the order that `Derivatives.outputs` counts."""
        self.differentiable = frozenset(differentiable)
        """Those of them that are floating point numbers; the others have no gradient."""
        self.products: Products = nullcontext
        """How the function is to be run."""
        self._keep = keep

    def __call__(
        self, arrays: Arrays, derivatives: Derivatives, wanted: Collection[str]
    ) -> tuple[dict[str, NDArray[np.float32]], NDArray[np.float32]]:
        """Return the wanted outputs (n, elements) by name and the gradients (n, height, width, channels).

        Raises:
            OutOfMemory: the device could not hold the batch.

        """
        rows = (derivatives.outputs, derivatives.targets, derivatives.objectives, derivatives.values)
        with memory_errors(), self.products():
            *tensors, gradients = self.concrete(
                *map(tf.constant, rows), *(tf.constant(arrays[name]) for name in self.inputs)
            )
            return {name: tensors[self.outputs.index(name)].numpy() for name in wanted}, gradients.numpy()


class Disconnected(Exception):
    """No differentiable path leads from the image to an output."""


def trace_gradient(exported: Exported, image_input: str, outputs: Sequence[str]) -> Gradient:
    """Trace outputs and gradients of the signature.

    On the signature and not on a frozen graph, which has lost the custom gradients. `outputs` are those
    with a row per image; at least one of them must be floating point. One backward pass serves them all:
    a row is differentiated through the outputs that it does not ask for as well, with a slope of 0.

    Raises:
        Disconnected: no gradient reaches the image.
        Exception: whatever TensorFlow raises where an operation has no gradient; LookupError is usual.

    """
    inputs = tuple(exported.signature.inputs)
    differentiable = [name for name in outputs if exported.signature.outputs[name].datatype in FLOATS]

    def explain(
        wanted: Tensor, targets: Tensor, objectives: Tensor, values: Tensor, *tensors: Tensor
    ) -> list[Tensor]:
        named = dict(zip(inputs, tensors, strict=True))
        image = named[image_input]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(image)
            found = exported.call(**named)
            flat = {name: _flattened(found[name]) for name in outputs}
        cotangents = [
            _cotangent(flat[name], tf.equal(wanted, outputs.index(name)), targets, objectives, values)
            for name in differentiable
        ]
        sources = [flat[name] for name in differentiable]
        gradient = tape.gradient(sources, image, output_gradients=cotangents)
        if gradient is None:
            raise Disconnected
        return [*flat.values(), tf.cast(tf.convert_to_tensor(gradient), tf.float32)]

    specs = _specs(exported)
    batch = specs[inputs.index(image_input)].shape[0]
    rows = [tf.TensorSpec((batch,), dtype) for dtype in (tf.int32, tf.int32, tf.int32, tf.float32)]
    concrete = tf.function(explain, autograph=False).get_concrete_function(*rows, *specs)
    return Gradient(concrete, inputs, outputs, differentiable, keep=exported.root)


def _flattened(output: Tensor) -> Tensor:
    return tf.cast(tf.reshape(output, (tf.shape(output)[0], -1)), tf.float32)


def _cotangent(y: Tensor, wanted: Tensor, targets: Tensor, objectives: Tensor, values: Tensor) -> Tensor:
    """Return (n, elements): the derivative of each row's objective by `y`; 0 for rows of other outputs."""
    elements = tf.shape(y)[1]
    ranks = tf.clip_by_value(tf.reduce_max(-targets), 1, elements)
    # Among equals top_k puts the lower index first, which the meaning of a rank promises.
    order = tf.math.top_k(tf.where(tf.math.is_nan(y), -np.inf, y), ranks).indices
    ranked = tf.gather(order, tf.clip_by_value(-1 - targets, 0, ranks - 1), batch_dims=1)
    # Rows of another output may name an element that this one does not have.
    chosen = tf.clip_by_value(tf.where(targets < 0, ranked, targets), 0, elements - 1)
    score = tf.gather(y, chosen, batch_dims=1)
    slopes: Mapping[Objective, Tensor] = {
        Objective.OUTPUT: tf.ones_like(score),
        Objective.SQUARED_ERROR: 2 * (score - values),
        Objective.CROSS_ENTROPY: -1 / tf.maximum(score, SMALLEST),
    }
    slope = tf.zeros_like(score)
    for objective, derivative in slopes.items():
        slope = tf.where(wanted & tf.equal(objectives, objective.value), derivative, slope)
    # Chosen by `where` and not multiplied: a slope that is not finite must not spill over.
    is_chosen = tf.one_hot(chosen, elements, on_value=True, off_value=False, dtype=tf.bool)
    return tf.where(is_chosen, slope[:, None], 0.0)


def zeros(spec: TensorSpec) -> NDArray[np.generic]:
    """Return zeros, or empty strings, that fit an input; 1 along every free axis."""
    shape = (1,) if spec.shape is None else tuple(1 if extent < 0 else extent for extent in spec.shape)
    if spec.datatype == "BYTES":
        return np.full(shape, b"", object)
    return np.zeros(shape, tf.as_dtype(TYPE_NAMES[spec.datatype]).as_numpy_dtype)


def _specs(exported: Exported) -> list[Any]:
    return [
        tf.TensorSpec(_shape(spec), tf.as_dtype(TYPE_NAMES[spec.datatype]), name=f"input_{position}")
        for position, spec in enumerate(exported.signature.inputs.values())
    ]


def _shape(spec: TensorSpec) -> list[int | None] | None:
    return None if spec.shape is None else [None if extent < 0 else extent for extent in spec.shape]


def _tensor(array: NDArray[np.generic]) -> Tensor:
    # Without a type TensorFlow could not tell that an empty array of objects is one of strings.
    return tf.constant(array, tf.string if array.dtype == object else None)


def _view(tensor: Tensor) -> NDArray[Any]:
    """Return a tensor's memory as an array, not a copy of it."""
    if tensor.dtype != tf.bfloat16:
        return np.asarray(memoryview(tensor))
    # Python's buffers have no bfloat16.
    return np.asarray(memoryview(tf.bitcast(tensor, tf.uint16))).view(tf.bfloat16.as_numpy_dtype)


def _array(tensor: Tensor) -> NDArray[np.generic]:
    found = tensor.numpy()
    # A tensor without dimensions comes as the number or the bytes itself.
    return found if isinstance(found, np.ndarray) else np.array(found, tensor.dtype.as_numpy_dtype)


@contextmanager
def memory_errors() -> Iterator[None]:
    """Raise OutOfMemory where TensorFlow says that memory is exhausted."""
    try:
        yield
    except tf.errors.ResourceExhaustedError as error:
        raise OutOfMemory(reason_of(error)) from error
