"""Networks as flat graphs, and their windows evaluated in both ways: incrementally, and the plain way."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from vitrail_server.explainers.grid import Edge, windows_along
from vitrail_server.savedmodel.flat import FlatGraph
from vitrail_server.savedmodel.flatten import flatten
from vitrail_server.savedmodel.functions import Forward, flat_forward
from vitrail_server.savedmodel.incremental.check import example_windows
from vitrail_server.savedmodel.incremental.evaluator import Evaluator
from vitrail_server.savedmodel.incremental.graph import SizedGraph
from vitrail_server.savedmodel.incremental.plan import Plan, make_plan
from vitrail_server.savedmodel.incremental.weights import Weights
from vitrail_server.savedmodel.passes import skip_identities
from vitrail_server.savedmodel.rows import InputLayout, RowBuffer, RowLayout
from vitrail_server.servable import WindowGrid
from vitrail_server.work import Subject

Tensor: TypeAlias = Any
Floats: TypeAlias = NDArray[np.float32]

TOLERANCE = 1e-5
"""Of the largest output."""


def numbers(*shape: int, seed: int = 1) -> Floats:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def kernel(*shape: int, seed: int = 1) -> Tensor:
    """Weights of a convolution that keep the size of numbers."""
    return tf.constant(numbers(*shape, seed=seed) / np.sqrt(np.prod(shape[:3])).astype(np.float32))


def grid_of(
    size: tuple[int, int], patch: tuple[int, int], stride: tuple[int, int], edge: Edge = "CLIP"
) -> WindowGrid:
    rows, columns = (windows_along(*each, edge).edges for each in zip(size, patch, stride, strict=True))
    return WindowGrid(rows, columns)


@dataclass
class Net:
    """A forward with the image `image` and, perhaps, further inputs."""

    forward: Forward
    flat: FlatGraph
    size: tuple[int, int]
    channels: int
    dtype: Any
    others: Mapping[str, tuple[int, ...]]

    @property
    def graph(self) -> SizedGraph:
        return SizedGraph(self.flat, self.flat.inputs[0], self.size)

    def plan(self, grid: WindowGrid) -> Plan:
        return make_plan(self.graph, grid)

    def subject(self, fill: str = "constant", seed: int = 5) -> Subject:
        random = np.random.default_rng(seed)
        shape = (*self.size, self.channels)

        def pixels(shape: tuple[int, ...]) -> NDArray[Any]:
            middle, spread = (100, 20) if self.dtype == tf.uint8 else (0, 1)
            values = middle + spread * random.normal(size=shape)
            converted: NDArray[Any] = values.astype(self.dtype.as_numpy_dtype)
            return converted

        fills = {"constant": (1, 1, 1), "channels": (1, 1, self.channels), "image": shape}
        others = {name: random.normal(size=shape).astype(np.float32) for name, shape in self.others.items()}
        return Subject(pixels(shape), others, pixels(fills[fill]))

    def evaluator(self, plan: Plan) -> Evaluator:
        weights = Weights(self.flat.constants, {})
        names = ("image", *self.others)
        return Evaluator(self.graph, plan, weights, names, "image", self.forward.outputs)

    def incrementally(self, plan: Plan, subject: Subject, windows: NDArray[np.int32]) -> Mapping[str, Floats]:
        evaluator = self.evaluator(plan)
        return evaluator.outputs(  # type: ignore[return-value]
            evaluator.tables(subject), subject, windows, self.forward.outputs
        )

    def fully(self, subject: Subject, windows: NDArray[np.int32]) -> Mapping[str, Floats]:
        layout = RowLayout(
            "image",
            InputLayout(subject.image.shape, subject.image.dtype),
            {name: InputLayout(each.shape, each.dtype) for name, each in subject.inputs.items()},
        )
        rows = [(subject, tuple(window)) for window in windows.tolist()]
        return self.forward(  # type: ignore[return-value]
            RowBuffer(layout, len(rows)).fill(rows),
            self.forward.outputs,
        )


def net(
    predict: Callable[..., Sequence[Tensor] | Tensor],
    size: tuple[int, int],
    channels: int = 3,
    dtype: Any = tf.float32,
    others: Mapping[str, tuple[int, ...]] | None = None,
    simplify: Callable[[FlatGraph], FlatGraph] = skip_identities,
) -> Net:
    """Trace a function of the image, and of further inputs by name."""
    others = others or {}

    def listed(*inputs: Tensor) -> list[Tensor]:
        outputs = predict(*inputs)
        return list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]

    specs = [tf.TensorSpec((None, *size, channels), dtype)]
    specs += [tf.TensorSpec((None, *shape), tf.float32) for shape in others.values()]
    concrete = tf.function(listed, autograph=False).get_concrete_function(*specs)
    names = [f"output_{place}" for place in range(len(concrete.outputs))]
    forward = flat_forward(simplify(flatten(concrete)), ("image", *others), names)
    assert forward.flat is not None
    return Net(forward, forward.flat, size, channels, dtype, others)


def differences(found: Mapping[str, Floats], expected: Mapping[str, Floats]) -> float:
    """Return the largest difference, relative to the largest output."""
    worst = 0.0
    for name, one in expected.items():
        assert found[name].shape == one.shape
        scale = np.abs(one.astype(np.float64)).max(initial=0) or 1.0
        worst = max(worst, float(np.abs(found[name].astype(np.float64) - one).max(initial=0) / scale))
    return worst


def check(
    tested: Net,
    patch: tuple[int, int],
    stride: tuple[int, int] | None = None,
    fill: str = "constant",
    edge: Edge = "CLIP",
    every: bool = False,
) -> Plan:
    """Hold the windows of a grid, the corners among them, to the full forward; return the plan."""
    grid = grid_of(tested.size, patch, stride or patch, edge)
    plan = tested.plan(grid)
    windows = all_windows(grid) if every else example_windows(grid.rows, grid.columns, 12)
    subject = tested.subject(fill)
    found, expected = tested.incrementally(plan, subject, windows), tested.fully(subject, windows)
    assert differences(found, expected) <= TOLERANCE
    return plan


def all_windows(grid: WindowGrid) -> NDArray[np.int32]:
    return np.array(
        [(0, 0, 0, 0)]
        + [
            (top, left, bottom, right)
            for top, bottom in zip(*grid.rows, strict=True)
            for left, right in zip(*grid.columns, strict=True)
        ],
        np.int32,
    )


def is_regional(plan: Plan, operation: str) -> bool:
    """Return whether an operation of this kind is computed in part."""
    return any(step.node.op == operation for step in plan.steps)
