"""The request parameters that ask for an explanation: `vitrail_method` and its options.

The options and their values are those of docs/methods.md. Every value may come as text; numbers and booleans
also as what they are. An option that is unknown, or that the method does not have, is refused by name.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from google.protobuf.duration_pb2 import Duration

from vitrail.errors import InvalidArgument, VitrailError
from vitrail.v1 import explanation_pb2 as v1
from vitrail_server.kserve.v2 import grpc_service_pb2 as pb
from vitrail_server.rpc.codec import METHODS
from vitrail_server.rpc.inference.parameters import PREFIX, Parameters
from vitrail_server.wording import listed, quoted

Scalar = bool | int | float | str

NAMES = (
    (r"spec\.(?:occlusion|gradient)\.(\w+)(?:\.\w+)*", rf"{PREFIX}\1"),
    (r"spec\.objective\.values", f"{PREFIX}values"),
    (r"spec\.objective\.kind", f"{PREFIX}objective"),
    (r"spec\.output_name", f"{PREFIX}output"),
    (r"(sent as|send) spec\.image\.tensor", r"\1 a tensor of pixels"),
    (r"spec\.image\.tensor\.(\w+)", r"the image's \1"),
    (r"spec\.image(?:\.tensor|\.encoded)?", "the image"),
    (r"spec\.targets[\w.]*(?:\[\d+\])?(?:\.\w+)?", f"{PREFIX}targets"),
    (r"spec\.(\w+)", rf"{PREFIX}\1"),
    (r"\bKIND_(\w+)", r"\1"),
)
"""How the fields of an ExplanationSpec are called here, for messages."""


def read_options(parameters: Parameters, spec: v1.ExplanationSpec) -> None:
    """Write what the parameters ask for, whose names have no prefix any more, into `spec`.

    Raises:
        InvalidArgument: an option is unknown, does not belong to the method, or has no such value.

    """
    method = _text("method", parameters["method"]).lower() if "method" in parameters else ""
    if method not in METHODS:
        raise InvalidArgument(
            f"{PREFIX}method is {quoted(method) if method else 'missing'}; set it to one of {listed(METHODS)}"
        )
    getattr(spec, method).SetInParent()
    known = {**COMMON, **OPTIONS[method]}
    for name, value in parameters.items():
        if name == "method":
            continue
        if name not in known:
            others = [other for other, options in OPTIONS.items() if name in options]
            why = f"an option of {others[0]}, not of {method}" if others else "no option"
            raise InvalidArgument(
                f"{PREFIX}{quoted(name)[1:-1]} is {why}; {method} has "
                f"{listed((PREFIX + each for each in sorted(known)), none='none')}"
            )
        known[name](spec, PREFIX + name, _scalar(name, value))


def renamed(error: VitrailError) -> VitrailError:
    """Return the error with the options called as they are here."""
    message = error.message
    for pattern, name in NAMES:
        message = re.sub(pattern, name, message)
    return type(error)(message, field=error.field, retry_delay=error.retry_delay)


def _targets(spec: v1.ExplanationSpec, name: str, value: Scalar) -> None:
    """Take indices and labels separated by commas, `all`, or `top:N`."""
    text = str(value).strip()
    if text == "all":
        spec.targets.all.SetInParent()
    elif match := re.fullmatch(r"top:([0-9]{1,9})", text):
        spec.targets.top_k = int(match[1])
    else:
        for each in text.split(","):
            target = spec.targets.list.targets.add()
            if re.fullmatch("[0-9]{1,18}", each.strip()):
                target.index = int(each)
            else:
                target.label = each.strip()
    if not text:
        raise InvalidArgument(f"{name} is empty; give indices or labels, 'all' or 'top:N'")


def _target(spec: v1.ExplanationSpec, name: str, value: Scalar) -> None:
    """Take one index or one label, which may contain commas."""
    target = spec.targets.list.targets.add()
    text = str(value)
    if re.fullmatch("[0-9]{1,18}", text):
        target.index = int(text)
    elif text:
        target.label = text
    else:
        raise InvalidArgument(f"{name} is empty; give an index or a label")


def _objective(spec: v1.ExplanationSpec, name: str, value: Scalar) -> None:
    spec.objective.kind = _enum(v1.Objective.Kind, "KIND_", name, value)


def _values(spec: v1.ExplanationSpec, name: str, value: Scalar) -> None:
    spec.objective.values.extend(_numbers(name, value))


def _output(spec: v1.ExplanationSpec, name: str, value: Scalar) -> None:  # noqa: ARG001 - any name may be given
    spec.output_name = str(value)


def _version_label(spec: v1.ExplanationSpec, name: str, value: Scalar) -> None:
    if spec.WhichOneof("version_choice") is not None:
        raise InvalidArgument(f"give a model_version or {name}, not both")
    spec.version_label = str(value)


def _time_budget(spec: v1.ExplanationSpec, name: str, value: Scalar) -> None:
    (seconds,) = _numbers(name, value, 1)
    if not 0 < seconds < 1e9:
        raise InvalidArgument(f"{name} is {seconds:g}; it must be seconds above 0")
    spec.time_budget.CopyFrom(Duration(seconds=int(seconds), nanos=int(seconds % 1 * 1e9)))


def _extent(field: str) -> Callable[[v1.ExplanationSpec, str, Scalar], None]:
    """Write `32`, or `32,16` for rows and columns."""

    def write(spec: v1.ExplanationSpec, name: str, value: Scalar) -> None:
        sizes = str(value).split(",")
        if not all(re.fullmatch(r"\s*[0-9]{1,9}\s*", each) for each in sizes) or len(sizes) > 2:
            raise InvalidArgument(
                f"{name} is {quoted(str(value))}; give pixels, or rows and columns separated by a comma"
            )
        extent: v1.Extent = getattr(spec.occlusion, field)
        extent.rows, extent.columns = int(sizes[0]), int(sizes[-1])

    return write


def _fill(spec: v1.ExplanationSpec, name: str, value: Scalar) -> None:
    """Take a number, one per channel separated by commas, `IMAGE_MEAN`, or `BLUR:SIGMA`."""
    text = str(value).strip()
    fill = spec.occlusion.fill
    if text.upper() == "IMAGE_MEAN":
        fill.image_mean.SetInParent()
    elif text.upper().startswith("BLUR:"):
        (fill.blur.sigma,) = _numbers(name, text[len("BLUR:") :], 1)
    else:
        numbers = _numbers(name, text)
        if len(numbers) == 1:
            (fill.constant,) = numbers
        else:
            fill.channels.values.extend(numbers)


def _choice(method: str, field: str, kind: Any) -> Callable[[v1.ExplanationSpec, str, Scalar], None]:
    """Write one of an enum's values, by its name without the prefix."""

    def write(spec: v1.ExplanationSpec, name: str, value: Scalar) -> None:
        prefix = kind.Name(0).removesuffix("UNSPECIFIED")
        setattr(getattr(spec, method), field, _enum(kind, prefix, name, value))

    return write


