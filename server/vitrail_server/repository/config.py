"""Reads a model's config.pbtxt: parsed, checked in itself, and put into our own words.

Triton's rules and texts apply where Triton has them. What is not said stays unset; `completion` fills it
from the SavedModel. The errors name the file, and the line and column where it cannot be parsed.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeAlias

from google.protobuf import text_format

from vitrail.errors import InvalidArgument
from vitrail_server.kserve.v2 import model_config_pb2 as triton
from vitrail_server.repository.batching import read_batching
from vitrail_server.repository.config_fields import check_fields
from vitrail_server.repository.directory import ModelDirectory, is_plain, read_labels
from vitrail_server.repository.instances import read_instances
from vitrail_server.repository.parameters import Parameters, read_parameters
from vitrail_server.repository.tensors import datatype_of
from vitrail_server.repository.version_policy import All, Latest, Specific, VersionPolicy
from vitrail_server.repository.warmup import Sample, read_warmup
from vitrail_server.servable import Batching, InstanceGroup
from vitrail_server.wording import quoted, shortened

PLATFORM = "tensorflow_savedmodel"
BACKEND = "tensorflow"


@dataclass(frozen=True, slots=True)
class TensorConfig:
    """What a configuration says of one input or output."""

    name: str
    datatype: str = ""
    """As in a TensorSpec; empty: not said."""
    dims: tuple[int, ...] = ()
    """-1 where a size is free; empty: not said."""
    declared_nhwc: bool = False
    """Whether the format is given as FORMAT_NHWC."""


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """What a model's config.pbtxt says; the defaults are what the lack of one says."""

    name: str
    version_policy: VersionPolicy = field(default_factory=Latest)
    max_batch_size: int = 0
    """If above 0, the `dims` of the tensors leave the batch dimension out."""
    inputs: tuple[TensorConfig, ...] = ()
    outputs: tuple[TensorConfig, ...] = ()
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """The lines of the label files, by output."""
    batching: Batching | None = None
    instances: tuple[InstanceGroup, ...] = ()
    warmup: tuple[Sample, ...] = ()
    default_model_filename: str = ""
    parameters: Parameters = field(default_factory=Parameters)
    message: triton.ModelConfig = field(default_factory=triton.ModelConfig, repr=False, compare=False)
    """The file itself."""
    notes: tuple[str, ...] = ()
    """What the file says and Vitrail does not use."""

    def loads_like(self, other: "ModelConfig") -> bool:
        """Say whether a version loaded by the one does for the other: whatever versions they name."""
        return _for_loading(self) == _for_loading(other)


def read_config(directory: ModelDirectory) -> ModelConfig:
    """Return what the model's config.pbtxt says; a model without one has the defaults.

    Raises:
        InvalidArgument: the file cannot be parsed, contradicts itself, or asks for what is not supported.

    """
    if directory.config is None:
        return ModelConfig(name=directory.name)
    origin = f"{directory.name}/{directory.config.relative_to(directory.path)}"
    message = parse_config(_bytes_of(directory.config, origin), origin)
    try:
        return check_config(message, directory)
    except InvalidArgument as error:
        raise InvalidArgument(f"{origin}: {error.message}", field=error.field) from None


def _bytes_of(file: Path, origin: str) -> bytes:
    """Return what a configuration's file holds; of a pipe, whose reading might never end, nothing."""
    if file.exists() and not file.is_file():
        raise InvalidArgument(f"{origin}: it is not a file")
    try:
        return file.read_bytes()
    except OSError as error:
        raise InvalidArgument(f"{origin}: the file cannot be read ({error.strerror})") from None


def _for_loading(config: ModelConfig) -> ModelConfig:
    parameters = replace(config.parameters, version_labels={}, build_command="")
    instances = tuple(replace(group, name="") for group in config.instances)
    return replace(config, version_policy=Latest(), parameters=parameters, instances=instances, notes=())


def parse_config(text: bytes, origin: str) -> triton.ModelConfig:
    """Return the message that a file in protobuf's text format holds.

    Raises:
        InvalidArgument: it does not parse; the message starts with the origin, line and column.

    """
    message = triton.ModelConfig()
    try:
        text_format.Parse(text.decode("utf-8-sig"), message)
    except UnicodeDecodeError as error:
        line = text.count(b"\n", 0, error.start) + 1
        raise InvalidArgument(f"{origin}:{line}: the file is not UTF-8 text") from None
    except text_format.ParseError as error:
        # The error's own text starts with its place, and names our private package.
        _, _, fault = str(error).partition(" : ")
        fault = shortened(fault.replace(triton.DESCRIPTOR.package + ".", ""), 400)
        raise InvalidArgument(f"{origin}:{error.GetLine()}:{error.GetColumn()}: {fault}") from None
    return message


