"""The explanation methods and their parameters, as a caller writes them.

Each is a small frozen value that checks itself when it is made, as far as it can be checked without
the model, and names the same fields as the server does. `to_message` puts one on the wire, and
`from_message` reads one back, for example the effective one of a plan. What the parameters mean,
exactly, is on the page docs/methods.
"""

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, cast

import numpy as np
from numpy.typing import NDArray

from vitrail.enums import name_of, value_of
from vitrail.errors import InvalidArgument
from vitrail.tensors import to_tensor
from vitrail.v1 import explanation_pb2 as pb
from vitrail.v1.tensor_pb2 import Tensor

# The names are the wire's; tests/client/test_methods.py holds them to it.
ChannelReduction = Literal["NONE", "MAX_ABS", "SUM_ABS", "L2", "SUM", "MEAN"]
Edge = Literal["CLIP", "SHIFT"]
WindowScore = Literal["SIGNED", "ABSOLUTE"]
Resolution = Literal["PIXELS", "WINDOWS"]
Order = Literal["RASTER", "PROGRESSIVE"]

SIGNED_REDUCTIONS: tuple[ChannelReduction, ...] = ("NONE", "SUM", "MEAN")
"""The channel reductions that can keep the sign."""

MAX_EXTENT = 2**32 - 1
"""The largest size that fits the wire's type."""


@dataclass(frozen=True, slots=True)
class Gradient:
    """The gradient of the objective with respect to the image (Simonyan, Vedaldi and Zisserman 2014).

    Raises:
        InvalidArgument: an unknown channel reduction, or one that cannot be signed.

    """

    signed: bool = False
    """Keep the sign, which the reductions NONE, SUM and MEAN can; otherwise absolute values first."""
    channel_reduction: ChannelReduction = "MAX_ABS"
    """How the channels of a pixel become one value; NONE keeps them as the map's last dimension."""
    times_input: bool = False
    """Multiply the gradient by the image before the reduction."""

    def __post_init__(self) -> None:
        value_of(
            pb.Gradient.ChannelReduction, self.channel_reduction, field="spec.gradient.channel_reduction"
        )
        if self.signed and self.channel_reduction not in SIGNED_REDUCTIONS:
            raise InvalidArgument(
                f"spec.gradient.signed is true, but channel_reduction {self.channel_reduction} has no sign; "
                f"use one of {', '.join(SIGNED_REDUCTIONS)}",
                field="spec.gradient.signed",
            )


@dataclass(frozen=True, slots=True)
class Fill:
    """What a hidden pixel shows, in the model's own units.

    Made by `constant`, `channels`, `blur` and `image`, or `Fill.IMAGE_MEAN`: the mean of the image,
    per channel.
    """

    kind: Literal["constant", "channels", "image_mean", "blur", "image"]
    numbers: tuple[float, ...] = ()
    """The constant, one value per channel, or the blur's standard deviation in pixels."""
    tensor: Tensor | None = field(default=None, repr=False, hash=False)
    """The image of an image fill."""

    IMAGE_MEAN: ClassVar["Fill"]

    @staticmethod
    def constant(value: float) -> "Fill":
        """One value for every channel."""
        return Fill("constant", _finite((value,), "spec.occlusion.fill.constant"))

    @staticmethod
    def channels(values: Sequence[float] | NDArray[np.generic]) -> "Fill":
        """One value per channel."""
        path = "spec.occlusion.fill.channels"
        numbers = _finite(np.asarray(values, np.float64).tolist(), path)
        if not numbers:
            raise InvalidArgument(f"{path} is empty; give one value per channel", field=path)
        return Fill("channels", numbers)

    @staticmethod
    def blur(sigma: float) -> "Fill":
        """Blur the image itself by a Gaussian of `sigma` pixels."""
        path = "spec.occlusion.fill.blur.sigma"
        if not (math.isfinite(sigma) and sigma > 0):
            raise InvalidArgument(f"{path} is {sigma:g}; it must be above 0", field=path)
        return Fill("blur", (float(sigma),))

    @staticmethod
    def image(image: NDArray[np.generic]) -> "Fill":
        """Another image, of the shape of the one explained."""
        return Fill("image", tensor=to_tensor(image, "spec.occlusion.fill.image"))

    @staticmethod
    def of(fill: "FillLike") -> "Fill":
        """Return the fill that a number, a sequence per channel or an image stands for."""
        if isinstance(fill, Fill):
            return fill
        if isinstance(fill, np.ndarray) and fill.ndim > 1:
            return Fill.image(fill)
        try:
            numbers = np.asarray(fill, np.float64)
        except (TypeError, ValueError):
            numbers = None
        if numbers is None or numbers.ndim > 1:
            raise InvalidArgument(
                f"spec.occlusion.fill is {fill!r}; use a number, one number per channel, an array of the "
                "image's shape, Fill.IMAGE_MEAN or Fill.blur(sigma)",
                field="spec.occlusion.fill",
            )
        return Fill.channels(numbers) if numbers.ndim else Fill.constant(float(numbers))

    def to_message(self) -> pb.Fill:
        """Return the fill as the wire has it."""
        match self.kind:
            case "constant":
                return pb.Fill(constant=self.numbers[0])
            case "channels":
                return pb.Fill(channels=pb.ChannelValues(values=self.numbers))
            case "image_mean":
                return pb.Fill(image_mean=pb.ImageMean())
            case "blur":
                return pb.Fill(blur=pb.Blur(sigma=self.numbers[0]))
            case "image":
                return pb.Fill(image=self.tensor)

    @staticmethod
    def from_message(message: pb.Fill) -> "Fill | None":
        """Return the fill that `message` carries; None where it carries none."""
        kind = message.WhichOneof("kind")
        match kind:
            case None:
                return None
            case "constant":
                return Fill(kind, (message.constant,))
            case "channels":
                return Fill(kind, tuple(message.channels.values))
            case "image_mean":
                return Fill.IMAGE_MEAN
            case "blur":
                return Fill(kind, (message.blur.sigma,))
            case "image":
                return Fill(kind, tensor=message.image)


