"""The wire's messages to what the explainers are asked, and what they answer back to messages.

Everything that a request can get wrong is refused here or in the explainer, naming the field, before
anything large is allocated.
"""

import math
from collections.abc import Iterator
from typing import Any, Literal, cast

import numpy as np
from google.protobuf.duration_pb2 import Duration
from numpy.typing import NDArray

from vitrail.errors import FailedPrecondition, InvalidArgument, ResourceExhausted
from vitrail.tensors import MAX_RANK, from_tensor, to_tensor
from vitrail.v1 import explanation_pb2 as pb
from vitrail.v1.tensor_pb2 import Precision
from vitrail_server.explainers.fills import Blur, Constant, Fill, GivenImage, ImageMean
from vitrail_server.explainers.gradient import GradientParameters, GradientRun, Reduction
from vitrail_server.explainers.grid import Edge, Order
from vitrail_server.explainers.occlusion import OcclusionParameters, OcclusionRun, Resolution
from vitrail_server.explainers.question import AllTargets, Limits, Question, TopK
from vitrail_server.explainers.run import Diagnostics, Explanation, Note, Plan, Summary, Tile
from vitrail_server.rpc.images import SourceBox, decode
from vitrail_server.servable import DTYPES, Description, TensorSpec
from vitrail_server.wording import quoted
from vitrail_server.work import Objective

MAX_MESSAGE_BYTES = 1 << 20
"""The largest message of a stream, and the largest map in one reply: a quarter of what clients take."""

MAX_TILE_FIELDS_BYTES = 1 << 10
"""The most bytes of a tile's message beside its values."""

LIGHT_ELEMENTS = 1 << 18
"""The largest image of a light request: checking whether so many numbers are finite takes 0.1 ms."""

MAX_LABEL = 256
"""The longest label that a target can be named by, in characters."""

Enum = Any
"""A generated enum: its stubs know each one by its own type only."""

Execution = Literal["FULL", "INCREMENTAL"]
"""How the evaluations of an explanation are computed; named as on the wire."""

METHODS = {"gradient": pb.Gradient, "occlusion": pb.Occlusion}
"""The methods served, by their field in the request; the names are the metrics' label too."""


def method_of(spec: pb.ExplanationSpec) -> str:
    """Return the method that a request names.

    Raises:
        InvalidArgument: none, or one that this server does not know.

    """
    method = spec.WhichOneof("method")
    if method is None:
        raise InvalidArgument(
            f"spec.method is unset or unknown to this server; set one of {', '.join(METHODS)}",
            field="spec.method",
        )
    return method


def is_light(spec: pb.ExplanationSpec) -> bool:
    """Return whether `prepare` takes no longer than going to another thread and back would."""
    is_tensor = spec.WhichOneof("method") == "gradient" and spec.image.WhichOneof("source") == "tensor"
    shape = spec.image.tensor.shape
    # By its shape, which is held against its data later: looking at the data copies it. The product of a
    # million sizes would take minutes.
    return is_tensor and len(shape) <= MAX_RANK and math.prod(shape) <= LIGHT_ELEMENTS


def prepare(
    spec: pb.ExplanationSpec, description: Description, limits: Limits, max_pixels: int
) -> tuple[Explanation, SourceBox]:
    """Return the Run that answers a request, and the part of the image that its map covers.

    Slow unless the request is light: not for the event loop.

    Raises:
        VitrailError: the request does not fit the model, the server or itself.

    """
    if description.settings.image_input is None:
        raise FailedPrecondition(description.settings.image_reason, field="spec.model_name")
    image, box = _image(spec.image, description, max_pixels)
    question = Question(
        description=description,
        image=image,
        output=_output(spec.output_name, description),
        inputs=_other_inputs(spec, description),
        targets=_targets(spec.targets, limits),
        objective=_objective(spec.objective),
        values=tuple(spec.objective.values),
        limits=limits,
    )
    if method_of(spec) == "gradient":
        return GradientRun(question, _gradient_parameters(spec.gradient)), box
    return OcclusionRun(question, _occlusion_parameters(spec.occlusion, description.channels)), box


