"""GRADIENT (Simonyan, Vedaldi and Zisserman, "Deep Inside Convolutional Networks", ICLR workshop 2014).

The derivative of the objective with respect to every pixel, or that times the pixel (gradient x
input), with the channels reduced to one value. One row per target: a forward and a backward pass,
whose outputs are those of the unperturbed image, so nothing else is evaluated.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from vitrail.errors import FailedPrecondition, InvalidArgument, VitrailError
from vitrail_server.explainers.notes import map_notes, plan_notes
from vitrail_server.explainers.objectives import score
from vitrail_server.explainers.question import Question, resolved_targets, targets_of, values_of
from vitrail_server.explainers.run import Diagnostics, Nothing, Plan, Summary, Tile, Work
from vitrail_server.servable import ImageSize
from vitrail_server.work import GradientRows, Kind, Result, Subject

Float = TypeVar("Float", np.float32, np.float64)
Reduction = Literal["NONE", "MAX_ABS", "SUM_ABS", "L2", "SUM", "MEAN"]
SIGNLESS: frozenset[Reduction] = frozenset({"MAX_ABS", "SUM_ABS", "L2"})
"""The reductions whose result has no sign."""


@dataclass(frozen=True, slots=True)
class GradientParameters:
    """The parameters of one gradient."""

    signed: bool = False
    """Keep the sign, where the reduction can."""
    channel_reduction: Reduction = "MAX_ABS"
    times_input: bool = False


class GradientRun:
    """One gradient in progress (`explainers.run.Run`).

    Raises:
        InvalidArgument: a sign is asked of a reduction that has none, or targets that do not fit.
        ResourceExhausted: more targets than the server allows.
        FailedPrecondition: the gradient does not exist through this model.

    """

    kind = Kind.GRADIENT
    grid = None

    def __init__(self, question: Question, parameters: GradientParameters) -> None:
        if question.description.capabilities.gradient_reason:
            reason = question.description.capabilities.gradient_reason
            raise FailedPrecondition(reason, field="spec.gradient")
        if parameters.signed and parameters.channel_reduction in SIGNLESS:
            raise InvalidArgument(
                f"spec.gradient.signed is true, but {parameters.channel_reduction} has no sign: use NONE, "
                "SUM or MEAN, or leave signed unset",
                field="spec.gradient.signed",
            )
        self._question = question
        self.parameters = parameters
        self._targets = targets_of(question)
        self._rows = self._targets.rows()
        self._values = values_of(question, self._targets.count)
        self._subject = Subject(question.image, question.inputs)
        height, width, channels = question.image.shape
        self.image_size: ImageSize = (height, width)
        shape = (self._targets.count, height, width)
        self.map_shape = (*shape, channels) if parameters.channel_reduction == "NONE" else shape
        self.plan: Plan | None = None
        self.error: VitrailError | None = None

        self._waiting = deque(range(self._targets.count))
        self._outstanding = 0
        self._stopped = False
        self._done = 0
        self._fresh: list[Tile] = []
        self._zero = [False] * self._targets.count
        self._non_finite = [0] * self._targets.count

    @property
    def finished(self) -> bool:
        """Nothing is out and nothing will come."""
        return self.error is not None or (not self._outstanding and (self._stopped or not self._waiting))

    def take(self, rows: int) -> Work | Nothing:
        """Hand out at most `rows` targets, in their order."""
        if self.error is not None or self._stopped or not self._waiting:
            return Nothing.WAIT if self._outstanding else Nothing.DONE
        tag = np.array([self._waiting.popleft() for _ in range(min(rows, len(self._waiting)))], np.int32)
        self._outstanding += 1
        question = self._question
        return Work(
            GradientRows(
                self._subject, question.output, self._rows[tag], question.objective, self._values[tag]
            ),
            tag,
        )

    def absorb(self, work: Work, result: Result) -> None:
        """Take in the outputs and gradients of `work`, in any order."""
        if result.gradients is None:
            raise TypeError("a gradient needs the results of a gradient program")
        self._outstanding -= 1
        self._done += len(work.tag)
        if self.plan is None:
            self._begin(result.outputs[0])
        for target, gradient in zip(work.tag.tolist(), result.gradients, strict=True):
            values = reduced(gradient, self._question.image, self.parameters)
            self._zero[target] = not values.any()
            self._non_finite[target] = int(values.size - np.count_nonzero(np.isfinite(values)))
            self._fresh.append(Tile(0, 0, target, values[None], self._done, final=True))

    def give_back(self, work: Work) -> None:
        """Take back targets that were not computed; they come first again."""
        self._outstanding -= 1
        self._waiting.extendleft(reversed(work.tag.tolist()))

    def fail(self, error: VitrailError) -> None:
        """End with `error`."""
        self.error = error

    def stop(self) -> None:
        """Finish with the targets that are computed or out."""
        self._stopped = True

    def tiles(self) -> Sequence[Tile]:
        """Return what is new since the last call."""
        fresh, self._fresh = self._fresh, []
        return fresh

    def summary(self) -> Summary:
        """Return how it went."""
        count = self._targets.count
        diagnostics = tuple(Diagnostics(non_finite_values=each) for each in self._non_finite)
        return Summary(
            partial=None if self._done == count else "TIME_BUDGET",
            measured_fraction=self._done / count,
            evaluated_windows=b"",
            done=self._done,
            skipped=0,
            dropped=count - self._done,
            diagnostics=diagnostics,
            warnings=map_notes(diagnostics, self._zero, self.plan),
        )

    def _begin(self, outputs: NDArray[np.float32]) -> None:
        """Resolve the targets and make the plan, now that the clean outputs (elements,) are known."""
        question = self._question
        indices = self._targets.resolve(outputs)
        scores = score(question.objective, outputs[None], indices, self._values)[0]
        self.plan = Plan(
            output=question.output,
            targets=resolved_targets(question, indices, outputs, scores),
            objective=question.objective,
            values=tuple(self._values.tolist()) if question.values else (),
            map_shape=self.map_shape,
            evaluations=self._targets.count,
            warnings=plan_notes(question, scores),
        )


@np.errstate(over="ignore", invalid="ignore")  # what is not finite passes through, and is counted
def reduced(
    gradient: NDArray[np.float32], image: NDArray[np.generic], parameters: GradientParameters
) -> NDArray[np.float32]:
    """Return the map (height, width), or (height, width, channels) for NONE, of one gradient (h, w, c)."""
    if parameters.channel_reduction == "MAX_ABS" and not parameters.times_input:
        # Nothing is rounded. Channel by channel, because all magnitudes at once are another array of the
        # gradient's size: half as long again, and what the next batch needs leaves the cache.
        return reduce(np.maximum, map(np.abs, np.moveaxis(gradient, -1, 0)))
    values = gradient.astype(np.float64)
    if parameters.times_input:
        values = values * image.astype(np.float64)
    if not parameters.signed:
        values = np.abs(values)
    result: NDArray[np.float64]
    match parameters.channel_reduction:
        case "NONE":
            result = values
        case "MAX_ABS":
            result = _over_channels(np.maximum, values)
        case "SUM_ABS" | "SUM":
            result = _over_channels(np.add, values)
        case "L2":
            result = np.sqrt(_over_channels(np.add, np.square(values)))
        case "MEAN":
            result = _over_channels(np.add, values) / values.shape[-1]
    return result.astype(np.float32)


def _over_channels(combine: np.ufunc, values: NDArray[Float]) -> NDArray[Float]:
    """Return `values` (height, width, channels) combined to (height, width).

    Channel after channel: NumPy's own reduction of a short last axis takes twenty times as long, which is a
    tenth of the gradient of a small network.
    """
    result: NDArray[Float] = reduce(combine, np.moveaxis(values, -1, 0))
    return result
