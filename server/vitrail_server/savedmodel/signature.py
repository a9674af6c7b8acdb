"""Reads a SavedModel and says what its signature expects and gives, in Triton's words.

What cannot be served at all is refused here, by name and with what would work; which input is the image
is the configuration's business.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow as tf

from vitrail.errors import FailedPrecondition
from vitrail_server.savedmodel.rows import InputLayout, RowLayout
from vitrail_server.servable import DTYPES, ImageSize, Signature, TensorSpec
from vitrail_server.wording import listed, quoted, reason_of, shape_text

PREFERRED = "serving_default"
"""The signature served where there are several."""

DATATYPES = {dtype.name: datatype for datatype, dtype in DTYPES.items()} | {
    "bfloat16": "BF16",
    "string": "BYTES",
}
"""Triton's name of each TensorFlow type that has one, by TensorFlow's name (NumPy's, where it has one)."""

NUMBERS = "export it as numbers, FP32 for example"


class NotExplainable(FailedPrecondition):
    """The model can predict, but no map of its image can be made."""


@dataclass(frozen=True, slots=True, eq=False)
class Exported:
    """A signature of a SavedModel in memory."""

    signature: Signature
    call: Callable[..., Mapping[str, Any]]
    """Takes the inputs by name and returns the outputs by name, as TensorFlow tensors."""
    weights: int
    """The bytes of the variables it uses."""
    root: object
    """What was loaded: its variables are deleted when nothing refers to it any more."""


def read(path: Path) -> Exported:
    """Read the SavedModel at `path`: its signature `serving_default`, or the only one it has.

    Raises:
        FailedPrecondition: it cannot be read, or there is no signature to choose.

    """
    try:
        root: Any = tf.saved_model.load(str(path))
    except (OSError, ValueError, RuntimeError, LookupError, tf.errors.OpError) as error:
        reason = reason_of(error, below=path.parent)
        raise FailedPrecondition(f"TensorFlow cannot read the SavedModel: {reason}") from error
    signatures: dict[str, Any] = dict(getattr(root, "signatures", {}))
    if not signatures:
        raise FailedPrecondition(
            f"the SavedModel has no signature; export it with signatures={{{PREFERRED!r}: ...}}"
        )
    if PREFERRED not in signatures and len(signatures) > 1:
        raise FailedPrecondition(
            f"the SavedModel has the signatures {listed(signatures)} and none is named {PREFERRED}; export "
            "the one to serve under that name"
        )
    function = signatures.get(PREFERRED) or next(iter(signatures.values()))
    return Exported(_signature(function), function, _weights(function), root)


def batch_size_of(signature: Signature) -> int | None:
    """Return the batch size that the signature's inputs fix; None if any will do.

    Raises:
        NotExplainable: an input has no batch dimension, or two fix different sizes.

    """
    fixed: dict[int, str] = {}
    for spec in signature.inputs.values():
        if not spec.shape:
            raise NotExplainable(
                f"input {quoted(spec.name)} has the shape {shape_text(spec.shape)}, without a batch "
                "dimension; export it with the shape (None, ...)"
            )
        if spec.shape[0] >= 0:
            fixed[spec.shape[0]] = spec.name
    if len(fixed) > 1:
        raise NotExplainable(
            f"the inputs {listed(fixed.values())} have the batch sizes {listed(fixed)}; export them with one"
        )
    return next(iter(fixed), None)


def row_layout(signature: Signature, image_input: str, size: ImageSize) -> RowLayout:
    """Return what a row with an image of `size` consists of.

    Raises:
        NotExplainable: an input beside the image cannot be sent with it.

    """
    image = signature.inputs[image_input]
    channels = (image.shape or (0,))[-1]
    others = {name: spec for name, spec in signature.inputs.items() if name != image_input}
    return RowLayout(
        image_input,
        InputLayout((*size, channels), DTYPES[image.datatype]),
        {name: _input_layout(spec) for name, spec in others.items()},
    )


def per_image_outputs(signature: Signature) -> tuple[str, ...]:
    """Return the outputs that are numbers and have a row per image, as far as the signature tells."""
    batch = batch_size_of(signature)
    return tuple(
        name
        for name, spec in signature.outputs.items()
        if spec.datatype != "BYTES" and (spec.shape is None or spec.shape[:1] in ((-1,), (batch,)))
    )


def _input_layout(spec: TensorSpec) -> InputLayout:
    shape = (spec.shape or ())[1:]
    if spec.datatype not in DTYPES:
        raise NotExplainable(
            f"input {quoted(spec.name)} is {spec.datatype}, which cannot be sent with an image; {NUMBERS}"
        )
    if any(extent < 0 for extent in shape):
        raise NotExplainable(
            f"input {quoted(spec.name)} has the shape {shape_text(spec.shape)}; export it with every size "
            "but the batch fixed"
        )
    return InputLayout(shape, DTYPES[spec.datatype])


def _signature(function: Any) -> Signature:
    _, inputs = function.structured_input_signature
    outputs = function.structured_outputs
    unnamed = [
        f"{name} ({each.dtype.name})" for name, each in inputs.items() if each.dtype.name not in DATATYPES
    ]
    if unnamed:
        raise FailedPrecondition(f"these inputs cannot be sent: {listed(unnamed)}; {NUMBERS}")
    return Signature(
        {name: _spec(name, tensor) for name, tensor in sorted(inputs.items())},
        # An output of another type, a complex number say, is not served; the others are.
        {name: _spec(name, each) for name, each in sorted(outputs.items()) if each.dtype.name in DATATYPES},
    )


def _spec(name: str, tensor: Any) -> TensorSpec:
    datatype, shape = DATATYPES[tensor.dtype.name], tensor.shape
    if shape.rank is None:
        return TensorSpec(name, datatype, None)
    return TensorSpec(name, datatype, tuple(-1 if extent is None else extent for extent in shape))


def _weights(function: Any) -> int:
    return sum(variable.shape.num_elements() * variable.dtype.size for variable in function.variables)