def seconds_of(duration: Duration) -> float:
    """Return a time budget in seconds.

    Raises:
        InvalidArgument: it is not above 0.

    """
    seconds = duration.seconds + duration.nanos / 1e9
    if seconds <= 0:
        raise InvalidArgument(
            f"spec.time_budget is {seconds:g} s; it must be above 0, or unset for no budget",
            field="spec.time_budget",
        )
    return seconds


def plan_message(
    plan: Plan,
    run: Explanation,
    description: Description,
    box: SourceBox,
    priority: int,
    execution: Execution,
) -> pb.Plan:
    """Return the message of a plan: every value in it is the one really used."""
    message = pb.Plan(
        model_name=description.name,
        model_version=description.version,
        output_name=plan.output,
        targets=[
            pb.ResolvedTarget(index=each.index, label=each.label, output=each.output, score=each.score)
            for each in plan.targets
        ],
        objective=pb.Objective(
            kind=pb.Objective.Kind.Value(f"KIND_{plan.objective.name}"), values=plan.values
        ),
        map_shape=plan.map_shape,
        evaluations=plan.evaluations,
        execution=pb.Plan.Execution.Value(f"EXECUTION_{execution}"),
        source_box=pb.SourceBox(top=box.top, left=box.left, height=box.height, width=box.width),
        warnings=[_warning(note) for note in plan.warnings],
        priority=priority,
        precision=Precision.Value(f"PRECISION_{description.precision(run.kind)}"),
    )
    if plan.window_grid is not None:
        message.window_grid.rows, message.window_grid.columns = plan.window_grid
    if isinstance(run, GradientRun):
        message.gradient.CopyFrom(_gradient_message(run.parameters))
    elif isinstance(run, OcclusionRun):
        message.occlusion.CopyFrom(_occlusion_message(run.parameters))
    return message


def tile_messages(tile: Tile) -> Iterator[pb.Tile]:
    """Yield the messages of a tile, none of them larger than clients take by default."""
    for part in tile.split(MAX_MESSAGE_BYTES - MAX_TILE_FIELDS_BYTES):
        yield pb.Tile(
            row=part.row,
            column=part.column,
            height=part.values.shape[1],
            width=part.values.shape[2],
            first_target=part.first_target,
            target_count=part.values.shape[0],
            values=part.values.astype("<f4", copy=False).tobytes(),
            evaluations_done=part.evaluations_done,
            final=part.final,
        )


def summary_message(
    summary: Summary, *, queue_seconds: float, device_seconds: float, total_seconds: float
) -> pb.Summary:
    """Return the message of a summary."""
    partial = summary.partial is not None
    return pb.Summary(
        completion=pb.Summary.COMPLETION_PARTIAL if partial else pb.Summary.COMPLETION_COMPLETE,
        partial_reason=pb.Summary.PartialReason.Value(f"PARTIAL_REASON_{summary.partial or 'UNSPECIFIED'}"),
        measured_fraction=summary.measured_fraction,
        evaluated_windows=summary.evaluated_windows,
        evaluations=pb.Evaluations(done=summary.done, skipped=summary.skipped, dropped=summary.dropped),
        queue_seconds=queue_seconds,
        device_seconds=device_seconds,
        total_seconds=total_seconds,
        diagnostics=[_diagnostics(each) for each in summary.diagnostics],
        warnings=[_warning(note) for note in summary.warnings],
    )


def _image(
    image: pb.Image, description: Description, max_pixels: int
) -> tuple[NDArray[np.generic], SourceBox]:
    match image.WhichOneof("source"):
        case "tensor":
            array = _tensor_image(from_tensor(image.tensor, "spec.image.tensor"), description)
        case "encoded":
            array, box = decode(image.encoded, description, max_pixels)
            return array, box
        case _:
            raise InvalidArgument(
                "spec.image is unset; set image.tensor or image.encoded", field="spec.image"
            )
    height, width, _ = array.shape
    return array, SourceBox(0.0, 0.0, float(height), float(width))


