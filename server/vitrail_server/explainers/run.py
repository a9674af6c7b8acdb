"""A Run: one explanation, or one inference, in progress, without any I/O.

The scheduler asks a Run for rows (`take`), the device computes them, the Run takes the results in
(`absorb`), in any order. Whatever can go wrong has a verb too: `give_back` when a batch did not fit,
`fail` when it failed, `stop` when time is short. The rpc layer reads `plan`, `tiles` and `summary`.
Nothing here waits, sleeps, locks or knows a thread; every method is called on the event loop.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from vitrail.errors import VitrailError
from vitrail_server.servable import ImageSize, WindowGrid
from vitrail_server.work import Kind, Objective, Result, Rows


class Nothing(Enum):
    """Why a Run hands out no rows."""

    WAIT = "rows are out, and what they bring decides what comes next"
    DONE = "there will never be more rows"


@dataclass(frozen=True, slots=True, eq=False)
class Work:
    """Rows that a Run handed out, until it absorbs them or takes them back."""

    rows: Rows
    tag: NDArray[np.int32]
    """(n,): what each row is, in the Run's own terms."""


@dataclass(frozen=True, slots=True)
class ResolvedTarget:
    """One element of the output, as explained."""

    index: int
    label: str
    """Empty if it has no name."""
    output: float
    """The output for the unperturbed image."""
    score: float
    """The objective for the unperturbed image."""


class WarningKind(Enum):
    """What the reader of a map should know; named as on the wire."""

    NON_DETERMINISTIC = "NON_DETERMINISTIC"
    RESIDUAL_NEAR_ZERO = "RESIDUAL_NEAR_ZERO"
    ZERO_MAP = "ZERO_MAP"
    SATURATED = "SATURATED"
    NON_FINITE = "NON_FINITE"


@dataclass(frozen=True, slots=True)
class Note:
    """A warning with its sentence."""

    kind: WarningKind
    message: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be computed; known when the model has answered for the unperturbed image."""

    output: str
    targets: tuple[ResolvedTarget, ...]
    objective: Objective
    values: tuple[float, ...]
    """The true value per target for SQUARED_ERROR, else empty."""
    map_shape: tuple[int, ...]
    """(targets, height, width) or (targets, height, width, channels)."""
    evaluations: int
    warnings: tuple[Note, ...]
    window_grid: tuple[int, int] | None = None
    """Rows and columns of windows, for occlusion."""


@dataclass(frozen=True, slots=True, eq=False)
class Tile:
    """A rectangle of the map with its values."""

    row: int
    column: int
    first_target: int
    values: NDArray[np.float32]
    """(targets, height, width) or (targets, height, width, channels)."""
    evaluations_done: int
    """How many of the plan's evaluations were done or skipped by then."""
    final: bool

    def split(self, max_bytes: int) -> Iterator["Tile"]:
        """Yield tiles of at most `max_bytes` of values (at least one value each) that cover this one."""
        axis = next((axis for axis, size in enumerate(self.values.shape[:3]) if size > 1), None)
        if self.values.nbytes <= max_bytes or axis is None:
            yield self
            return
        middle = self.values.shape[axis] // 2
        offset = [0, 0, 0]
        for part in np.split(self.values, [middle], axis):
            yield from replace(
                self,
                first_target=self.first_target + offset[0],
                row=self.row + offset[1],
                column=self.column + offset[2],
                values=part,
            ).split(max_bytes)
            offset[axis] = middle


@dataclass(frozen=True, slots=True)
class Diagnostics:
    """What the scores of one target say beside the map. None: does not apply."""

    non_finite_values: int
    lowest_score: float | None = None
    lowest_window: int | None = None
    hidden_score: float | None = None
    class_changes: int | None = None


@dataclass(frozen=True, slots=True)
class Summary:
    """How it went."""

    partial: Literal["TIME_BUDGET"] | None
    """Why the map is not whole; None if it is."""
    measured_fraction: float
    evaluated_windows: bytes
    """One bit per window in raster order, lowest bit first; empty for a whole map or a gradient."""
    done: int
    skipped: int
    dropped: int
    diagnostics: tuple[Diagnostics, ...]
    warnings: tuple[Note, ...]


class Run(Protocol):
    """An explanation or an inference in progress, as scheduler and device see it."""

    @property
    def kind(self) -> Kind:
        """The Program that its rows are for."""

    @property
    def finished(self) -> bool:
        """Nothing is out and nothing will come."""

    @property
    def error(self) -> VitrailError | None:
        """Why it failed; None if it did not."""

    def take(self, rows: int) -> Work | Nothing:
        """Hand out at most `rows` rows, at least one."""

    def absorb(self, work: Work, result: Result) -> None:
        """Take in what was computed for `work`."""

    def give_back(self, work: Work) -> None:
        """Take back rows that were not computed; `take` hands them out again."""

    def fail(self, error: VitrailError) -> None:
        """End with `error`; whatever is out is forgotten."""

    def stop(self) -> None:
        """Hand out nothing more, and finish with what is there: the time budget is spent."""


class Explanation(Run, Protocol):
    """An explanation in progress: a Run that makes a map.

    Once it has `finished`, `tiles` and `summary` are the last word.
    """

    @property
    def image_size(self) -> ImageSize:
        """The size of its image, which with `kind` names the Program."""

    @property
    def grid(self) -> WindowGrid | None:
        """The windows that it hides in turn; None if it hides none."""

    @property
    def map_shape(self) -> tuple[int, ...]:
        """(targets, height, width) or (targets, height, width, channels), known from the start."""

    @property
    def plan(self) -> Plan | None:
        """None until the model has answered for the unperturbed image."""

    def tiles(self) -> Sequence[Tile]:
        """Return the tiles that bring a client up to date since the last call.

        Called when the client can take them: what a slow reader missed is merged.
        """

    def summary(self) -> Summary:
        """Return how it went; to be called once `finished`, without error."""
