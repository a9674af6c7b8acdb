"""From Python arguments to the request on the wire, without any connection.

Both clients take the same arguments, declared once as `Options`; `specification` turns them into an
`ExplanationSpec` without its image, and `image_message` gives it the image. What can be checked
without the model is refused here, naming the same fields as the server does.
"""

import io
import math
import operator
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias, TypedDict, TypeGuard, TypeVar

import numpy as np
from numpy.typing import NDArray

from vitrail.enums import value_of
from vitrail.errors import InvalidArgument
from vitrail.methods import Gradient, Method, to_message
from vitrail.tensors import to_tensor, write_layout
from vitrail.v1 import explanation_pb2 as pb

if TYPE_CHECKING:
    import PIL.Image

K = TypeVar("K")

ImageLike: TypeAlias = "NDArray[np.generic] | bytes | str | os.PathLike[str] | PIL.Image.Image"
"""What stands for an image; see `image_message`."""

MAX_PRIORITY = 2**32 - 1
"""The largest priority that fits the wire's type."""


LONGEST_TIMEOUT = 1e9
"""Seconds; gRPC takes a deadline that lies much further ahead for one that has passed."""

LARGEST_IMAGE = (1 << 31) - (1 << 20)
"""Bytes; nothing reads a message of 2 GiB, and there is more in a request than its image."""


@dataclass(frozen=True, slots=True)
class TopK:
    """The n elements of the output with the highest values, highest first.

    Raises:
        InvalidArgument: n is below 1.

    """

    n: int

    def __post_init__(self) -> None:
        if self.n < 1:
            raise InvalidArgument(
                f"spec.targets.top_k is {self.n}; it must be at least 1", field="spec.targets.top_k"
            )


ObjectiveKind = Literal["OUTPUT", "SQUARED_ERROR", "CROSS_ENTROPY"]


@dataclass(frozen=True, slots=True)
class Objective:
    """The value whose changes are explained; y_k is the output at the target k.

    Raises:
        InvalidArgument: an unknown kind, values that are missing, not finite or out of place.

    """

    kind: ObjectiveKind = "OUTPUT"
    """OUTPUT: y_k. SQUARED_ERROR: (y_k - value_k)^2, a loss. CROSS_ENTROPY: -log y_k, a loss."""
    values: tuple[float, ...] = ()
    """For SQUARED_ERROR: the true value of each target, or one for all of them."""

    def __post_init__(self) -> None:
        path = "spec.objective.values"
        value_of(pb.Objective.Kind, self.kind, "spec.objective.kind")
        if self.kind == "SQUARED_ERROR" and not self.values:
            raise InvalidArgument(
                f"{path} is empty; SQUARED_ERROR needs the true value of each target, or one for all",
                field=path,
            )
        if self.kind != "SQUARED_ERROR" and self.values:
            raise InvalidArgument(f"{path} is set, but only SQUARED_ERROR has values", field=path)
        if not all(map(math.isfinite, self.values)):
            raise InvalidArgument(f"{path} holds a value that is not finite", field=path)


class Options(TypedDict, total=False):
    """What both clients' explain functions take beside the image and the model; all of it optional."""

    version: int | None
    """The model's version. None, without a label: the highest available one."""
    version_label: str | None
    """A label that the model's configuration gives to a version, for example "stable"."""
    method: Method
    """`Gradient()` (the default) or `Occlusion(...)`."""
    targets: "TargetsLike | None"
    """An index, a label, a list of these, `TopK(n)`, or "all". None: the top class of a classifier,
    every output of a regressor with at most 16. A label that reads "all" goes in a list."""
    objective: ObjectiveKind | Objective
    """The value whose changes are explained, by name or, where it needs values, as an `Objective`."""
    output: str
    """The output to explain, for models with several."""
    inputs: Mapping[str, NDArray[np.generic]]
    """The values of a model's other inputs by name, without the batch dimension."""
    priority: int | None
    """1 is the most urgent. None: 100."""
    timeout: float | None
    """Seconds. The server is told to end in time and return what it has, marked PARTIAL; the call is
    ended by force a little later. None: until it is complete."""


