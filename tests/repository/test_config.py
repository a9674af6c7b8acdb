import errno
import os
from pathlib import Path

import pytest

from vitrail.errors import InvalidArgument
from vitrail_server.repository.config import ModelConfig, TensorConfig, parse_config, read_config
from vitrail_server.repository.directory import read_model_directory
from vitrail_server.repository.parameters import Parameters
from vitrail_server.repository.version_policy import All, Latest, Specific, VersionPolicy
from vitrail_server.servable import Batching, InstanceGroup

from .fakes import model_directory, write_model

FULL = """
# As a user of Triton writes it.
name: "m"
platform: "tensorflow_savedmodel"
backend: "tensorflow"
max_batch_size: 8
input [
  {
    name: "image"
    data_type: TYPE_FP32
    format: FORMAT_NHWC
    dims: [ -1, -1, 3 ]
  },
  { name: "text" data_type: TYPE_STRING dims: [ 1 ] }
]
output {
  name: "scores"
  data_type: TYPE_FP32
  dims: [ 2 ]
  label_filename: "labels.txt"
}
version_policy: { specific: { versions: [ 1, 3 ] } }
instance_group [ { count: 2 kind: KIND_CPU } ]
optimization { graph { level: 1 } }
dynamic_batching { }
default_model_filename: "net"
parameters: { key: "vitrail.fill" value: { string_value: "0.5" } }
parameters { key: "TF_NUM_INTRA_THREADS" value { string_value: "2" } }
"""


def test_a_whole_configuration(tmp_path: Path) -> None:
    config = read_config(model_directory(tmp_path, FULL, files={"labels.txt": "cat\ndog\n"}))
    assert config == ModelConfig(
        name="m",
        version_policy=Specific((1, 3)),
        max_batch_size=8,
        inputs=(
            TensorConfig("image", "FP32", (-1, -1, 3), declared_nhwc=True),
            TensorConfig("text", "BYTES", (1,)),
        ),
        outputs=(TensorConfig("scores", "FP32", (2,)),),
        labels={"scores": ("cat", "dog")},
        batching=Batching(),
        instances=(InstanceGroup("CPU", name="m_0"),),
        default_model_filename="net",
        parameters=Parameters(fill=(0.5,)),
        notes=(
            "'optimization.graph' is not used: the graph is optimized as far as it pays on this machine",
            "parameter 'TF_NUM_INTRA_THREADS' is not used",
        ),
    )


@pytest.mark.parametrize("text", [None, "", "# nothing\n", 'name: "m"'])
def test_a_model_needs_no_configuration(tmp_path: Path, text: str | None) -> None:
    assert read_config(model_directory(tmp_path, text)) == ModelConfig("m", version_policy=Latest(1))


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("version_policy { }", Latest(1)),
        ("version_policy { latest { num_versions: 3 } }", Latest(3)),
        ("version_policy: { all: { } }", All()),
        ("version_policy { specific { versions: 2 versions: 5 } }", Specific((2, 5))),
    ],
)
def test_version_policies(tmp_path: Path, text: str, policy: VersionPolicy) -> None:
    assert read_config(model_directory(tmp_path, text)).version_policy == policy


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'name: "m"\nfoo: 3', 'm/config.pbtxt:2:1: Message type "ModelConfig" has no field named "foo".'),
        (
            b'input { name: "x"\n  format: FORMAT_X }',
            (
                "m/config.pbtxt:2:11: '  format: FORMAT_X }': Enum type \"ModelInput.Format\" has no value "
                "named FORMAT_X."
            ),
        ),
        (
            b"max_batch_size: 99999999999",
            "m/config.pbtxt:1:17: 'max_batch_size: 99999999999': Value out of range",
        ),
        (
            b"dynamic_batching { } sequence_batching { }",
            'm/config.pbtxt:1:22: Field "sequence_batching" is specif',
        ),
        (b'name: "m', "m/config.pbtxt:1:7: 'name: \"m': String missing ending quote"),
        (b'input [ { name: "x" ', 'm/config.pbtxt:1:17: Expected "}".'),
        (b'name: "m"\n# \xff', "m/config.pbtxt:2: the file is not UTF-8 text"),
    ],
)
def test_a_file_that_does_not_parse_is_refused_with_the_place(text: bytes, message: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse_config(text, "m/config.pbtxt")
    assert caught.value.message.startswith(message)


def test_a_pipe_is_no_configuration(tmp_path: Path) -> None:
    """Reading it would wait for a writer, and every model behind it with it."""
    directory = write_model(tmp_path, "m", 1)
    os.mkfifo(directory / "config.pbtxt")
    with pytest.raises(InvalidArgument) as caught:
        read_config(read_model_directory("m", directory))
    assert caught.value.message == "m/config.pbtxt: it is not a file"


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Path) -> bytes:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)  # whoever runs the tests may be allowed everything
    with pytest.raises(InvalidArgument) as caught:
        read_config(model_directory(tmp_path, config="max_batch_size: 2"))
    assert caught.value.message == "m/config.pbtxt: the file cannot be read (Permission denied)"


