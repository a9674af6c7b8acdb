"""Completes a model's configuration from the signature of its SavedModel, and checks that the two agree.

Triton's rules and texts apply where Triton has them. The loader calls this when it knows the signature;
everything here is pure.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

import numpy as np

from vitrail.errors import FailedPrecondition, InvalidArgument, VitrailError
from vitrail_server.repository.config import ModelConfig, TensorConfig
from vitrail_server.repository.parameters import PREFIX
from vitrail_server.repository.tensors import triton_type
from vitrail_server.servable import DTYPES, Batching, ImageSize, ModelSettings, Signature, TensorSpec
from vitrail_server.wording import listed, quoted, shape_text

FREE = -1
DEFAULT_MAX_BATCH_SIZE = 64

Numbers = TypeVar("Numbers", bound=tuple[float, ...])


def complete(
    config: ModelConfig, signature: Signature, default_max_batch_size: int = DEFAULT_MAX_BATCH_SIZE
) -> ModelSettings:
    """Return the settings of a version of the model whose SavedModel has this signature.

    A model without an image input, or with one that cannot be told, predicts without being explained; only
    where the configuration speaks of its image is that an error. `default_max_batch_size` is the largest
    batch of a request where the configuration names none.

    Raises:
        InvalidArgument: the configuration does not fit the signature, or leaves open what it must say.
        FailedPrecondition: the configuration speaks of an image, and the signature has none.

    """
    _check_names(config, signature)
    _check_shapes(config, signature)
    _check_labels(config, signature)
    batch = config.max_batch_size or (default_max_batch_size if _batches(config, signature) else 0)
    _check_preferred(config, batch)
    settings = ModelSettings(
        image_input=None,
        task=config.parameters.task,
        labels=config.labels,
        max_batch_size=config.max_batch_size or None,
        max_request_batch=batch,
        # Triton's rule: what can be batched is batched, whether or not the configuration says so.
        batching=config.batching or (Batching() if batch > 1 else None),
        instances=config.instances,
    )
    try:
        image = _image_input(config, signature)
        sizes = _image_sizes(config, image)
    except VitrailError as error:
        if _speaks_of_an_image(config):
            raise
        return replace(settings, image_reason=error.message)
    ours = config.parameters
    return replace(
        settings,
        image_input=image.name,
        score_tensor=_score_tensor(config, signature),
        image_range=_fitting("image_range", ours.image_range or settings.image_range, image),
        image_resize=ours.image_resize or settings.image_resize,
        incremental=ours.incremental,
        precision=ours.precision,
        image_sizes=sizes,
        fill=_fill(ours.fill or settings.fill, image),
    )


def served(
    config: ModelConfig, signature: Signature, default_max_batch_size: int = DEFAULT_MAX_BATCH_SIZE
) -> tuple[Signature, ModelSettings]:
    """Return the part of the signature that is served, and what `complete` returns.

    Raises:
        InvalidArgument: as `complete`.
        FailedPrecondition: as `complete`.

    """
    # First the settings: they find out whether the outputs that are listed are there.
    settings = complete(config, signature, default_max_batch_size)
    return served_signature(config, signature), settings


def served_signature(config: ModelConfig, signature: Signature) -> Signature:
    """Return the signature with the outputs that the configuration lists; with all if it lists none."""
    names = [output.name for output in config.outputs] or list(signature.outputs)
    return Signature(signature.inputs, {name: signature.outputs[name] for name in names})


def _speaks_of_an_image(config: ModelConfig) -> bool:
    ours = config.parameters
    declared = any(tensor.declared_nhwc for tensor in config.inputs)
    about_image = (
        ours.image_input,
        ours.score_tensor,
        ours.image_range,
        ours.image_resize,
        ours.image_sizes,
        ours.fill,
    )
    return declared or any(about_image) or ours.precision != "FP32"


def _check_names(config: ModelConfig, signature: Signature) -> None:
    """Hold the configuration's inputs (all or none) and outputs (some, all or none) to the signature."""
    if config.inputs and len(config.inputs) != len(signature.inputs):
        raise InvalidArgument(
            f"unable to load model '{config.name}', configuration expects {len(config.inputs)} inputs, "
            f"model provides {len(signature.inputs)}: {listed(signature.inputs)}",
            field="input",
        )
    for kind, tensors, specs in _both(config, signature):
        for tensor in tensors:
            spec = specs.get(tensor.name)
            if spec is None:
                raise InvalidArgument(
                    f"unexpected inference {kind} {quoted(tensor.name)} for model '{config.name}', "
                    f"the model has: {listed(specs)}",
                    field=f"{kind}.name",
                )
            if tensor.datatype not in ("", spec.datatype):
                raise InvalidArgument(
                    f"unable to load model '{config.name}', configuration expects datatype "
                    f"{triton_type(tensor.datatype)} for {kind} {quoted(tensor.name)}, "
                    f"model provides {triton_type(spec.datatype)}",
                    field=f"{kind}.data_type",
                )