def check_config(message: triton.ModelConfig, directory: ModelDirectory) -> ModelConfig:
    """Return what a configuration says of the model in the directory.

    Raises:
        InvalidArgument: it contradicts itself, or asks for what is not supported.

    """
    name = directory.name
    _check_identity(message, name)
    unused_fields = check_fields(message)
    if message.max_batch_size < 0:
        raise InvalidArgument(
            f"'max_batch_size' must be non-negative value for {name}, not {message.max_batch_size}",
            field="max_batch_size",
        )
    parameters, unused_parameters = read_parameters(
        {key: parameter.string_value for key, parameter in message.parameters.items()}
    )
    samples, skipped_samples = read_warmup(message, name)
    return ModelConfig(
        name=name,
        version_policy=_version_policy(message.version_policy),
        max_batch_size=message.max_batch_size,
        inputs=_tensors("input", message.input, name),
        outputs=_tensors("output", message.output, name),
        labels=_labels(message.output, directory),
        batching=read_batching(message, name),
        instances=read_instances(message, name),
        warmup=samples,
        default_model_filename=_plain_filename(message.default_model_filename),
        parameters=parameters,
        message=message,
        notes=unused_fields + unused_parameters + skipped_samples,
    )


def _check_identity(message: triton.ModelConfig, name: str) -> None:
    if message.name not in ("", name):
        raise InvalidArgument(
            f"unexpected directory name {quoted(name)} for model {quoted(message.name)}, "
            "directory name must equal model name",
            field="name",
        )
    if message.platform not in ("", PLATFORM):
        raise InvalidArgument(
            f"unexpected platform type {quoted(message.platform)} for {name}; only '{PLATFORM}' is served",
            field="platform",
        )
    if message.backend not in ("", BACKEND):
        raise InvalidArgument(
            f"unexpected backend {quoted(message.backend)} for {name}; only '{BACKEND}' is served",
            field="backend",
        )


def _version_policy(policy: triton.ModelVersionPolicy) -> VersionPolicy:
    choice = policy.WhichOneof("policy_choice")
    if choice == "latest":
        if policy.latest.num_versions == 0:
            raise InvalidArgument(
                "'version_policy.latest.num_versions' must be at least 1",
                field="version_policy.latest.num_versions",
            )
        return Latest(policy.latest.num_versions)
    if choice == "specific":
        versions = tuple(policy.specific.versions)
        if not versions or min(versions) < 1:
            raise InvalidArgument(
                "'version_policy.specific.versions' must name one version or more, each at least 1",
                field="version_policy.specific.versions",
            )
        return Specific(versions)
    return All() if choice == "all" else Latest()


_Tensor: TypeAlias = triton.ModelInput | triton.ModelOutput


def _tensors(kind: str, tensors: Iterable[_Tensor], model: str) -> tuple[TensorConfig, ...]:
    found: dict[str, TensorConfig] = {}
    for tensor in tensors:
        if not tensor.name:
            raise InvalidArgument(f"model {kind} must specify 'name' for {model}", field=f"{kind}.name")
        where = f"model {kind} {quoted(tensor.name)} for {model}"
        if tensor.name in found:
            raise InvalidArgument(f"{where} is there twice", field=f"{kind}.name")
        if any(size < 1 and size != -1 for size in tensor.dims):
            raise InvalidArgument(
                f"{where}: dimension must be integer >= 1, or -1 to indicate a variable-size dimension, "
                f"not {next(size for size in tensor.dims if size < 1 and size != -1)}",
                field=f"{kind}.dims",
            )
        found[tensor.name] = TensorConfig(
            name=tensor.name,
            datatype=datatype_of(tensor.data_type, where, f"{kind}.data_type"),
            dims=tuple(tensor.dims),
            declared_nhwc=_declared_nhwc(tensor, where),
        )
    return tuple(found.values())


def _declared_nhwc(tensor: _Tensor, where: str) -> bool:
    if not isinstance(tensor, triton.ModelInput):
        return False
    if tensor.format not in (triton.ModelInput.FORMAT_NONE, triton.ModelInput.FORMAT_NHWC):
        raise InvalidArgument(
            f"{where}: 'format' must be FORMAT_NHWC or unset, FORMAT_NCHW is not supported: export the model "
            "with images of the shape [height, width, channels]",
            field="input.format",
        )
    return tensor.format == triton.ModelInput.FORMAT_NHWC


def _labels(
    outputs: Iterable[triton.ModelOutput], directory: ModelDirectory
) -> Mapping[str, tuple[str, ...]]:
    labels = {}
    for output in outputs:
        if output.label_filename:
            try:
                labels[output.name] = read_labels(directory, output.label_filename)
            except InvalidArgument as error:
                raise InvalidArgument(error.message, field="output.label_filename") from None
    return labels


def _plain_filename(filename: str) -> str:
    if filename and not is_plain(filename):
        raise InvalidArgument(
            f"'default_model_filename' {quoted(filename)} must be the name of a SavedModel "
            "in the version's directory, without '/'",
            field="default_model_filename",
        )
    return filename