def _tensor_image(given: NDArray[np.generic], description: Description) -> NDArray[np.generic]:
    """Return the image (height, width, channels) that a tensor holds."""
    field = "spec.image.tensor"
    channels = description.channels
    array = _in_image_form(given, channels)
    if array.ndim != 3 or array.shape[2] != channels or array.shape[:2] not in description.image_sizes:
        sizes = " or ".join(f"[{height}, {width}, {channels}]" for height, width in description.image_sizes)
        raise InvalidArgument(
            f"{field}.shape is {list(given.shape)}; model {description.name!r} takes {sizes}, channels last "
            "and with a batch dimension of 1 if any (encoded images are resized, tensors are not)",
            field=f"{field}.shape",
        )
    array = _cast(array, description.image_dtype, field)
    _refuse_non_finite(array, field)
    return array


def _in_image_form(given: NDArray[np.generic], channels: int) -> NDArray[np.generic]:
    """Return (height, width, channels) for every form in which an image may be given, else what was given."""
    array = given[0] if given.ndim == 4 and given.shape[0] == 1 else given
    return array[:, :, None] if array.ndim == 2 and channels == 1 else array


def _other_inputs(spec: pb.ExplanationSpec, description: Description) -> dict[str, NDArray[np.generic]]:
    wanted = {
        name: each
        for name, each in description.signature.inputs.items()
        if name != description.settings.image_input
    }
    for name in spec.inputs:
        if name not in wanted:
            has = f"has the further inputs {sorted(wanted)}" if wanted else "has no input but the image"
            raise InvalidArgument(
                f"spec.inputs[{quoted(name)}] is not an input of model {description.name!r}, which {has}",
                field="spec.inputs",
            )
    missing = sorted(wanted.keys() - spec.inputs.keys())
    if missing:
        raise InvalidArgument(
            f"spec.inputs lacks {missing}, which model {description.name!r} needs beside the image",
            field="spec.inputs",
        )
    return {name: _input(spec, each) for name, each in wanted.items()}


def _input(spec: pb.ExplanationSpec, wanted: TensorSpec) -> NDArray[np.generic]:
    field = f"spec.inputs[{wanted.name!r}]"
    array = from_tensor(spec.inputs[wanted.name], field)
    shape = (wanted.shape or ())[1:]
    fits = array.ndim == len(shape) and all(w in (-1, g) for w, g in zip(shape, array.shape, strict=True))
    if wanted.shape is not None and not fits:
        raise InvalidArgument(
            f"{field}.shape is {list(array.shape)}; expected {list(shape)}, without the batch dimension",
            field=f"{field}.shape",
        )
    if wanted.datatype not in DTYPES:
        raise InvalidArgument(f"{field} is of type {wanted.datatype}, which cannot be sent", field=field)
    array = _cast(array, DTYPES[wanted.datatype], field)
    _refuse_non_finite(array, field)
    return array


def _cast(array: NDArray[np.generic], dtype: np.dtype[np.generic], field: str) -> NDArray[np.generic]:
    """Return the array in the model's type: integers become floats and floats change width, no more."""
    integers_fit = np.issubdtype(dtype, np.integer) and np.issubdtype(array.dtype, np.integer)
    if not np.can_cast(array.dtype, dtype, "same_kind") and not integers_fit:
        raise InvalidArgument(
            f"{field}.data_type is {array.dtype.name}, which does not become the model's {dtype.name}",
            field=f"{field}.data_type",
        )
    with np.errstate(over="ignore"):  # too large for the type becomes infinite, and is refused as such
        result = array.astype(dtype, copy=False)
    if integers_fit and not np.array_equal(result, array):
        raise InvalidArgument(f"{field} has values that do not fit the model's {dtype.name}", field=field)
    return result