def _check_shapes(config: ModelConfig, signature: Signature) -> None:
    """Hold `max_batch_size` and the configuration's `dims` to the signature's shapes."""
    unbatched = _unbatched(signature)
    if config.max_batch_size > 0 and unbatched:
        raise InvalidArgument(
            f"unable to autofill for '{config.name}', configuration specified max-batch "
            f"{config.max_batch_size} but model signature does not support batching: tensor "
            f"{quoted(unbatched[0].name)} has shape {shape_text(unbatched[0].shape)}; "
            "leave 'max_batch_size' out, or export the model with a free batch dimension",
            field="max_batch_size",
        )
    batch_left_out = config.max_batch_size > 0 or (not unbatched and True in _votes(config, signature))
    for kind, tensors, by_name in _both(config, signature):
        for tensor in tensors:
            _check_dims(config, kind, tensor, by_name[tensor.name], batch_left_out)


def _batches(config: ModelConfig, signature: Signature) -> bool:
    """Say whether requests have a batch dimension: the signature allows it, and no `dims` contain it."""
    return not _unbatched(signature) and False not in _votes(config, signature)


def _unbatched(signature: Signature) -> list[TensorSpec]:
    """Return the tensors whose first dimension is not free; an output may also be a number for a batch."""
    inputs = [(spec, spec.shape) for spec in signature.inputs.values() if spec.shape is not None]
    outputs = [(spec, spec.shape) for spec in signature.outputs.values() if spec.shape]
    return [spec for spec, shape in [*inputs, *outputs] if shape[:1] != (FREE,)]


def _votes(config: ModelConfig, signature: Signature) -> set[bool]:
    """Return whether the `dims` leave the batch dimension out; nothing where none are given."""
    votes = set()
    for _, tensors, specs in _both(config, signature):
        for tensor in tensors:
            shape = specs[tensor.name].shape
            if tensor.dims and shape is not None and len(shape) - len(tensor.dims) in (0, 1):
                votes.add(len(shape) - len(tensor.dims) == 1)
    if len(votes) > 1:
        raise InvalidArgument(
            f"unable to autofill for '{config.name}', model tensor configurations are contradicting each "
            "other in terms of whether batching is supported: leave the batch dimension out of all 'dims', "
            "or leave 'dims' out",
            field="input.dims",
        )
    return votes


def _check_preferred(config: ModelConfig, max_batch_size: int) -> None:
    for size in config.batching.preferred_batch_sizes if config.batching else ():
        if size > max_batch_size:
            raise InvalidArgument(
                f"dynamic batching preferred size must be <= max batch size for {config.name}, "
                f"{size} is above {max_batch_size}",
                field="dynamic_batching.preferred_batch_size",
            )


def _check_dims(
    config: ModelConfig, kind: str, tensor: TensorConfig, spec: TensorSpec, batch_left_out: bool
) -> None:
    if not tensor.dims or spec.shape is None:
        return
    complete_shape = (FREE, *tensor.dims) if batch_left_out else tensor.dims
    if len(complete_shape) != len(spec.shape):
        explicit = f"shape {shape_text(tensor.dims)}"
        if config.max_batch_size > 0:
            explicit = (
                "an initial batch dimension because max_batch_size > 0 followed by the explicit tensor "
                f"shape, making complete shape {shape_text(complete_shape)}"
            )
        raise InvalidArgument(
            f"model '{config.name}', tensor {quoted(tensor.name)}: the model expects {len(spec.shape)} "
            f"dimensions (shape {shape_text(spec.shape)}) but the model configuration specifies "
            f"{len(complete_shape)} dimensions ({explicit})",
            field=f"{kind}.dims",
        )
    if any(expected not in (FREE, size) for expected, size in zip(spec.shape, complete_shape, strict=True)):
        raise InvalidArgument(
            f"model '{config.name}', tensor {quoted(tensor.name)}: the model expects shape "
            f"{shape_text(spec.shape)} but the model configuration specifies shape "
            f"{shape_text(complete_shape)}",
            field=f"{kind}.dims",
        )


def _check_labels(config: ModelConfig, signature: Signature) -> None:
    for output, labels in config.labels.items():
        shape = signature.outputs[output].shape
        if shape is None or FREE in shape[1:]:
            continue
        elements = math.prod(shape[1:])
        if len(labels) != elements:
            raise InvalidArgument(
                f"the label file of output {quoted(output)} has {len(labels)} labels, "
                f"the output has {elements} elements",
                field="output.label_filename",
            )


