"""A v2 request checked against the model's signature, in Triton's texts, before anything is allocated."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vitrail.errors import InvalidArgument
from vitrail_server.inference.tensors import from_elements, from_raw
from vitrail_server.kserve.v2 import grpc_service_pb2 as pb
from vitrail_server.rpc.inference.parameters import classes_wanted, refuse_shared_memory
from vitrail_server.servable import Description, Signature, TensorSpec
from vitrail_server.wording import listed, quoted, shape_text
from vitrail_server.work import PredictRows

MAX_RANK = 32
"""The most dimensions of a tensor: NumPy's own limit is a little higher."""

CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
"""The field of `InferTensorContents` for each datatype; FP16 and BF16 have none."""

Input = pb.ModelInferRequest.InferInputTensor


@dataclass(frozen=True, slots=True)
class WantedOutput:
    """An output as the client wants it."""

    name: str
    classes: int
    """How many classes it is wanted as; 0: as it is."""


@dataclass(frozen=True, slots=True, eq=False)
class Inference:
    """A request that fits its model."""

    rows: PredictRows
    outputs: tuple[WantedOutput, ...]
    batch_size: int
    """The rows that statistics count: 1 where there is no batch dimension."""


def is_plain(request: pb.ModelInferRequest) -> bool:
    """Return whether a request's tensors are views of its bytes, so that reading them takes no time."""
    return bool(request.raw_input_contents) and all(each.datatype != "BYTES" for each in request.inputs)


def read_inference(request: pb.ModelInferRequest, description: Description) -> Inference:
    """Return what a request asks of a model.

    Raises:
        InvalidArgument: it does not fit the signature, or itself.
        Unimplemented: a tensor is in shared memory.

    """
    model, signature = quoted(description.name), description.signature
    outputs = _outputs(request, signature, model)
    inputs = _by_name(request.inputs, signature, model)
    batch = _batch_size(inputs, description, model)
    arrays = read_inputs(request, signature.inputs, model)
    whole = batch is None or any(_has_no_rows(signature.outputs[each.name]) for each in outputs)
    rows = PredictRows(
        {name: arrays[name] for name in signature.inputs},
        tuple(each.name for each in outputs),
        count=1 if whole or batch is None else batch,
        batched=not whole,
    )
    return Inference(rows, outputs, batch or 1)


def read_inputs(
    request: pb.ModelInferRequest, specs: Mapping[str, TensorSpec], model: str
) -> dict[str, NDArray[np.generic]]:
    """Return the arrays of a request's inputs, whose names and shapes are checked, by name.

    Raises:
        InvalidArgument: the data does not fit datatype and shape.
        Unimplemented: a tensor is in shared memory.

    """
    raw = request.raw_input_contents
    if len(raw) > len(request.inputs):
        raise InvalidArgument(
            f"{len(raw)} raw_input_contents came for {len(request.inputs)} inputs of model {model}"
        )
    arrays = {}
    for place, each in enumerate(request.inputs):
        what = f"input {quoted(each.name)} for model {model}"
        refuse_shared_memory(each.name, each.parameters)
        _check_datatype(each, specs[each.name], model)
        shape = tuple(each.shape)
        if not raw:
            arrays[each.name] = _from_contents(each, shape, what, model)
            continue
        if each.HasField("contents"):
            raise InvalidArgument(
                f"contents field must not be specified when using raw_input_contents for "
                f"{quoted(each.name)} for model {model}"
            )
        if place >= len(raw):
            raise _no_data(each, model)
        arrays[each.name] = from_raw(raw[place], each.datatype, shape, what)
    return arrays


def _outputs(request: pb.ModelInferRequest, signature: Signature, model: str) -> tuple[WantedOutput, ...]:
    if not request.outputs:
        return tuple(WantedOutput(name, 0) for name in signature.outputs)
    wanted: dict[str, WantedOutput] = {}
    for each in request.outputs:
        if each.name not in signature.outputs:
            raise InvalidArgument(
                f"unexpected inference output {quoted(each.name)} for model {model}; it has "
                f"{listed(map(quoted, signature.outputs))}"
            )
        if each.name in wanted:
            raise InvalidArgument(f"output {quoted(each.name)} already exists in request for model {model}")
        refuse_shared_memory(each.name, each.parameters)
        wanted[each.name] = WantedOutput(each.name, classes_wanted(each))
        if wanted[each.name].classes and signature.outputs[each.name].datatype == "BYTES":
            raise InvalidArgument(f"output {quoted(each.name)} is BYTES, which has no classes")
    return tuple(wanted.values())