TargetsLike = int | str | Sequence[int | str] | TopK | Literal["all"]


def specification(model: str, options: Options) -> pb.ExplanationSpec:
    """Return the request for `model` with everything but the image and the time budget.

    Raises:
        InvalidArgument: an option that no server could accept.
        TypeError: an option that does not exist.

    """
    unknown = sorted(set(options) - set(Options.__annotations__))
    if unknown:
        raise TypeError(
            f"there is no option {', '.join(unknown)}; the options are {', '.join(Options.__annotations__)}"
        )
    if not model:
        raise InvalidArgument("spec.model_name is empty; name a model", field="spec.model_name")
    spec = pb.ExplanationSpec(model_name=model, output_name=options.get("output", ""))
    _set_version(spec, options.get("version"), options.get("version_label"))
    message = to_message(options.get("method", Gradient()))
    if isinstance(message, pb.Gradient):
        spec.gradient.CopyFrom(message)
    else:
        spec.occlusion.CopyFrom(message)
    targets = options.get("targets")
    if targets is not None:
        spec.targets.CopyFrom(_targets_message(targets))
    objective = options.get("objective")
    if objective is not None:
        spec.objective.CopyFrom(_objective_message(objective))
    for name, value in options.get("inputs", {}).items():
        spec.inputs[name].CopyFrom(to_tensor(np.asarray(value), f"spec.inputs[{name!r}]"))
    spec.priority = _priority(options.get("priority"))
    _check_timeout(options.get("timeout"))
    return spec


def image_message(image: ImageLike) -> pb.Image:
    """Return the image as the wire has it; reads the file where `image` is a path.

    An array is a tensor in the model's own units; a path, the bytes of a JPEG or PNG file and a
    Pillow image are sent encoded, and the server decodes, resizes and scales them.

    Raises:
        InvalidArgument: none of these, an empty image, one that no message holds, or a file that cannot be
            read.

    """
    message, data = image_parts(image)
    complete(message, data)
    return message


def image_parts(image: ImageLike) -> tuple[pb.Image, bytes | memoryview]:
    """Return an image as `image_message` does, but its data, the tensor's or the file's, beside the message.

    The data may be the caller's own array.
    """
    message = pb.Image(encoded=b"")
    path = "spec.image"
    if _is_pillow(image):
        return message, _png(image)
    if isinstance(image, str | os.PathLike):
        try:
            with Path(image).open("rb") as file:
                encoded = file.read(LARGEST_IMAGE + 1)  # a device may have no end
        except OSError as error:
            raise InvalidArgument(f"cannot read {os.fspath(image)}: {error.strerror}", field=path) from error
    elif isinstance(image, bytes | bytearray | memoryview):
        encoded = bytes(image)
    elif hasattr(image, "__array__"):
        array = np.asarray(image)
        if array.size == 0:
            raise InvalidArgument(
                f"{path}.tensor.shape is {list(array.shape)}; every size must be at least 1",
                field=f"{path}.tensor.shape",
            )
        _check_size(array.nbytes, f"{path}.tensor.data")
        return message, write_layout(message.tensor, array, f"{path}.tensor")
    else:
        raise InvalidArgument(
            f"{path} is a {type(image).__name__}; use an array, a path, the bytes of a JPEG or PNG file, or "
            "a Pillow image",
            field=path,
        )
    if not encoded:
        path = f"{path}.encoded"
        raise InvalidArgument(f"{path} is empty; it must be a JPEG or PNG file", field=path)
    _check_size(len(encoded), f"{path}.encoded")
    return message, encoded


def _check_size(size: int, field: str) -> None:
    if size > LARGEST_IMAGE:
        raise InvalidArgument(
            f"{field} has more than {LARGEST_IMAGE} bytes, which is all a message holds; use a smaller image",
            field=field,
        )


