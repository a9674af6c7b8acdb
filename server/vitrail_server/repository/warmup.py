"""The `model_warmup` of a config.pbtxt: inferences that a version answers before it is AVAILABLE.

The samples are checked with the configuration; their tensors are made when the version's signature is
known. Texts are Triton's where Triton has them. A file holds the bytes of one item, as on the wire, which
every row of the sample repeats.
"""

import math
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from vitrail.errors import InvalidArgument
from vitrail_server.kserve.v2 import model_config_pb2 as triton
from vitrail_server.repository.directory import is_plain
from vitrail_server.repository.tensors import datatype_of
from vitrail_server.servable import DTYPES, Description, TensorSpec
from vitrail_server.wording import listed, quoted, shape_text
from vitrail_server.work import PredictRows

Source = Literal["zero_data", "random_data", "input_data_file"]

SAMPLED: dict[str, np.dtype[np.generic]] = DTYPES | {"BF16": np.dtype(ml_dtypes.bfloat16)}
"""The NumPy type of the numbers of each datatype; BYTES has none."""
FRACTIONS = frozenset({"BF16", "FP16", "FP32", "FP64"})
"""The datatypes whose random numbers are from 0 to 1; for all others they are from 0 to 127."""


@dataclass(frozen=True, slots=True)
class SampleInput:
    """One input of a sample."""

    datatype: str
    dims: tuple[int, ...]
    """Of one item: without the batch dimension where the model has one."""
    source: Source
    file: str = ""
    """The name of a file in the model's warm-up directory."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One inference that warms a version up."""

    name: str
    batch_size: int
    count: int
    """How often it runs."""
    inputs: Mapping[str, SampleInput]


def read_warmup(config: triton.ModelConfig, model: str) -> tuple[tuple[Sample, ...], tuple[str, ...]]:
    """Return the samples, and a note on each that is left out.

    Raises:
        InvalidArgument: a sample is incomplete.

    """
    samples, notes = [], []
    for message in config.model_warmup:
        if not message.name:
            raise InvalidArgument(f"warmup sample must specify 'name' for {model}", field="model_warmup.name")
        inputs = {name: _input(name, each, message.name, model) for name, each in message.inputs.items()}
        if message.batch_size == 0:
            notes.append(f"warmup sample {quoted(message.name)} has batch size 0 and is skipped")
        else:
            samples.append(Sample(message.name, message.batch_size, message.count or 1, inputs))
    return tuple(samples), tuple(notes)


def rows_of(sample: Sample, description: Description, directory: Path) -> PredictRows:
    """Return the tensors of a sample; blocks, to read its files from the warm-up directory.

    Raises:
        InvalidArgument: it does not fit the version, or a file cannot be read.

    """
    specs, limit = description.signature.inputs, description.settings.max_request_batch
    model = quoted(description.name)
    if missing := [quoted(name) for name in specs if name not in sample.inputs]:
        raise InvalidArgument(
            f"expected {len(specs)} inputs but got {len(sample.inputs)} inputs for model {model}: missing "
            f"{listed(missing)}"
        )
    if unknown := [quoted(name) for name in sample.inputs if name not in specs]:
        raise InvalidArgument(f"unexpected inference input {unknown[0]} for model {model}")
    if limit and sample.batch_size > limit:
        raise InvalidArgument(f"inference request batch-size must be <= {limit} for {model}")
    if not limit and sample.batch_size > 1:
        raise InvalidArgument(f"model {model} does not support batching: the batch size must be 1")
    inputs = {}
    for name, each in sample.inputs.items():
        _check_input(each, specs[name], description)
        item = _item(each, name, sample, directory)
        inputs[name] = np.repeat(item[np.newaxis], sample.batch_size, axis=0) if limit else item
    return PredictRows(inputs, tuple(description.signature.outputs), sample.batch_size, batched=limit > 0)