def _image_input(config: ModelConfig, signature: Signature) -> TensorSpec:
    """Return the input that holds the image: the one that is named, else the only one that can."""
    images = [spec for spec in signature.inputs.values() if _is_image(spec)]
    inputs = listed(
        f"{quoted(spec.name)} {spec.datatype} {shape_text(spec.shape)}" for spec in signature.inputs.values()
    )
    named = config.parameters.image_input
    if named is not None:
        images = [spec for spec in images if spec.name == named]
        if not images:
            raise _parameter_error(
                "image_input",
                f"names {quoted(named)}, which is not a numeric input of shape [N,H,W,C]; "
                f"the model has: {inputs}",
            )
    if not images:
        raise FailedPrecondition(
            f"the model has no image input, only {inputs}: explanations need a numeric one of shape [N,H,W,C]"
        )
    if len(images) > 1:
        raise _parameter_error(
            "image_input",
            "must name the input that holds the image, since several could: "
            + listed(quoted(spec.name) for spec in images),
        )
    _check_layout(config, images[0])
    return images[0]


def _is_image(spec: TensorSpec) -> bool:
    return (
        spec.shape is not None
        and len(spec.shape) == 4
        and spec.datatype in DTYPES
        and spec.datatype != "BOOL"
    )


def _check_layout(config: ModelConfig, image: TensorSpec) -> None:
    _, height, _, channels = image.shape or (FREE,) * 4
    if channels == FREE:
        raise FailedPrecondition(
            f"input {quoted(image.name)} has shape {shape_text(image.shape)}: its last dimension, the "
            "channels, is free; export the model with a fixed number of channels"
        )
    declared = any(tensor.name == image.name and tensor.declared_nhwc for tensor in config.inputs)
    if height in (1, 3) and channels > 4 and not declared:
        raise FailedPrecondition(
            f"input {quoted(image.name)} has shape {shape_text(image.shape)}, which looks like "
            "[N,channels,height,width]; export the model with images [height,width,channels], or, if they "
            "are, give the input 'format: FORMAT_NHWC' in config.pbtxt"
        )


def _image_sizes(config: ModelConfig, image: TensorSpec) -> tuple[ImageSize, ...]:
    """Return the sizes to serve where the signature leaves height or width free; none where it does not."""
    _, height, width, _ = image.shape or (FREE,) * 4
    sizes = config.parameters.image_sizes
    dims = next((tensor.dims for tensor in config.inputs if tensor.name == image.name), ())
    if dims:
        height, width = dims[-3:-1]
    for size in sizes:
        if height not in (FREE, size[0]) or width not in (FREE, size[1]):
            raise _parameter_error(
                "image_sizes",
                f"lists {size[0]}x{size[1]}, input {quoted(image.name)} takes {_size_text(height, width)}",
            )
    if image.shape is not None and FREE not in image.shape[1:3]:
        return ()
    if not sizes and FREE not in (height, width):
        return ((height, width),)
    if not sizes:
        raise _parameter_error(
            "image_sizes",
            f"must list the sizes to serve, for example 224x224, since input {quoted(image.name)} takes "
            f"{_size_text(height, width)}",
        )
    return sizes


def _size_text(height: int, width: int) -> str:
    return " x ".join("any" if size == FREE else str(size) for size in (height, width)) + " (height x width)"


def _score_tensor(config: ModelConfig, signature: Signature) -> str | None:
    name, outputs = config.parameters.score_tensor, served_signature(config, signature).outputs
    if name is not None and name not in outputs:
        raise _parameter_error(
            "score_tensor",
            f"is {quoted(name)}, which is no output served: it must be one of {listed(outputs)}; "
            "export a tensor from within the model as an output",
        )
    return name


def _fill(fill: tuple[float, ...], image: TensorSpec) -> tuple[float, ...]:
    channels = (image.shape or (FREE,))[-1]
    if len(fill) not in (1, channels):
        raise _parameter_error(
            "fill",
            f"has {len(fill)} values, input {quoted(image.name)} has {channels} channels; "
            "give one value, or one per channel",
        )
    return _fitting("fill", fill, image)


def _fitting(name: str, values: Numbers, image: TensorSpec) -> Numbers:
    """Return the values if the image's type can hold them."""
    dtype = DTYPES[image.datatype]
    for value in values:
        if dtype.kind in "iu":
            limits = np.iinfo(dtype.name)
            fits = value.is_integer() and limits.min <= value <= limits.max
        else:
            fits = abs(value) <= float(np.finfo(dtype.name).max)
        if not fits:
            raise _parameter_error(
                name,
                f"has the value {value:g}, which {image.datatype} of input {quoted(image.name)} cannot hold",
            )
    return values


def _parameter_error(name: str, fault: str) -> VitrailError:
    key = PREFIX + name
    return InvalidArgument(f"parameter '{key}' {fault}", field=f'parameters["{key}"]')


def _both(
    config: ModelConfig, signature: Signature
) -> list[tuple[str, tuple[TensorConfig, ...], Mapping[str, TensorSpec]]]:
    return [("input", config.inputs, signature.inputs), ("output", config.outputs, signature.outputs)]
