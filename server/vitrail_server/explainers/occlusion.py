"""OCCLUSION (Zeiler and Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014).

One window of the image after the other is replaced by a fill; its score is how much that hurts the
objective. A pixel's value is the mean score of the windows that cover it. The unperturbed image is the
first row of the first batch, so it costs one evaluation and no batch of its own; until it has come
back, results are kept as they are, because they are compared with it.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vitrail.errors import FailedPrecondition, InvalidArgument, ResourceExhausted, VitrailError
from vitrail_server.explainers.fills import Constant, Fill, filled
from vitrail_server.explainers.grid import (
    Edge,
    Order,
    evaluation_order,
    pixel_cells,
    rectangles_of,
    window_cells,
    windows_along,
)
from vitrail_server.explainers.mosaic import Mosaic
from vitrail_server.explainers.notes import map_notes, plan_notes
from vitrail_server.explainers.objectives import score, window_scores
from vitrail_server.explainers.question import Question, resolved_targets, targets_of, values_of
from vitrail_server.explainers.run import Diagnostics, Nothing, Plan, Summary, Tile, Work
from vitrail_server.servable import ImageSize, WindowGrid
from vitrail_server.work import Kind, OccludeRows, Result, Subject

Resolution = Literal["PIXELS", "WINDOWS"]

CLEAN = -1
"""The tag of the row with the unperturbed image; windows have their raster position, 0 and up."""


@dataclass(frozen=True, slots=True)
class OcclusionParameters:
    """The parameters of one occlusion; as a request they may be open, in a Run they are effective."""

    patch: tuple[int, int]
    """Rows and columns of the window, in pixels."""
    stride: tuple[int, int] | None = None
    """None: the patch."""
    fill: Fill | None = None
    """None: the fill of the model's configuration."""
    edge: Edge = "CLIP"
    absolute: bool = False
    """The absolute value of each window's score."""
    resolution: Resolution = "PIXELS"
    order: Order = "RASTER"