def _flag(method: str, field: str) -> Callable[[v1.ExplanationSpec, str, Scalar], None]:
    def write(spec: v1.ExplanationSpec, name: str, value: Scalar) -> None:
        flags = {"true": True, "false": False, "1": True, "0": False}
        if str(value).lower() not in flags:
            raise InvalidArgument(f"{name} is {quoted(str(value))}; it must be true or false")
        setattr(getattr(spec, method), field, flags[str(value).lower()])

    return write


Option = Callable[[v1.ExplanationSpec, str, Scalar], None]

COMMON: Mapping[str, Option] = {
    "target": _target,
    "targets": _targets,
    "objective": _objective,
    "values": _values,
    "output": _output,
    "version_label": _version_label,
    "time_budget": _time_budget,
}
"""The options of every method; each writes a value into a spec."""

OPTIONS: Mapping[str, Mapping[str, Option]] = {
    "gradient": {
        "signed": _flag("gradient", "signed"),
        "times_input": _flag("gradient", "times_input"),
        "channel_reduction": _choice("gradient", "channel_reduction", v1.Gradient.ChannelReduction),
    },
    "occlusion": {
        "patch": _extent("patch"),
        "stride": _extent("stride"),
        "fill": _fill,
        "edge": _choice("occlusion", "edge", v1.Occlusion.Edge),
        "window_score": _choice("occlusion", "window_score", v1.Occlusion.WindowScore),
        "resolution": _choice("occlusion", "resolution", v1.Occlusion.Resolution),
        "order": _choice("occlusion", "order", v1.Occlusion.Order),
    },
}
"""The options of single methods."""


def _scalar(name: str, value: pb.InferParameter) -> Scalar:
    choice = value.WhichOneof("parameter_choice")
    if choice is None:
        raise InvalidArgument(f"{PREFIX}{quoted(name)[1:-1]} has no value")
    found: Scalar = getattr(value, choice)
    return found


def _text(name: str, value: pb.InferParameter) -> str:
    return str(_scalar(name, value)).strip()


def _enum(kind: Any, prefix: str, name: str, value: Scalar) -> Any:
    """Return the number of an enum's value, which may be named with its prefix or without."""
    text = str(value).strip().upper().removeprefix(prefix)
    named = {each.removeprefix(prefix): number for each, number in kind.items() if number}
    if text not in named:
        raise InvalidArgument(f"{name} is {quoted(str(value))}; it must be one of {listed(named)}")
    return named[text]


def _numbers(name: str, value: Scalar, count: int | None = None) -> list[float]:
    try:
        numbers = [float(each) for each in str(value).split(",")]
    except ValueError:
        numbers = []
    if not numbers or (count is not None and len(numbers) != count):
        wanted = "a number" if count == 1 else "a number, or several separated by commas"
        raise InvalidArgument(f"{name} is {quoted(str(value))}; it must be {wanted}")
    return numbers