def _refuse_non_finite(array: NDArray[np.generic], field: str) -> None:
    if not np.issubdtype(array.dtype, np.floating):
        return
    bad = ~np.isfinite(array)
    count = np.count_nonzero(bad)
    if count:
        where = tuple(int(i) for i in np.unravel_index(bad.argmax(), bad.shape))
        raise InvalidArgument(
            f"{field} has {count} values that are not finite; the first is {array[where]} at {list(where)}",
            field=field,
        )


def _output(name: str, description: Description) -> str:
    outputs = list(description.output_elements)
    name = name or description.settings.score_tensor or ""
    if name in outputs:
        return name
    if name:
        raise InvalidArgument(
            f"spec.output_name is {quoted(name)}; model {description.name!r} has the outputs {outputs}",
            field="spec.output_name",
        )
    if len(outputs) != 1:
        raise InvalidArgument(
            f"spec.output_name is unset, but model {description.name!r} has several outputs: name one of "
            f"{outputs}",
            field="spec.output_name",
        )
    return outputs[0]


def _targets(targets: pb.Targets, limits: Limits) -> tuple[int | str, ...] | TopK | AllTargets | None:
    match targets.WhichOneof("choice"):
        case "list":
            # A message has room for millions of them, which would take long to look at.
            count = len(targets.list.targets)
            if count > limits.targets:
                raise ResourceExhausted(
                    f"{count} targets are asked for; at most {limits.targets} are allowed per explanation: "
                    "ask for fewer, or in several explanations",
                    field="spec.targets",
                )
            return tuple(_target(i, each) for i, each in enumerate(targets.list.targets))
        case "top_k":
            return TopK(targets.top_k)
        case "all":
            return AllTargets()
        case _:
            return None


def _target(position: int, target: pb.Target) -> int | str:
    where = f"spec.targets.list.targets[{position}]"
    match target.WhichOneof("element"):
        case "index":
            return target.index
        case "label" if len(target.label) <= MAX_LABEL:
            return target.label
        case "label":  # looking for labels like it would take very long
            raise InvalidArgument(
                f"{where}.label has {len(target.label)} characters; a label with more than {MAX_LABEL} is "
                "named by its index",
                field=f"{where}.label",
            )
        case _:
            raise InvalidArgument(f"{where} is empty; set its index or its label", field=where)


def _objective(objective: pb.Objective) -> Objective:
    return Objective[_choice(pb.Objective.Kind, objective.kind, "spec.objective.kind", "KIND_OUTPUT")]


def _gradient_parameters(gradient: pb.Gradient) -> GradientParameters:
    reduction = _choice(
        pb.Gradient.ChannelReduction,
        gradient.channel_reduction,
        "spec.gradient.channel_reduction",
        "CHANNEL_REDUCTION_MAX_ABS",
    )
    return GradientParameters(gradient.signed, cast("Reduction", reduction), gradient.times_input)


def _occlusion_parameters(occlusion: pb.Occlusion, channels: int) -> OcclusionParameters:
    field = "spec.occlusion"
    if not occlusion.HasField("patch"):
        raise InvalidArgument(
            f"{field}.patch is unset; give the rows and columns of the window to hide, for example a seventh "
            "of the image",
            field=f"{field}.patch",
        )
    stride = (occlusion.stride.rows, occlusion.stride.columns) if occlusion.HasField("stride") else None
    edge = _choice(pb.Occlusion.Edge, occlusion.edge, f"{field}.edge", "EDGE_CLIP")
    window_score = _choice(
        pb.Occlusion.WindowScore, occlusion.window_score, f"{field}.window_score", "WINDOW_SCORE_SIGNED"
    )
    resolution = _choice(
        pb.Occlusion.Resolution, occlusion.resolution, f"{field}.resolution", "RESOLUTION_PIXELS"
    )
    order = _choice(pb.Occlusion.Order, occlusion.order, f"{field}.order", "ORDER_RASTER")
    return OcclusionParameters(
        patch=(occlusion.patch.rows, occlusion.patch.columns),
        stride=stride,
        fill=_fill(occlusion.fill, channels),
        edge=cast("Edge", edge),
        absolute=window_score == "ABSOLUTE",
        resolution=cast("Resolution", resolution),
        order=cast("Order", order),
    )