def _by_name(inputs: Sequence[Input], signature: Signature, model: str) -> dict[str, Input]:
    """Return the inputs by name: exactly those of the signature."""
    expected = signature.inputs
    if len(inputs) > len(expected):
        raise InvalidArgument(
            f"expected {len(expected)} inputs but got {len(inputs)} inputs for model {model}"
        )
    found: dict[str, Input] = {}
    for each in inputs:
        if each.name in found:
            raise InvalidArgument(f"input {quoted(each.name)} already exists in request")
        if each.name not in expected:
            raise InvalidArgument(
                f"unexpected inference input {quoted(each.name)} for model {model}; it has "
                f"{listed(map(quoted, expected))}"
            )
        found[each.name] = each
    missing = [name for name in expected if name not in found]
    if missing:
        raise InvalidArgument(
            f"expected {len(expected)} inputs but got {len(found)} inputs for model {model}. Got input(s) "
            f"[{','.join(map(quoted, found))}], but missing required input(s) "
            f"[{','.join(map(quoted, missing))}]. Please provide all required input(s)."
        )
    return found


def _batch_size(inputs: Mapping[str, Input], description: Description, model: str) -> int | None:
    """Return the rows of a request; None where the model has no batch dimension. Checks every shape."""
    most = description.settings.max_request_batch
    batch: int | None = None
    for name, each in inputs.items():
        spec, shape = description.signature.inputs[name], tuple(each.shape)
        if len(shape) > MAX_RANK:
            raise InvalidArgument(
                f"input {quoted(name)} has {len(shape)} dimensions for model {model}; at most {MAX_RANK} are "
                "possible"
            )
        if most and not shape:
            raise InvalidArgument(
                f"input {quoted(name)} has no shape but model requires batch dimension for {model}"
            )
        if not _fits(shape, spec.shape):
            note = (
                " The first dimension is the batch: the requests to a model whose max_batch_size is above 0 "
                "have one."
            )
            raise InvalidArgument(
                f"unexpected shape for input {quoted(name)} for model {model}. Expected "
                f"{shape_text(spec.shape)}, got {shape_text(shape)}.{note if most else ''}"
            )
        if most:
            if batch is not None and shape[0] != batch:
                raise InvalidArgument(
                    f"input {quoted(name)} batch size does not match other inputs for {model}"
                )
            batch = shape[0]
    if batch is not None and batch > most:
        raise InvalidArgument(f"inference request batch-size must be <= {most} for {model}")
    if batch == 0:
        raise InvalidArgument(f"inference request batch-size must be >= 1 for {model}")
    return batch


def _fits(shape: tuple[int, ...], expected: tuple[int, ...] | None) -> bool:
    if any(size < 0 for size in shape):
        return False
    if expected is None:
        return True
    return len(shape) == len(expected) and all(
        wanted in (-1, size) for wanted, size in zip(expected, shape, strict=True)
    )


def _has_no_rows(spec: TensorSpec) -> bool:
    return spec.shape is not None and not spec.shape


def _check_datatype(each: Input, spec: TensorSpec, model: str) -> None:
    if each.datatype != spec.datatype:
        raise InvalidArgument(
            f"inference input {quoted(each.name)} data-type is {quoted(each.datatype)}, but model {model} "
            f"expects '{spec.datatype}'"
        )


def _from_contents(each: Input, shape: tuple[int, ...], what: str, model: str) -> NDArray[np.generic]:
    field = CONTENTS.get(each.datatype)
    used = [descriptor.name for descriptor, _ in each.contents.ListFields()]
    if field is None:
        raise InvalidArgument(
            f"{what} is {each.datatype}, which contents cannot carry: send it in raw_input_contents"
        )
    if used not in ([], [field]):
        raise InvalidArgument(
            f"{what} is {each.datatype}, whose values are in {field}, but {listed(used)} is set"
        )
    if not used and 0 not in shape:
        raise _no_data(each, model)
    return from_elements(list(getattr(each.contents, field)), each.datatype, shape, what)


def _no_data(each: Input, model: str) -> InvalidArgument:
    return InvalidArgument(
        f"unable to find data for input tensor {quoted(each.name)} for model {model} in request."
    )
