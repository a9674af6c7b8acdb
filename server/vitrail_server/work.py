"""What passes between a Run, the scheduler and a Program: subjects, rows and their results.

A row is one forward, or one forward and backward, of one image. Rows of one Run share a Subject, so
an image is held once however many of its pixels are hidden in turn. Everything is NumPy; nothing here
knows TensorFlow, gRPC or asyncio.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
from numpy.typing import NDArray


class Kind(Enum):
    """Which Program a row is for."""

    FORWARD = "forward"
    GRADIENT = "gradient"
    PREDICT = "predict"


class Objective(Enum):
    """The value whose changes are explained; `y` is the output, `k` the target."""

    OUTPUT = 0
    """y_k."""
    SQUARED_ERROR = 1
    """(y_k - value)^2, a loss."""
    CROSS_ENTROPY = 2
    """-log y_k, a loss."""


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Subject:
    """The image of one Run, shared by all its rows."""

    image: NDArray[np.generic]
    """(height, width, channels), in the model's own units and type."""

    inputs: Mapping[str, NDArray[np.generic]] = field(default_factory=dict)
    """The model's other inputs by name, each without the batch dimension."""

    fill: NDArray[np.generic] | None = None
    """What a hidden pixel shows: broadcastable to the image, of its type. None where nothing is hidden."""


@dataclass(frozen=True, slots=True, eq=False)
class OccludeRows:
    """Images with one window hidden each."""

    subject: Subject
    output: str
    """The output wanted."""
    windows: NDArray[np.int32]
    """(n, 4): top, left, bottom, right of each hidden window, the ends exclusive. An empty window
    (all zeros) leaves the image whole."""

    def __len__(self) -> int:
        return len(self.windows)


@dataclass(frozen=True, slots=True, eq=False)
class GradientRows:
    """The same image, differentiated for several targets."""

    subject: Subject
    output: str
    """The output wanted."""
    targets: NDArray[np.int32]
    """(n,): the element of the flattened output, or -1 - r for the element with the r-th highest
    value, ties going to the lower index."""
    objective: Objective
    values: NDArray[np.float32]
    """(n,): the true value per row for SQUARED_ERROR; ignored otherwise."""

    def __len__(self) -> int:
        return len(self.targets)


@dataclass(frozen=True, slots=True, eq=False)
class PredictRows:
    """Inputs of an inference, for a forward without an explanation."""

    inputs: Mapping[str, NDArray[np.generic]]
    """Every input of the model by name; the first axis counts the rows."""
    outputs: tuple[str, ...]
    """The outputs wanted."""
    count: int
    """How many rows."""
    batched: bool = True
    """False: the inputs are the model's whole tensors, with or without a batch dimension, and go through it
    alone, as one row."""

    def __len__(self) -> int:
        return self.count


Rows = OccludeRows | GradientRows | PredictRows


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """What a Program computed for the rows of one Run."""

    outputs: NDArray[np.float32]
    """(n, elements): the wanted output per row, flattened. Of PredictRows, nothing: (n, 0)."""

    gradients: NDArray[np.float32] | None = None
    """(n, height, width, channels): d objective / d image per row. None from FORWARD."""

    tensors: Mapping[str, NDArray[np.generic]] | None = None
    """Of PredictRows: the wanted outputs by name, as the model gives them. None of other rows."""


class OutOfMemory(Exception):  # a condition that the device handles, not a failure
    """The device could not hold a batch; a smaller one may fit."""
