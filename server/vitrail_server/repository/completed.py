"""The configuration of a loaded version as Triton's message, completed from its signature."""

from collections.abc import Iterable

from vitrail_server.kserve.v2 import model_config_pb2 as triton
from vitrail_server.repository.config import BACKEND, PLATFORM
from vitrail_server.repository.parameters import PREFIX
from vitrail_server.repository.source import ModelSource
from vitrail_server.repository.tensors import triton_type
from vitrail_server.servable import Description, TensorSpec


def completed_config(source: ModelSource, description: Description) -> triton.ModelConfig:
    """Return what the model's configuration says, and what was found or chosen where it says nothing."""
    settings, signature = description.settings, description.signature
    message = triton.ModelConfig()
    message.CopyFrom(source.config.message)
    message.name = description.name
    message.platform, message.backend = PLATFORM, BACKEND
    if message.version_policy.WhichOneof("policy_choice") is None:
        message.version_policy.latest.num_versions = 1
    message.max_batch_size = settings.max_request_batch
    message.default_model_filename = source.filenames[description.version]
    batched = settings.max_request_batch > 0
    _complete_inputs(message, signature.inputs.values(), batched=batched)
    _complete_outputs(message, signature.outputs.values(), batched=batched)
    for index, group in enumerate(message.instance_group):
        group.name, group.count = group.name or f"{description.name}_{index}", group.count or 1
    if settings.batching is not None:
        message.dynamic_batching.SetInParent()
    for key, text in _parameters(description).items():
        message.parameters[PREFIX + key].string_value = text
    return message


def _complete_inputs(message: triton.ModelConfig, specs: Iterable[TensorSpec], *, batched: bool) -> None:
    said = {tensor.name: tensor for tensor in message.input}
    for spec in specs:
        _complete(said.get(spec.name) or message.input.add(), spec, batched=batched)


def _complete_outputs(message: triton.ModelConfig, specs: Iterable[TensorSpec], *, batched: bool) -> None:
    said = {tensor.name: tensor for tensor in message.output}
    for spec in specs:
        _complete(said.get(spec.name) or message.output.add(), spec, batched=batched)


def _complete(tensor: triton.ModelInput | triton.ModelOutput, spec: TensorSpec, *, batched: bool) -> None:
    tensor.name = spec.name
    tensor.data_type = triton.DataType.Value(triton_type(spec.datatype))
    if not tensor.dims and spec.shape is not None:
        tensor.dims.extend(spec.shape[1:] if batched else spec.shape)


def _parameters(description: Description) -> dict[str, str]:
    """Return Vitrail's own keys as they are in force."""
    settings = description.settings
    if settings.image_input is None:
        return {"task": description.task}
    keys = {
        "task": description.task,
        "image_input": settings.image_input,
        "image_range": _numbers(settings.image_range),
        "image_resize": settings.image_resize,
        "incremental": settings.incremental,
        "precision": settings.precision,
        "fill": _numbers(settings.fill),
    }
    if settings.score_tensor is not None:
        keys["score_tensor"] = settings.score_tensor
    if settings.image_sizes:
        keys["image_sizes"] = ",".join(f"{height}x{width}" for height, width in settings.image_sizes)
    return keys


def _numbers(numbers: Iterable[float]) -> str:
    return ",".join(f"{number:g}" if float(f"{number:g}") == number else repr(number) for number in numbers)
