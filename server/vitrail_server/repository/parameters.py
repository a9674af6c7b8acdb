"""The `parameters` of a config.pbtxt: Vitrail's own keys, `vitrail.*`, and what Triton's backend knows.

A key of ours that is unknown is refused, so that a misspelt one is noticed. The keys of Triton's
TensorFlow backend are refused where they ask for another function than the one served; all others are
noted as unused.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import TypeVar, get_args

from vitrail.errors import InvalidArgument
from vitrail_server.servable import ImageSize, Incremental, Precision, Resize, Task
from vitrail_server.wording import listed, quoted

T = TypeVar("T")

PREFIX = "vitrail."
TASKS: tuple[Task, ...] = get_args(Task)
RESIZES: tuple[Resize, ...] = get_args(Resize)
INCREMENTAL: tuple[Incremental, ...] = get_args(Incremental)
PRECISIONS: tuple[Precision, ...] = get_args(Precision)


@dataclass(frozen=True, slots=True)
class Parameters:
    """Vitrail's own keys, named as here after the prefix. None or empty: not given."""

    task: Task | None = None
    """CLASSIFICATION or REGRESSION."""
    image_input: str | None = None
    """The name of the input that holds the image."""
    score_tensor: str | None = None
    """The name of the output that is explained where a request names none."""
    image_range: tuple[float, float] | None = None
    """What the pixel values 0 and 255 of an encoded image become, for example ``-1,1``."""
    image_resize: Resize | None = None
    """How an encoded image comes to the model's size: STRETCH or CENTER_CROP."""
    image_sizes: tuple[ImageSize, ...] = ()
    """The heights and widths served where the model leaves them free, for example ``224x224,192x256``."""
    fill: tuple[float, ...] = ()
    """What a hidden pixel shows unless the request says otherwise: one value, or one per channel."""
    version_labels: Mapping[str, int] = field(default_factory=dict)
    """The versions that labels name, for example ``stable=3,canary=4``."""
    incremental: Incremental = "AUTO"
    """AUTO: occlusions are computed incrementally where that pays; OFF: never."""
    precision: Precision = "FP32"
    """In which forwards multiply: FP32, TF32, BF16 or FP16."""
    build_command: str = ""
    """The command that makes the model, named where no version of it is there."""


SIGNATURE = "serving_default"
"""The signature that is served."""

_TENSORFLOW_ONLY = {"TF_SIGNATURE_DEF": SIGNATURE, "TF_GRAPH_TAG": "serve"}
"""Keys of Triton's TensorFlow backend and the one value that is served."""


def read_parameters(parameters: Mapping[str, str]) -> tuple[Parameters, tuple[str, ...]]:
    """Return Vitrail's own keys, and a note on every other key.

    Raises:
        InvalidArgument: a key of ours is unknown or malformed, or a key asks for what is not served.

    """
    given = {key.removeprefix(PREFIX): text for key, text in parameters.items() if key.startswith(PREFIX)}
    known = [PREFIX + parameter.name for parameter in fields(Parameters)]
    for key in sorted(key for key in given if PREFIX + key not in known):
        raise InvalidArgument(
            f"unknown parameter {quoted(PREFIX + key)}; known are: {', '.join(known)}",
            field=_path(PREFIX + key),
        )

    def read(name: str, parse: Callable[[str], T], default: T) -> T:
        if name not in given:
            return default
        try:
            return parse(given[name].strip())
        except ValueError as error:
            key = PREFIX + name
            raise InvalidArgument(
                f"parameter '{key}' is {quoted(given[name])}; it must be {error}", field=_path(key)
            ) from None

    ours = Parameters(
        task=read("task", _one_of(TASKS), None),
        image_input=read("image_input", _text, None),
        score_tensor=read("score_tensor", _text, None),
        image_range=read("image_range", _range, None),
        image_resize=read("image_resize", _one_of(RESIZES), None),
        image_sizes=read("image_sizes", _sizes, ()),
        fill=read("fill", _numbers, ()),
        version_labels=read("version_labels", _labels, {}),
        incremental=read("incremental", _one_of(INCREMENTAL), "AUTO"),
        precision=read("precision", _one_of(PRECISIONS), "FP32"),
        build_command=read("build_command", _text, ""),
    )
    return ours, _notes(parameters)


def _notes(parameters: Mapping[str, str]) -> tuple[str, ...]:
    notes = []
    for key, text in sorted(parameters.items()):
        if key == "TF_INIT_OPS_FILE":
            raise InvalidArgument(
                f"parameter '{key}' is not supported: export a model that needs no such file",
                field=_path(key),
            )
        if (served := _TENSORFLOW_ONLY.get(key, text)) != text:
            raise InvalidArgument(
                f"parameter '{key}' is {quoted(text)}; only '{served}' is served", field=_path(key)
            )
        if not key.startswith(PREFIX) and key not in _TENSORFLOW_ONLY:
            notes.append(f"parameter {quoted(key)} is not used")
    return tuple(notes)


def _path(key: str) -> str:
    return f'parameters["{key}"]'


# Each of these raises ValueError with what the value must be.


def _text(text: str) -> str:
    if not text or not text.isprintable():
        raise ValueError("printable text on one line")
    return text


def _one_of(choices: tuple[T, ...]) -> Callable[[str], T]:
    def parse(text: str) -> T:
        for choice in choices:
            if choice == text:
                return choice
        raise ValueError(" or ".join(str(choice) for choice in choices))

    return parse


def _numbers(text: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = (math.nan,)
    if not all(math.isfinite(number) for number in numbers):
        raise ValueError("one finite number, or several separated by commas")
    return numbers


def _range(text: str) -> tuple[float, float]:
    try:
        black, white = _numbers(text)
    except ValueError:
        black = white = 0.0
    if black == white:
        raise ValueError("two different finite numbers, separated by a comma")
    return black, white


def _sizes(text: str) -> tuple[ImageSize, ...]:
    sizes = []
    for part in text.split(","):
        match = re.fullmatch("([1-9][0-9]*)x([1-9][0-9]*)", part.strip())
        if match is None:
            raise ValueError("sizes HEIGHTxWIDTH, separated by commas, for example 224x224")
        sizes.append((int(match[1]), int(match[2])))
    return tuple(dict.fromkeys(sizes))


def _labels(text: str) -> Mapping[str, int]:
    labels: dict[str, int] = {}
    for part in text.split(","):
        match = re.fullmatch(r"([^=]*\S)\s*=\s*([1-9][0-9]*)", part.strip())
        if match is None or not match[1].isprintable():
            raise ValueError("labels LABEL=VERSION, separated by commas, for example stable=3,canary=4")
        if match[1] in labels:
            raise ValueError(f"given once per label; {listed([quoted(match[1])])} is there twice")
        labels[match[1]] = int(match[2])
    return labels
