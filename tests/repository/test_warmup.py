"""Warm-up samples, by Triton's warmup suite: what is checked, and which tensors are made of them."""

import os
import struct
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import text_format

from vitrail.errors import InvalidArgument
from vitrail_server.inference.tensors import WIRE_DTYPES
from vitrail_server.kserve.v2.model_config_pb2 import DataType, ModelConfig
from vitrail_server.repository.warmup import Sample, SampleInput, read_warmup, rows_of
from vitrail_server.servable import Capabilities, Description, ModelSettings, Signature, TensorSpec
from vitrail_server.work import PredictRows

SIGNATURE = Signature(
    {
        "image": TensorSpec("image", "FP32", (-1, 2, -1)),
        "text": TensorSpec("text", "BYTES", (-1, 2)),
        "any": TensorSpec("any", "INT16", None),
    },
    {"y": TensorSpec("y", "FP32", (-1, 5)), "z": TensorSpec("z", "FP32", (-1,))},
)


def describe(signature: Signature = SIGNATURE, max_request_batch: int = 4) -> Description:
    settings = ModelSettings(image_input=None, max_request_batch=max_request_batch)
    return Description("m", 1, signature, settings, "REGRESSION", frozenset(), {}, Capabilities())


def read(text: str) -> tuple[tuple[Sample, ...], tuple[str, ...]]:
    return read_warmup(text_format.Parse(text, ModelConfig()), "m")


def image(source: str = "zero_data: true", data_type: str = "TYPE_FP32", dims: str = "[2, 3]") -> str:
    return f'inputs {{ key: "image" value {{ data_type: {data_type} dims: {dims} {source} }} }}'


PHOTO = 'input_data_file: "photo"'
TEXT = 'inputs { key: "text" value { data_type: TYPE_STRING dims: 2 random_data: true } }'
ANY = 'inputs { key: "any" value { data_type: TYPE_INT16 dims: [4] random_data: false } }'


def rows(
    sample: str, directory: Path = Path("nowhere"), description: Description | None = None
) -> PredictRows:
    ((found,), _) = read(f'model_warmup {{ name: "s" {sample} }}')
    return rows_of(found, description or describe(), directory)


# What the configuration says.


def test_samples_are_read() -> None:
    samples, notes = read(f"""
        model_warmup {{ name: "a" batch_size: 3 count: 2 {image()} }}
        model_warmup {{ name: "skipped" {image()} }}
        model_warmup {{ name: "b" batch_size: 1 {image(PHOTO)} {TEXT} }}
    """)
    assert samples == (
        Sample("a", 3, 2, {"image": SampleInput("FP32", (2, 3), "zero_data")}),
        Sample(
            "b",
            1,
            1,
            {
                "image": SampleInput("FP32", (2, 3), "input_data_file", "photo"),
                "text": SampleInput("BYTES", (2,), "random_data"),
            },
        ),
    )
    assert notes == ("warmup sample 'skipped' has batch size 0 and is skipped",)


WHERE = "input 'image' of warmup sample 's' for m"