def complete(image: pb.Image, data: bytes | memoryview) -> None:
    """Put the data of an image into its message."""
    if image.WhichOneof("source") == "tensor":
        image.tensor.data = bytes(data)
    else:
        image.encoded = bytes(data)


def set_budget(spec: pb.ExplanationSpec, budget: float | None) -> None:
    """Set how many seconds the explanation may take; None: without a limit."""
    if budget is None:
        spec.ClearField("time_budget")
    else:
        # A budget of 0 would read as none.
        spec.time_budget.FromNanoseconds(max(1, round(budget * 1e9)))


def keyed(images: Mapping[K, ImageLike] | Iterable[ImageLike]) -> Iterator[tuple[K | int, ImageLike]]:
    """Yield (key, image): the keys of a mapping, else 0, 1, 2, ..."""
    if isinstance(images, Mapping):
        yield from images.items()
    else:
        yield from enumerate(images)


def _is_pillow(image: object) -> "TypeGuard[PIL.Image.Image]":
    # Whoever holds a Pillow image has imported Pillow; the client itself must not.
    module = sys.modules.get("PIL.Image")
    return module is not None and isinstance(image, module.Image)


def _png(image: "PIL.Image.Image") -> bytes:
    from PIL import ImageOps

    # A photo from a file may carry an orientation tag, which the server would apply to the file too.
    upright = ImageOps.exif_transpose(image)
    if upright.mode not in ("1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16"):
        upright = upright.convert("RGB")
    buffer = io.BytesIO()
    upright.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _set_version(spec: pb.ExplanationSpec, version: int | None, label: str | None) -> None:
    if version is not None and label is not None:
        raise InvalidArgument(
            f"spec.version is {version} and spec.version_label is {label!r}; set one of them",
            field="spec.version",
        )
    if version is not None:
        spec.version = _int64(version, "spec.version")
    if label is not None:
        spec.version_label = label


def _targets_message(targets: TargetsLike) -> pb.Targets:
    path = "spec.targets"
    if isinstance(targets, TopK):
        return pb.Targets(top_k=targets.n)
    if targets == "all":
        return pb.Targets(all=pb.AllTargets())
    elements = [targets] if isinstance(targets, str) or not isinstance(targets, Iterable) else list(targets)
    if not elements:
        raise InvalidArgument(
            f"{path}.list is empty; name at least one target, or leave targets unset", field=f"{path}.list"
        )
    return pb.Targets(
        list=pb.TargetList(
            targets=[_target(one, f"{path}.list.targets[{i}]") for i, one in enumerate(elements)]
        )
    )


def _target(element: int | str, path: str) -> pb.Target:
    if isinstance(element, str):
        return pb.Target(label=element)
    try:
        index = operator.index(element)
    except TypeError:
        raise InvalidArgument(f"{path} is {element!r}; use an index or a label", field=path) from None
    return pb.Target(index=_int64(index, f"{path}.index"))


def _int64(number: int, path: str) -> int:
    if not 0 <= number < 2**63:
        raise InvalidArgument(f"{path} is {number}; it must be 0 or more, and fit 64 bits", field=path)
    return number


def _objective_message(objective: ObjectiveKind | Objective) -> pb.Objective:
    chosen = objective if isinstance(objective, Objective) else Objective(objective)
    kind = value_of(pb.Objective.Kind, chosen.kind, "spec.objective.kind")
    return pb.Objective(kind=kind, values=chosen.values)


def _priority(priority: int | None) -> int:
    if priority is None:
        return 0
    if not 1 <= priority <= MAX_PRIORITY:
        raise InvalidArgument(
            f"spec.priority is {priority}; it must be 1 (the most urgent) to {MAX_PRIORITY}",
            field="spec.priority",
        )
    return priority


def _check_timeout(timeout: float | None) -> None:
    if timeout is not None and not 0 < timeout <= LONGEST_TIMEOUT:
        raise InvalidArgument(
            f"spec.time_budget is {timeout}; it must be above 0 and at most {LONGEST_TIMEOUT:g} s, or None "
            "for no limit",
            field="spec.time_budget",
        )