def test_a_long_fault_is_cut() -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse_config(b"max_batch_size: " + b"9" * 10_000, "m/config.pbtxt")
    assert len(caught.value.message) < 450


BAD_DIMS = "dimension must be integer >= 1, or -1 to indicate a variable-size dimension, not"


@pytest.mark.parametrize(
    ("text", "field", "message"),
    [
        (
            'name: "n"',
            "name",
            "unexpected directory name 'm' for model 'n', directory name must equal model name",
        ),
        (
            'platform: "onnxruntime_onnx"',
            "platform",
            "unexpected platform type 'onnxruntime_onnx' for m; only 'tensorflow_savedmodel' is served",
        ),
        ('backend: "python"', "backend", "unexpected backend 'python' for m; only 'tensorflow' is served"),
        (
            "ensemble_scheduling { }",
            "ensemble_scheduling",
            "'ensemble_scheduling' is not supported: export one SavedModel that contains all steps",
        ),
        (
            "max_batch_size: -1",
            "max_batch_size",
            "'max_batch_size' must be non-negative value for m, not -1",
        ),
        (
            "version_policy { latest { } }",
            "version_policy.latest.num_versions",
            "'version_policy.latest.num_versions' must be at least 1",
        ),
        (
            "version_policy { specific { } }",
            "version_policy.specific.versions",
            "'version_policy.specific.versions' must name one version or more, each at least 1",
        ),
        (
            "version_policy { specific { versions: [1, 0] } }",
            "version_policy.specific.versions",
            "'version_policy.specific.versions' must name one version or more, each at least 1",
        ),
        ("input { data_type: TYPE_FP32 }", "input.name", "model input must specify 'name' for m"),
        ("output { dims: 1 }", "output.name", "model output must specify 'name' for m"),
        (
            'input { name: "x" } input { name: "x" }',
            "input.name",
            "model input 'x' for m is there twice",
        ),
        ('input { name: "x" dims: [3, 0] }', "input.dims", f"model input 'x' for m: {BAD_DIMS} 0"),
        ('output { name: "y" dims: [-2] }', "output.dims", f"model output 'y' for m: {BAD_DIMS} -2"),
        (
            'input { name: "x" format: FORMAT_NCHW }',
            "input.format",
            (
                "model input 'x' for m: 'format' must be FORMAT_NHWC or unset, FORMAT_NCHW is not supported: "
                "export the model with images of the shape [height, width, channels]"
            ),
        ),
        (
            'output { name: "y" label_filename: "../labels.txt" }',
            "output.label_filename",
            "label file '../labels.txt' must be a path inside the model's directory",
        ),
        (
            'output { name: "y" label_filename: "labels.txt" }',
            "output.label_filename",
            "label file 'labels.txt' is not a file in the model's directory",
        ),
        (
            'parameters { key: "vitrail.task" value { string_value: "DETECTION" } }',
            'parameters["vitrail.task"]',
            "parameter 'vitrail.task' is 'DETECTION'; it must be CLASSIFICATION or REGRESSION",
        ),
        (
            'default_model_filename: "../other"',
            "default_model_filename",
            (
                "'default_model_filename' '../other' must be the name of a SavedModel in the version's "
                "directory, without '/'"
            ),
        ),
        (
            'output { name: "y" data_type: 99 }',
            "output.data_type",
            (
                "model output 'y' for m: 'data_type' 99 is not one of TYPE_BOOL, TYPE_UINT8, TYPE_UINT16, "
                "TYPE_UINT32, TYPE_UINT64, TYPE_INT8, TYPE_INT16, TYPE_INT32, TYPE_INT64, TYPE_FP16, "
                "TYPE_FP32, TYPE_FP64, TYPE_STRING, TYPE_BF16"
            ),
        ),
    ],
)
def test_a_wrong_value_is_refused_with_the_file_and_the_field(
    tmp_path: Path, text: str, field: str, message: str
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        read_config(model_directory(tmp_path, text))
    assert caught.value.message == f"m/config.pbtxt: {message}"
    assert caught.value.field == field


@pytest.mark.parametrize("filename", ["..", ".", "/net", "a/b", "a\\\\b"])
def test_a_default_model_filename_is_plain(tmp_path: Path, filename: str) -> None:
    with pytest.raises(InvalidArgument, match="must be the name of a SavedModel in the version's directory"):
        read_config(model_directory(tmp_path, f'default_model_filename: "{filename}"'))


def test_an_invalid_type_is_unset(tmp_path: Path) -> None:
    config = read_config(model_directory(tmp_path, 'input { name: "x" data_type: TYPE_INVALID }'))
    assert config.inputs == (TensorConfig("x", ""),)


def test_a_configuration_that_leads_nowhere_is_an_error(tmp_path: Path) -> None:
    directory = model_directory(tmp_path, "")
    (directory.path / "config.pbtxt").unlink()
    with pytest.raises(InvalidArgument, match=r"the file cannot be read \(No such file or directory\)"):
        read_config(directory)