@pytest.mark.parametrize(
    ("sample", "field", "message"),
    [
        ("batch_size: 1", "name", "warmup sample must specify 'name' for m"),
        (
            f'name: "s" {image(data_type="TYPE_INVALID")}',
            "inputs.data_type",
            f"{WHERE} must specify 'data_type'",
        ),
        (
            f'name: "s" {image(dims="[2, -1]")}',
            "inputs.dims",
            f"warmup setting expects all variable-size dimensions are specified for {WHERE}",
        ),
        (
            f'name: "s" {image(source="")}',
            "inputs",
            f"{WHERE} must specify one of 'zero_data', 'random_data' and 'input_data_file'",
        ),
        *(
            (
                'name: "s" ' + image(source=f"input_data_file: {quote}"),
                "inputs.input_data_file",
                (
                    f"{WHERE}: 'input_data_file' {quote} must be the name of a file in the model's "
                    "'warmup' directory"
                ),
            )
            for quote in ("''", "'../x'", "'/etc/passwd'", "'a/b'", "'..'")
        ),
    ],
)
def test_a_sample_that_is_incomplete_is_refused(sample: str, field: str, message: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        read(f"model_warmup {{ {sample} }}")
    assert (caught.value.message, caught.value.field) == (message, f"model_warmup.{field}")


# The tensors.


def test_zeros_and_random_numbers_fill_every_row() -> None:
    made = rows(f"batch_size: 3 {image()} {TEXT} {ANY}")
    assert (made.count, made.batched, made.outputs) == (3, True, ("y", "z"))
    np.testing.assert_array_equal(made.inputs["image"], np.zeros((3, 2, 3), np.float32))
    assert made.inputs["image"].dtype == np.float32
    assert made.inputs["text"].tolist() == [[b"", b""]] * 3
    numbers = made.inputs["any"]
    assert (numbers.dtype.name, numbers.shape) == ("int16", (3, 4))
    assert 0 <= int(numbers.min()) < int(numbers.max()) < 128


HIGHEST = {"BOOL": 1, "BF16": 1, "FP16": 1, "FP32": 1, "FP64": 1} | dict.fromkeys(
    [f"{kind}{bits}" for kind in ("INT", "UINT") for bits in (8, 16, 32, 64)], 127
)


def test_every_datatype_has_samples() -> None:
    assert {"TYPE_STRING", "TYPE_INVALID", *(f"TYPE_{each}" for each in HIGHEST)} == set(DataType.keys())


@pytest.mark.parametrize(("datatype", "highest"), HIGHEST.items())
def test_random_numbers_differ_within_their_bounds_and_are_the_same_every_time(
    datatype: str, highest: int
) -> None:
    signature = Signature({"image": TensorSpec("image", datatype, (-1, 2, 300))}, SIGNATURE.outputs)
    sample = f"batch_size: 1 {image('random_data: true', f'TYPE_{datatype}', '[2, 300]')}"
    numbers = rows(sample, description=describe(signature)).inputs["image"]
    values = numbers.astype(np.float64)
    assert 0 <= values.min() < values.max() <= highest
    assert numbers.dtype == WIRE_DTYPES[datatype]
    np.testing.assert_array_equal(numbers, rows(sample, description=describe(signature)).inputs["image"])


@pytest.mark.parametrize("datatype", HIGHEST)
def test_zeros_and_files_hold_numbers_of_every_datatype(tmp_path: Path, datatype: str) -> None:
    signature = Signature({"image": TensorSpec("image", datatype, (-1, 2, 3))}, SIGNATURE.outputs)
    dtype = WIRE_DTYPES[datatype]
    item = np.array([[0, 1, 0], [1, 1, 0]]).astype(dtype)
    (tmp_path / "photo").write_bytes(item.tobytes())
    for source, expected in (("zero_data: true", np.zeros((2, 3), dtype)), (PHOTO, item)):
        sample = f"batch_size: 2 {image(source, f'TYPE_{datatype}')}"
        made = rows(sample, tmp_path, describe(signature)).inputs["image"]
        np.testing.assert_array_equal(made, np.stack([expected, expected]))
        assert made.dtype == dtype.newbyteorder("=")


def test_a_file_holds_one_item_that_every_row_repeats(tmp_path: Path) -> None:
    item = np.arange(6, dtype="<f4").reshape(2, 3)
    (tmp_path / "photo").write_bytes(item.tobytes() + b"more than is needed")
    strings = [b"one", b"\xff\0"]
    (tmp_path / "words").write_bytes(b"".join(struct.pack("<I", len(each)) + each for each in strings))
    words = TEXT.replace("random_data: true", 'input_data_file: "words"')
    made = rows(f"batch_size: 2 {image(PHOTO)} {words} {ANY}", tmp_path)
    np.testing.assert_array_equal(made.inputs["image"], [item, item])
    assert made.inputs["text"].tolist() == [strings, strings]


def test_without_a_batch_dimension_the_tensors_are_whole() -> None:
    signature = Signature({"image": TensorSpec("image", "FP32", (2, 3))}, SIGNATURE.outputs)
    made = rows(f"batch_size: 1 {image()}", description=describe(signature, 0))
    assert (made.count, made.batched) == (1, False)
    assert made.inputs["image"].shape == (2, 3)


ALL = f"{image()} {TEXT} {ANY}"


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (
            f"batch_size: 1 {image()}",
            "expected 3 inputs but got 1 inputs for model 'm': missing 'text', 'any'",
        ),
        (
            f"batch_size: 1 {ALL} {image().replace('image', 'picture')}",
            "unexpected inference input 'picture' for model 'm'",
        ),
        (f"batch_size: 5 {ALL}", "inference request batch-size must be <= 4 for 'm'"),
        (
            f"batch_size: 1 {ALL.replace('TYPE_FP32', 'TYPE_FP64')}",
            "inference input 'image' data-type is 'FP64', but model 'm' expects 'FP32'",
        ),
        (
            f"batch_size: 1 {ALL.replace('[2, 3]', '[3, 3]')}",
            "unexpected shape for input 'image' for model 'm'. Expected [2,-1], got [3,3]",
        ),
        (
            f"batch_size: 1 {ALL.replace('[2, 3]', '[2]')}",
            "unexpected shape for input 'image' for model 'm'. Expected [2,-1], got [2]",
        ),
        (
            f"batch_size: 1 {ALL}".replace("zero_data: true", 'input_data_file: "gone"'),
            "warmup data file 'gone' cannot be read: No such file or directory",
        ),
        (
            f"batch_size: 1 {ALL}".replace("zero_data: true", 'input_data_file: "pipe"'),
            "warmup data file 'pipe' is not a file",
        ),
    ],
)
def test_a_sample_that_does_not_fit_the_version_says_why(tmp_path: Path, sample: str, message: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InvalidArgument) as caught:
        rows(sample, tmp_path)
    assert caught.value.message == message


def test_a_model_without_batches_takes_samples_of_one(tmp_path: Path) -> None:
    signature = Signature({"image": TensorSpec("image", "FP32", (2, 3))}, SIGNATURE.outputs)
    with pytest.raises(InvalidArgument, match="does not support batching: the batch size must be 1"):
        rows(f"batch_size: 2 {image()}", tmp_path, describe(signature, 0))


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        (
            "image",
            b"x" * 23,
            "warmup setting expects 24 bytes, but the data provided from f only has 23 bytes",
        ),
        ("text", struct.pack("<I", 0), "expected 2 string elements in warmup data file 'f', got 1"),
        ("text", b"\1\0\0", "warmup data file 'f' ends within the length of a string"),
        ("text", struct.pack("<I", 9) + b"short", "warmup data file 'f' ends within a string"),
    ],
)
def test_a_file_that_is_too_short_says_so(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / "f").write_bytes(data)
    from_file = 'input_data_file: "f"'
    sample = {
        "image": f"{image(from_file)} {TEXT} {ANY}",
        "text": f"{image()} {TEXT.replace('random_data: true', from_file)} {ANY}",
    }[name]
    with pytest.raises(InvalidArgument) as caught:
        rows(f"batch_size: 1 {sample}", tmp_path)
    assert caught.value.message == message