def _fill(fill: pb.Fill, channels: int) -> Fill | None:
    match fill.WhichOneof("kind"):
        case "constant":
            return Constant((fill.constant,))
        case "channels":
            return Constant(tuple(fill.channels.values))
        case "image_mean":
            return ImageMean()
        case "blur":
            return Blur(fill.blur.sigma)
        case "image":
            given = from_tensor(fill.image, "spec.occlusion.fill.image")
            return GivenImage(_in_image_form(given, channels))
        case _:
            return None


def _choice(enum: Enum, number: int, field: str, default: str) -> str:
    """Return the name of an enum's value without its prefix; `default` stands for the unset value.

    Raises:
        InvalidArgument: a number that this server does not know.

    """
    prefix: str = enum.Name(0).removesuffix("UNSPECIFIED")
    if number == 0:
        return default.removeprefix(prefix)
    if number not in enum.values():
        known = ", ".join(name for name, value in enum.items() if value)
        raise InvalidArgument(f"{field} is {number}; this server knows {known}", field=field)
    return str(enum.Name(number)).removeprefix(prefix)


def _gradient_message(parameters: GradientParameters) -> pb.Gradient:
    reduction = f"CHANNEL_REDUCTION_{parameters.channel_reduction}"
    return pb.Gradient(
        signed=parameters.signed,
        channel_reduction=pb.Gradient.ChannelReduction.Value(reduction),
        times_input=parameters.times_input,
    )


def _occlusion_message(parameters: OcclusionParameters) -> pb.Occlusion:
    patch, stride = parameters.patch, parameters.stride or parameters.patch
    score = "ABSOLUTE" if parameters.absolute else "SIGNED"
    return pb.Occlusion(
        patch=pb.Extent(rows=patch[0], columns=patch[1]),
        stride=pb.Extent(rows=stride[0], columns=stride[1]),
        fill=_fill_message(parameters.fill),
        edge=pb.Occlusion.Edge.Value(f"EDGE_{parameters.edge}"),
        window_score=pb.Occlusion.WindowScore.Value(f"WINDOW_SCORE_{score}"),
        resolution=pb.Occlusion.Resolution.Value(f"RESOLUTION_{parameters.resolution}"),
        order=pb.Occlusion.Order.Value(f"ORDER_{parameters.order}"),
    )


def _fill_message(fill: Fill | None) -> pb.Fill:
    match fill:
        case None:
            return pb.Fill()
        case Constant(values=(value,)):
            return pb.Fill(constant=value)
        case Constant(values=values):
            return pb.Fill(channels=pb.ChannelValues(values=values))
        case ImageMean(values=values):
            return pb.Fill(image_mean=pb.ImageMean(values=values))
        case Blur(sigma=sigma):
            return pb.Fill(blur=pb.Blur(sigma=sigma))
        case GivenImage(image=image):
            message = to_tensor(image)
            message.ClearField("data")
            return pb.Fill(image=message)


def _diagnostics(each: Diagnostics) -> pb.TargetDiagnostics:
    return pb.TargetDiagnostics(
        lowest_score=each.lowest_score,
        lowest_window=each.lowest_window,
        hidden_score=each.hidden_score,
        class_changes=each.class_changes,
        non_finite_values=each.non_finite_values,
    )


def _warning(note: Note) -> pb.Warning:
    return pb.Warning(kind=pb.Warning.Kind.Value(f"KIND_{note.kind.value}"), message=note.message)
