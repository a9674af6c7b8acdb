"""One loaded version of a model, as the rest of the server sees it.

`savedmodel/` builds it, the manager keeps it, handles pin it, the scheduler fills its programs. This
file holds the facts and the two protocols; it knows no TensorFlow.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np

from vitrail_server.work import Kind, PredictRows, Result, Rows

Task = Literal["CLASSIFICATION", "REGRESSION"]
Resize = Literal["STRETCH", "CENTER_CROP"]
InstanceKind = Literal["AUTO", "CPU", "GPU"]
TimeoutAction = Literal["REJECT", "DELAY"]
Incremental = Literal["AUTO", "OFF"]
Precision = Literal["FP32", "TF32", "BF16", "FP16"]
ImageSize = tuple[int, int]
"""(height, width) in pixels."""

DTYPES: dict[str, np.dtype[np.generic]] = {
    "BOOL": np.dtype("?"),
    "UINT8": np.dtype("u1"),
    "UINT16": np.dtype("u2"),
    "UINT32": np.dtype("u4"),
    "UINT64": np.dtype("u8"),
    "INT8": np.dtype("i1"),
    "INT16": np.dtype("i2"),
    "INT32": np.dtype("i4"),
    "INT64": np.dtype("i8"),
    "FP16": np.dtype("f2"),
    "FP32": np.dtype("f4"),
    "FP64": np.dtype("f8"),
}
"""The NumPy type of each datatype that NumPy has; Triton's names, without BYTES and BF16."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of a signature."""

    name: str
    datatype: str
    """Triton's name: FP32, UINT8, ..., BYTES for strings."""
    shape: tuple[int, ...] | None
    """The batch dimension included; -1 where a size is free. None where the rank is unknown."""


@dataclass(frozen=True, slots=True)
class Signature:
    """What a SavedModel expects and gives, by tensor name."""

    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]


@dataclass(frozen=True, slots=True)
class InstanceGroup:
    """Devices on which a model is to run: one entry of Triton's `instance_group`.

    Of its `count` nothing is left here. The instances of a device would share one thread and one copy of the
    weights, because a device computes one batch at a time: one instance does the work of all.
    """

    kind: InstanceKind = "AUTO"
    """AUTO: GPUs if there are any, else the CPU."""
    gpus: tuple[int, ...] = ()
    """The GPUs, by number; none: all of them."""
    name: str = ""
    """What messages call it."""


@dataclass(frozen=True, slots=True)
class QueuePolicy:
    """How long requests to a model may wait for their turn, and how many may."""

    timeout_action: TimeoutAction = "REJECT"
    """What becomes of a request that waited too long: refused, or put behind all that did not."""
    default_timeout: float = 0.0
    """Seconds that a request may wait; 0: as long as it takes."""
    allow_timeout_override: bool = False
    """Whether a request may ask for a shorter wait than the default."""
    max_queue_size: int = 0
    """How many requests may wait; 0: as many as the server lets in."""


@dataclass(frozen=True, slots=True)
class Batching:
    """How inference requests to a model come together in batches: Triton's `dynamic_batching`."""

    preferred_batch_sizes: tuple[int, ...] = ()
    """The batch sizes worth waiting for, smallest first; none: the largest possible."""
    max_queue_delay: float = 0.0
    """Seconds that a batch may wait for more requests."""
    preserve_ordering: bool = False
    """Whether replies leave in the order in which their requests came."""
    priority_levels: int = 0
    """How many priorities there are, 1 being the most urgent; 0: none."""
    default_priority_level: int = 0
    """The priority of a request that names none; 0 where there are none."""
    default_queue_policy: QueuePolicy = field(default_factory=QueuePolicy)
    """The policy of every priority without one of its own."""
    priority_queue_policies: Mapping[int, QueuePolicy] = field(default_factory=dict)
    """The policies of single priorities."""


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """What a model's config.pbtxt says, completed from the signature."""

    image_input: str | None
    """The input that holds the image. None: the version predicts, and nothing of it can be explained."""
    image_reason: str = ""
    """Why no input holds the image; empty if one does."""
    score_tensor: str | None = None
    """The output that is explained where a request names none. None: the only one."""
    image_range: tuple[float, float] = (0.0, 255.0)
    """What the pixel values 0 and 255 of an encoded image become."""
    image_resize: Resize = "STRETCH"
    """How an encoded image comes to the model's size."""
    image_sizes: tuple[ImageSize, ...] = ()
    """The sizes served where the signature leaves height and width free."""
    fill: tuple[float, ...] = (0.0,)
    """The default fill: one value, or one per channel."""
    task: Task | None = None
    """None: found from the labels and the graph."""
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """The names of an output's elements, by output."""
    max_batch_size: int | None = None
    """The largest batch the model may run. None: no limit."""
    incremental: Incremental = "AUTO"
    """Whether occlusions may be computed incrementally where that pays."""
    precision: Precision = "FP32"
    """In which forwards multiply; TF32 is for gradients too."""
    max_request_batch: int = 0
    """The largest batch of one inference request. 0: the tensors of a request have no batch dimension beside
    those of the signature."""
    batching: Batching | None = None
    """How inference requests are batched. None: each runs by itself."""
    instances: tuple[InstanceGroup, ...] = ()
    """Where the model is to run; none: the server chooses."""