class OcclusionRun:
    """One occlusion in progress (`explainers.run.Run`).

    Raises:
        InvalidArgument: patch, stride or fill that do not fit the image, or targets that do not fit
            the output.
        ResourceExhausted: more targets, or windows times targets, than the server allows.
        FailedPrecondition: the model's answer for one image depends on its company.

    """

    kind = Kind.FORWARD

    def __init__(self, question: Question, parameters: OcclusionParameters) -> None:
        if question.description.capabilities.occlusion_reason:
            raise FailedPrecondition(
                question.description.capabilities.occlusion_reason, field="spec.occlusion"
            )
        height, width, _ = question.image.shape
        patch, stride = _checked(parameters, height, width)
        self._question = question
        self._targets = targets_of(question)
        fill = parameters.fill or Constant(question.description.settings.fill)
        effective, values = filled(fill, question.image)
        self.parameters = replace(parameters, stride=stride, fill=effective)

        rows, columns = (
            windows_along(size, p, s, parameters.edge)
            for size, p, s in zip((height, width), patch, stride, strict=True)
        )
        self._check_size(len(rows) * len(columns))
        self._subject = Subject(
            question.image, question.inputs, np.broadcast_to(values, question.image.shape)
        )
        self._rows, self._columns = rows, columns
        self._window_count = len(rows) * len(columns)
        self.grid = WindowGrid(rows.edges, columns.edges)
        cells = pixel_cells if parameters.resolution == "PIXELS" else window_cells
        self._mosaic = Mosaic(cells(rows), cells(columns), parameters.order, self._targets.count)
        self.map_shape = (self._targets.count, *self._mosaic.map_size)
        self.image_size: ImageSize = (height, width)
        self.plan: Plan | None = None
        self.error: VitrailError | None = None

        order = evaluation_order(len(rows), len(columns), parameters.order)
        same = self._unchanged()[order]
        self._skipped = order[same]
        self._waiting = order[~same]  # from `_next` on; nothing larger than this is kept per window
        self._next = 0
        self._first = deque([CLEAN])  # before those
        self._outstanding = 0
        self._stopped = False
        self._early: list[tuple[NDArray[np.int32], NDArray[np.float32]]] = []  # results before the clean one
        self._clean: NDArray[np.float32] | None = None
        self._done = 0
        self._lowest = np.full(self._targets.count, np.inf)
        self._lowest_window = np.full(self._targets.count, self._window_count, np.int64)
        self._hidden: NDArray[np.float64] | None = None
        self._class_changes = 0

    @property
    def finished(self) -> bool:
        """Nothing is out and nothing will come."""
        return self.error is not None or (not self._outstanding and (self._stopped or not self._left))

    def take(self, rows: int) -> Work | Nothing:
        """Hand out at most `rows` rows, in the order of evaluation."""
        if self.error is not None or self._stopped or not self._left:
            return Nothing.WAIT if self._outstanding else Nothing.DONE
        first = [self._first.popleft() for _ in range(min(rows, len(self._first)))]
        then = self._waiting[self._next : self._next + rows - len(first)]
        self._next += len(then)
        tag = np.concatenate([np.array(first, np.int32), then])
        windows = rectangles_of(self._rows, self._columns, np.maximum(tag, 0))
        windows[tag == CLEAN] = 0
        self._outstanding += 1
        return Work(OccludeRows(self._subject, self._question.output, windows), tag)

    def absorb(self, work: Work, result: Result) -> None:
        """Take in the outputs of `work`, in any order."""
        self._outstanding -= 1
        self._done += len(work.tag)
        self._early.append((work.tag, result.outputs))
        clean = np.flatnonzero(work.tag == CLEAN)
        if len(clean):
            self._begin(result.outputs[clean[0]])
        if self._clean is not None:
            for tag, outputs in self._early:
                self._score(tag[tag != CLEAN], outputs[tag != CLEAN])
            self._early.clear()

    def give_back(self, work: Work) -> None:
        """Take back rows that were not computed; they come first again."""
        self._outstanding -= 1
        self._first.extendleft(reversed(work.tag.tolist()))

    def fail(self, error: VitrailError) -> None:
        """End with `error`."""
        self.error = error

    def stop(self) -> None:
        """Finish with the windows that are evaluated or out."""
        self._stopped = True

    def tiles(self) -> Sequence[Tile]:
        """Return what is new since the last call."""
        return list(self._mosaic.tiles(self._done + len(self._skipped))) if self.plan else ()

    def summary(self) -> Summary:
        """Return how it went."""
        evaluated = self._mosaic.evaluated
        whole = bool(evaluated.all())
        diagnostics = self._diagnostics()
        announced = self._window_count + 1
        zero = [not scores.any() for scores in self._mosaic.scores] if whole else []
        return Summary(
            partial=None if whole else "TIME_BUDGET",
            measured_fraction=float(evaluated.mean()),
            evaluated_windows=b"" if whole else np.packbits(evaluated, bitorder="little").tobytes(),
            done=self._done,
            skipped=len(self._skipped),
            dropped=announced - self._done - len(self._skipped),
            diagnostics=diagnostics,
            warnings=map_notes(diagnostics, zero=zero, plan=self.plan),
        )

    @property
    def _left(self) -> int:
        """How many rows were not handed out, or were given back."""
        return len(self._first) + len(self._waiting) - self._next

    def _check_size(self, windows: int) -> None:
        scores = windows * self._targets.count
        if scores > self._question.limits.scores:
            raise ResourceExhausted(
                f"{windows} windows times {self._targets.count} targets are {scores} scores; at most "
                f"{self._question.limits.scores} are allowed per explanation: use a larger stride or fewer "
                "targets",
                field="spec.occlusion.stride",
            )

    def _unchanged(self) -> NDArray[np.bool_]:
        """Return (windows,): whether a window shows the fill already, so that hiding it changes nothing."""
        if self._question.description.capabilities.non_deterministic:
            return np.zeros(self._window_count, np.bool_)
        differs = (self._subject.image != self._subject.fill).any(-1)
        total = np.zeros((differs.shape[0] + 1, differs.shape[1] + 1), np.int32)
        total[1:, 1:] = differs.cumsum(0, np.int32).cumsum(1)
        below, above = total[self._rows.stops], total[self._rows.starts]
        left, right = self._columns.starts, self._columns.stops
        return np.asarray(below[:, right] - above[:, right] == below[:, left] - above[:, left]).ravel()

    def _begin(self, clean: NDArray[np.float32]) -> None:
        """Resolve the targets and make the plan, now that the clean outputs (elements,) are known."""
        question = self._question
        self._clean = clean
        self._indices = self._targets.resolve(clean)
        self._values = values_of(question, self._targets.count)
        self._base = score(question.objective, clean[None], self._indices, self._values)[0]
        self._mosaic.record(self._skipped, np.zeros((len(self._skipped), self._targets.count), np.float32))
        self._track_lowest(self._skipped, np.broadcast_to(self._base, (len(self._skipped), len(self._base))))
        self.plan = Plan(
            output=question.output,
            targets=resolved_targets(question, self._indices, clean, self._base),
            objective=question.objective,
            values=tuple(self._values.tolist()) if question.values else (),
            map_shape=self.map_shape,
            evaluations=self._window_count + 1,
            warnings=plan_notes(question, self._base),
            window_grid=self._mosaic.evaluated.shape,
        )

    def _score(self, windows: NDArray[np.int32], outputs: NDArray[np.float32]) -> None:
        """Compare the outputs (n, elements) of occluded images with the clean ones."""
        if not len(windows):
            return
        occluded = score(self._question.objective, outputs, self._indices, self._values)
        scores = window_scores(
            self._question.objective, self._base, occluded, absolute=self.parameters.absolute
        )
        self._mosaic.record(windows, scores)
        self._track_lowest(windows, occluded)
        if self._clean is not None and len(self._clean) > 1:
            self._class_changes += int((outputs.argmax(1) != self._clean.argmax()).sum())

    def _track_lowest(self, windows: NDArray[np.int32], occluded: NDArray[np.float64]) -> None:
        # Among equals the first window in raster order wins, whatever the order of evaluation.
        for window, objectives in zip(windows, occluded, strict=True):
            lower = (objectives < self._lowest) | (
                (objectives == self._lowest) & (window < self._lowest_window)
            )
            self._lowest[lower] = objectives[lower]
            self._lowest_window[lower] = window
            if self.parameters.patch == self.image_size:
                self._hidden = objectives

    def _diagnostics(self) -> tuple[Diagnostics, ...]:
        classifier = self._question.description.task == "CLASSIFICATION" and self._question.elements > 1
        return tuple(
            Diagnostics(
                non_finite_values=int(non_finite),
                lowest_score=float(lowest) if np.isfinite(lowest) else None,
                lowest_window=int(window) if np.isfinite(lowest) else None,
                hidden_score=float(self._hidden[k]) if self._hidden is not None else None,
                class_changes=self._class_changes if classifier else None,
            )
            for k, (non_finite, lowest, window) in enumerate(
                zip(self._mosaic.non_finite_values(), self._lowest, self._lowest_window, strict=True)
            )
        )


def _checked(
    parameters: OcclusionParameters, height: int, width: int
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return patch and stride, both effective, that fit an image of this size."""
    patch = parameters.patch
    stride = parameters.stride or patch
    for axis, p, s, size in zip(("rows", "columns"), patch, stride, (height, width), strict=True):
        if not 1 <= p <= size:
            raise InvalidArgument(
                f"spec.occlusion.patch.{axis} is {p}; it must be 1 to {size}, the image's {axis}",
                field=f"spec.occlusion.patch.{axis}",
            )
        if not 1 <= s <= p:
            raise InvalidArgument(
                f"spec.occlusion.stride.{axis} is {s}; it must be 1 to {p}, the patch, so that every pixel "
                "is covered",
                field=f"spec.occlusion.stride.{axis}",
            )
    return patch, stride
