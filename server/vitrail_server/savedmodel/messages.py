"""What the server and the process that prepares models say to each other. Knows no TensorFlow.

The server sends a `Task` and a file for the constants, which are `Taken`. The signature follows, which the
server answers with a `Completion`, and then one of `Prepared`, `Unprepared` and `Refused`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vitrail_server.servable import Description, ImageSize, ModelSettings, Precision, Signature
from vitrail_server.work import Kind

Sizes = Mapping[tuple[int | None, Precision, Kind, ImageSize], tuple[int, float]]
"""Batch sizes and seconds that were measured, by largest size allowed, precision, program and image size."""


@dataclass(frozen=True, slots=True)
class Task:
    """A version to prepare."""

    name: str
    version: int
    path: Path
    freezes: bool
    sizes: Sizes
    """Batch sizes that were measured for the same graph."""
    time_slice: float
    batch_bytes: int
    intra_op_threads: int
    inter_op_threads: int


@dataclass(frozen=True, slots=True)
class Taken:
    """The process is alive and has begun."""


@dataclass(frozen=True, slots=True)
class Completion:
    """What the server makes of a signature. None: it refuses the model."""

    completed: tuple[Signature, ModelSettings] | None


@dataclass(frozen=True, slots=True)
class Refused:
    """The model cannot be served by anyone."""

    message: str
    cause: str = ""
    """All that the cause says, for the log alone."""
    out_of_memory: bool = False


@dataclass(frozen=True, slots=True)
class Unprepared:
    """The model can be served, but only by the process that loads it."""

    reason: str


class NotPrepared(Exception):
    """The model has something that only the process that loads it can use; the message says what."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where in the file a constant is."""

    start: int
    dtype: str
    """TensorFlow's name."""
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PackedGraph:
    """A flat graph whose constants are in a file."""

    definition: bytes
    """A GraphDef with a placeholder for every constant."""
    constants: Mapping[str, Place]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PackedGradient:
    """A traced gradient as a flat graph."""

    graph: PackedGraph
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    differentiable: frozenset[str]


@dataclass(frozen=True, slots=True)
class Prepared:
    """A version that another process has loaded, tried and measured."""

    description: Description
    forward: PackedGraph
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    gradient: PackedGradient | None
    fixed: bool
    """Its batch size is the only one possible."""


Answer = Taken | Signature | Prepared | Refused | Unprepared