Fill.IMAGE_MEAN = Fill("image_mean")

FillLike = float | Sequence[float] | NDArray[np.generic] | Fill
"""What stands for a fill: a number, one number per channel, an array of the image's shape, or a Fill."""

Size = int | tuple[int, int]
"""A size in pixels: both sides, or (rows, columns)."""


@dataclass(frozen=True, slots=True)
class Occlusion:
    """How much the objective changes when a patch of the image is hidden (Zeiler and Fergus 2014).

    Raises:
        InvalidArgument: a size below 1, a stride above the patch, an unknown name, or a fill that is
            not finite.

    """

    patch: Size
    """The hidden window."""
    stride: Size | None = None
    """The step from one window to the next, at most the patch. None: the patch."""
    fill: FillLike | None = None
    """What a hidden pixel shows. None: the fill of the model's configuration, else 0."""
    edge: Edge = "CLIP"
    """Whether the last window is cut at the image's border (CLIP) or moved back into it (SHIFT)."""
    window_score: WindowScore = "SIGNED"
    """SIGNED: positive where hiding the window hurts. ABSOLUTE: its absolute value, per window."""
    resolution: Resolution = "PIXELS"
    """One value per pixel, the mean of the windows that cover it, or one per window."""
    order: Order = "RASTER"
    """RASTER, or PROGRESSIVE: from coarse to fine. It never changes the finished map."""

    def __post_init__(self) -> None:
        # The one field that is rewritten: an array would make comparing two of these an error.
        object.__setattr__(self, "fill", None if self.fill is None else Fill.of(self.fill))
        patch = _extent(self.patch, "spec.occlusion.patch")
        stride = patch if self.stride is None else _extent(self.stride, "spec.occlusion.stride")
        for axis, step, size in (
            ("rows", stride.rows, patch.rows),
            ("columns", stride.columns, patch.columns),
        ):
            if step > size:
                raise InvalidArgument(
                    f"spec.occlusion.stride.{axis} is {step}; it must be 1 to {size}, the patch, so that "
                    "every pixel is covered",
                    field=f"spec.occlusion.stride.{axis}",
                )
        to_message(self)


Method = Gradient | Occlusion
"""Every method there is."""


def to_message(method: Method) -> pb.Gradient | pb.Occlusion:
    """Return `method` as the wire has it; what is None stays unset."""
    match method:
        case Gradient():
            return pb.Gradient(
                signed=method.signed,
                channel_reduction=value_of(
                    pb.Gradient.ChannelReduction,
                    method.channel_reduction,
                    field="spec.gradient.channel_reduction",
                ),
                times_input=method.times_input,
            )
        case Occlusion():
            path = "spec.occlusion"
            return pb.Occlusion(
                patch=_extent(method.patch, f"{path}.patch"),
                stride=None if method.stride is None else _extent(method.stride, f"{path}.stride"),
                fill=None if method.fill is None else Fill.of(method.fill).to_message(),
                edge=value_of(pb.Occlusion.Edge, method.edge, field=f"{path}.edge"),
                window_score=value_of(
                    pb.Occlusion.WindowScore, method.window_score, field=f"{path}.window_score"
                ),
                resolution=value_of(pb.Occlusion.Resolution, method.resolution, field=f"{path}.resolution"),
                order=value_of(pb.Occlusion.Order, method.order, field=f"{path}.order"),
            )


def from_message(message: pb.Gradient | pb.Occlusion) -> Method:
    """Return the method that `message` carries.

    Raises:
        InvalidArgument: it holds values that this client does not know.

    """
    # The casts are safe: whoever makes a method with an unknown name gets InvalidArgument.
    if isinstance(message, pb.Gradient):
        reduction = name_of(pb.Gradient.ChannelReduction, message.channel_reduction)
        return Gradient(
            signed=message.signed,
            channel_reduction=cast("ChannelReduction", reduction),
            times_input=message.times_input,
        )
    return Occlusion(
        patch=(message.patch.rows, message.patch.columns),
        stride=(message.stride.rows, message.stride.columns) if message.HasField("stride") else None,
        fill=Fill.from_message(message.fill),
        edge=cast("Edge", name_of(pb.Occlusion.Edge, message.edge)),
        window_score=cast("WindowScore", name_of(pb.Occlusion.WindowScore, message.window_score)),
        resolution=cast("Resolution", name_of(pb.Occlusion.Resolution, message.resolution)),
        order=cast("Order", name_of(pb.Occlusion.Order, message.order)),
    )


def _extent(size: Size, path: str) -> pb.Extent:
    sides = size if isinstance(size, tuple | list) else (size, size)
    try:
        rows, columns = (operator.index(side) for side in sides)
    except (TypeError, ValueError):
        raise InvalidArgument(f"{path} is {size!r}; use an int, or (rows, columns)", field=path) from None
    for axis, side in (("rows", rows), ("columns", columns)):
        if not 1 <= side <= MAX_EXTENT:
            raise InvalidArgument(
                f"{path}.{axis} is {side}; it must be 1 or more, up to the image's {axis}",
                field=f"{path}.{axis}",
            )
    return pb.Extent(rows=rows, columns=columns)


def _finite(numbers: Sequence[float], path: str) -> tuple[float, ...]:
    for number in numbers:
        if not math.isfinite(number):
            raise InvalidArgument(f"{path} holds {number}; only finite numbers can be shown", field=path)
    return tuple(float(number) for number in numbers)