def _input(name: str, message: triton.ModelWarmup.Input, sample: str, model: str) -> SampleInput:
    where = f"input {quoted(name)} of warmup sample {quoted(sample)} for {model}"
    datatype = datatype_of(message.data_type, where, "model_warmup.inputs.data_type")
    if not datatype:
        raise InvalidArgument(f"{where} must specify 'data_type'", field="model_warmup.inputs.data_type")
    if any(size < 1 for size in message.dims):
        raise InvalidArgument(
            "warmup setting expects all variable-size dimensions are specified for " + where,
            field="model_warmup.inputs.dims",
        )
    source: Source | None = message.WhichOneof("input_data_type")
    if source is None:
        raise InvalidArgument(
            f"{where} must specify one of 'zero_data', 'random_data' and 'input_data_file'",
            field="model_warmup.inputs",
        )
    file = message.input_data_file
    if source == "input_data_file" and not is_plain(file):
        raise InvalidArgument(
            f"{where}: 'input_data_file' {quoted(file)} must be the name of a file in the model's 'warmup' "
            "directory",
            field="model_warmup.inputs.input_data_file",
        )
    return SampleInput(datatype, tuple(message.dims), source, file)


def _check_input(each: SampleInput, spec: TensorSpec, description: Description) -> None:
    model = quoted(description.name)
    if each.datatype != spec.datatype:
        raise InvalidArgument(
            f"inference input {quoted(spec.name)} data-type is '{each.datatype}', but model {model} expects "
            f"'{spec.datatype}'"
        )
    if spec.shape is None:
        return
    expected = spec.shape[1:] if description.settings.max_request_batch else spec.shape
    if len(expected) != len(each.dims) or any(
        wanted not in (-1, size) for wanted, size in zip(expected, each.dims, strict=True)
    ):
        raise InvalidArgument(
            f"unexpected shape for input {quoted(spec.name)} for model {model}. Expected "
            f"{shape_text(expected)}, got {shape_text(each.dims)}"
        )


def _item(each: SampleInput, name: str, sample: Sample, directory: Path) -> NDArray[np.generic]:
    """Return the tensor of one item."""
    count = math.prod(each.dims)
    if each.source == "input_data_file":
        return _from_file(each, directory / each.file).reshape(each.dims)
    if each.datatype == "BYTES":  # random strings say no more than empty ones
        return np.full(each.dims, b"", object)
    dtype = SAMPLED[each.datatype]
    if each.source == "zero_data":
        return np.zeros(each.dims, dtype)
    # The same numbers every time, so that a sample that fails fails again.
    random = np.random.default_rng(zlib.crc32(f"{sample.name}\0{name}".encode()))
    numbers = (
        random.random(count)
        if each.datatype in FRACTIONS
        else random.integers(0, 2 if dtype.kind == "b" else 128, count)
    )
    return numbers.astype(dtype).reshape(each.dims)


def _from_file(each: SampleInput, path: Path) -> NDArray[np.generic]:
    if path.exists() and not path.is_file():  # reading a pipe might never end
        raise InvalidArgument(f"warmup data file {quoted(each.file)} is not a file")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InvalidArgument(
            f"warmup data file {quoted(each.file)} cannot be read: {error.strerror}"
        ) from None
    count = math.prod(each.dims)
    if each.datatype == "BYTES":
        strings = list(_strings(data, each.file))
        if len(strings) != count:
            raise InvalidArgument(
                f"expected {count} string elements in warmup data file {quoted(each.file)}, "
                f"got {len(strings)}"
            )
        array = np.empty(count, object)
        array[:] = strings
        return array
    dtype = SAMPLED[each.datatype].newbyteorder("<")
    wanted = count * dtype.itemsize
    if len(data) < wanted:
        raise InvalidArgument(
            f"warmup setting expects {wanted} bytes, but the data provided from {each.file} only has "
            f"{len(data)} bytes"
        )
    return np.frombuffer(data[:wanted], dtype).astype(SAMPLED[each.datatype])


def _strings(data: bytes, file: str) -> Iterator[bytes]:
    """Yield the strings, each behind its length."""
    offset = 0
    while offset < len(data):
        if offset + 4 > len(data):
            raise InvalidArgument(f"warmup data file {quoted(file)} ends within the length of a string")
        (length,) = struct.unpack_from("<I", data, offset)
        offset += 4
        if offset + length > len(data):
            raise InvalidArgument(f"warmup data file {quoted(file)} ends within a string")
        yield data[offset : offset + length]
        offset += length