@dataclass(frozen=True, slots=True)
class WindowGrid:
    """The windows of an occlusion: where they start and stop, along the rows and the columns of the image."""

    rows: tuple[tuple[int, ...], tuple[int, ...]]
    """The first row of each window, and one past the last."""
    columns: tuple[tuple[int, ...], tuple[int, ...]]

    def __len__(self) -> int:
        return len(self.rows[0]) * len(self.columns[0])


@dataclass(frozen=True, slots=True)
class ChosenBatchSize:
    """A batch size that was measured and chosen at load."""

    kind: Kind
    image_size: ImageSize
    batch_size: int
    seconds: float
    """How long one batch took."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a version can do, found by a probe at load. An empty reason means that it can."""

    gradient_reason: str = ""
    """Why the gradient with respect to the image does not exist."""
    occlusion_reason: str = ""
    """Why occlusion maps would be meaningless."""
    frozen_reason: str = ""
    """Why forwards do not run on a frozen graph."""
    incremental_reason: str = ""
    """Why occlusions with windows of an ordinary size are computed in full."""
    batch_dependent: bool = False
    non_deterministic: bool = False
    fixed_batch_size: int | None = None
    """None: any batch size."""
    batch_sizes: tuple[ChosenBatchSize, ...] = ()
    precision_difference: float = 0.0
    """How far outputs for random images are from those in float32, as a part of the largest output. Not
    measured of TF32, which is 0 then."""


@dataclass(frozen=True, slots=True)
class Description:
    """Everything known of one loaded version."""

    name: str
    version: int
    signature: Signature
    settings: ModelSettings
    task: Task
    """What the version is for, decided."""
    probabilities: frozenset[str]
    """The outputs that are probabilities: they end in a softmax or a sigmoid."""
    output_elements: Mapping[str, int]
    """How many elements each numeric output has per image; outputs of other kinds are left out."""
    capabilities: Capabilities

    @property
    def image(self) -> TensorSpec:
        """The image input: shape (batch, height, width, channels). Only where there is one."""
        if self.settings.image_input is None:
            raise LookupError(self.settings.image_reason)
        return self.signature.inputs[self.settings.image_input]

    @property
    def image_sizes(self) -> tuple[ImageSize, ...]:
        """The image sizes served; none without an image input."""
        if self.settings.image_input is None:
            return ()
        _, height, width, _ = self.image.shape or (-1, -1, -1, -1)
        return ((height, width),) if height > 0 and width > 0 else self.settings.image_sizes

    def precision(self, kind: Kind) -> Precision:
        """Return the precision in which the programs of a kind multiply.

        Gradients are never taken in 16 bits: a slope is not a difference of outputs, and would be made of the
        roundings of every layer.
        """
        precision = self.settings.precision
        return "FP32" if kind is Kind.GRADIENT and precision in ("BF16", "FP16") else precision

    @property
    def channels(self) -> int:
        """The image's channels."""
        return (self.image.shape or (0,))[-1]

    @property
    def image_dtype(self) -> np.dtype[np.generic]:
        """The NumPy type of the image input."""
        return DTYPES[self.image.datatype]


class Program(Protocol):
    """One compiled device function of fixed batch size; called on the device's thread only."""

    kind: Kind
    batch_size: int
    """Rows per call; shorter batches are padded, so that every call has the same shape."""
    seconds: float
    """How long one batch takes, as last measured."""

    def execute(self, parts: Sequence[Rows]) -> list[Result]:
        """Compute at most `batch_size` rows, those of several Runs one after the other.

        Raises:
            OutOfMemory: the device could not hold the batch.

        """

    def halve(self) -> bool:
        """Halve the batch size after running out of memory; False if it is 1, or fixed, already."""


class OwnProgram(Program, Protocol):
    """A program for one explanation alone, which keeps something of its image."""

    def close(self) -> None:
        """Let that go; called once the explanation has no rows at the device any more."""


class Servable(Protocol):
    """One loaded version. Whoever uses it holds a handle (repository/manager.py)."""

    description: Description

    def program(self, kind: Kind, image_size: ImageSize) -> Program:
        """Return the program that explains images of one of the sizes served; the same object every time."""

    def incremental(self, image_size: ImageSize, grid: WindowGrid) -> "OwnProgram | None":
        """Return a program for one occlusion with these windows, to be closed after it. None: in full.

        Called when an explanation begins, whose execution is fixed from then on.
        """

    def predictor(self, rows: PredictRows) -> Program:
        """Return the program for an inference; rows of the same shapes share one, and so their batches.

        Images that could be explained go through the program that occludes, so that a prediction has the
        very bits of a plan's scores.
        """

    def close(self) -> None:
        """Give the memory back; called once, after the last handle is released."""
