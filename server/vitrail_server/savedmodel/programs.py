"""The programs of a servable: rows of several Runs in, one padded batch through the model, results out.

One shape per program: a short batch is padded with its last row, so a row's result has the same bits
whoever is in the batch with it. NumPy only; the model is a function that is handed in.
"""

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from vitrail.errors import FailedPrecondition
from vitrail_server.savedmodel.rows import NOTHING_HIDDEN, Arrays, RowBuffer, RowLayout, Window
from vitrail_server.wording import listed, quoted
from vitrail_server.work import GradientRows, Kind, Objective, OccludeRows, PredictRows, Result, Rows, Subject

Element = TypeVar("Element", bound=np.generic)
AnyRows = TypeVar("AnyRows", bound=Rows)

NEWEST = 0.2
"""The weight of the newest batch in the mean duration."""


class ForwardFunction(Protocol):
    """The outputs of a model for a batch."""

    def __call__(self, arrays: Arrays, wanted: Collection[str]) -> Mapping[str, NDArray[np.generic]]:
        """Return the wanted outputs by name, as the model gives them: the first axis is the batch."""


@dataclass(frozen=True, slots=True, eq=False)
class Derivatives:
    """What is differentiated, per row of a batch; see `work.GradientRows`."""

    outputs: NDArray[np.int32]
    """(n,): the position in `GradientFunction.outputs` of the output wanted."""
    targets: NDArray[np.int32]
    objectives: NDArray[np.int32]
    values: NDArray[np.float32]


class GradientFunction(Protocol):
    """The outputs of a model for a batch, and the derivative of each row's objective by its image."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """The outputs, in the order that `Derivatives.outputs` counts."""

    @property
    def differentiable(self) -> frozenset[str]:
        """Those of them that have a gradient."""

    def __call__(
        self, arrays: Arrays, derivatives: Derivatives, wanted: Collection[str]
    ) -> tuple[Mapping[str, NDArray[np.float32]], NDArray[np.float32]]:
        """Return the wanted outputs (n, elements) by name and the gradients (n, height, width, channels)."""


class Computation(Protocol):
    """What a program computes for a batch."""

    @property
    def kind(self) -> Kind:
        """The rows it takes."""

    def __call__(self, buffer: RowBuffer, parts: Sequence[Rows]) -> list[Result]:
        """Return one result per part; together the parts fit into the buffer."""


class RowSource(Protocol):
    """Builds a padded batch in its own way; see `resident.ResidentRows`."""

    def __call__(self, layout: RowLayout, size: int, parts: Sequence[Rows]) -> Arrays:
        """Return one array per input of the model, the last row repeated to the end of the batch."""


class Evaluate:
    """Forwards of images, whole or with one window hidden each."""

    kind = Kind.FORWARD

    def __init__(self, forward: ForwardFunction, rows: RowSource | None = None) -> None:
        """`rows` builds batches elsewhere than in the program's buffer. None: nowhere else."""
        self._forward = forward
        self._rows = rows

    def __call__(self, buffer: RowBuffer, parts: Sequence[Rows]) -> list[Result]:
        """Return the outputs; all parts are OccludeRows or PredictRows."""
        if self._rows is None:
            arrays = buffer.fill(row for part in parts for row in self._images(part, buffer.layout))
        else:
            arrays = self._rows(buffer.layout, buffer.size, parts)
        outputs = self._forward(arrays, {name for part in parts for name in _wanted(part)})
        return [_evaluated(part, outputs, span) for part, span in _spans(parts)]

    def _images(self, part: Rows, layout: RowLayout) -> Iterator[tuple[Subject, Window]]:
        match part:
            case OccludeRows():
                for top, left, bottom, right in part.windows.tolist():
                    yield part.subject, (top, left, bottom, right)
            case PredictRows():
                for row in range(len(part)):
                    others = {name: part.inputs[name][row] for name in layout.others}
                    yield Subject(part.inputs[layout.image_input][row], others), NOTHING_HIDDEN
            case _:
                raise TypeError("a forward program takes OccludeRows and PredictRows")


class Differentiate:
    """Forwards and backwards of whole images."""

    kind = Kind.GRADIENT

    def __init__(self, gradient: GradientFunction) -> None:
        self._gradient = gradient

    def __call__(self, buffer: RowBuffer, parts: Sequence[Rows]) -> list[Result]:
        """Return outputs and gradients; all parts are GradientRows.

        Raises:
            FailedPrecondition: an output wanted has no gradient.

        """
        rows = [_gradient_rows(part) for part in parts]
        arrays = buffer.fill((part.subject, NOTHING_HIDDEN) for part in rows for _ in range(len(part)))
        derivatives = self._derivatives(rows, buffer.size)
        outputs, gradients = self._gradient(arrays, derivatives, {part.output for part in rows})
        return [Result(outputs[part.output][span], gradients[span]) for part, span in _spans(rows)]

    def _derivatives(self, parts: Sequence[GradientRows], size: int) -> Derivatives:
        """Return what each row asks for, padded with the last row's."""
        for part in parts:
            if part.output not in self._gradient.differentiable:
                raise FailedPrecondition(
                    f"output {quoted(part.output)} does not hold floating point numbers, so it has no "
                    f"gradient: explain {listed(sorted(self._gradient.differentiable))}, or use occlusion"
                )
        counts = [len(part) for part in parts]
        padding = size - sum(counts)
        positions = [self._gradient.outputs.index(part.output) for part in parts]
        objectives = [part.objective.value for part in parts]
        return Derivatives(
            outputs=_padded(np.repeat(positions, counts).astype(np.int32), padding),
            targets=_padded(np.concatenate([part.targets for part in parts]), padding),
            objectives=_padded(np.repeat(objectives, counts).astype(np.int32), padding),
            values=_padded(np.concatenate([part.values for part in parts]), padding),
        )


def _padded(array: NDArray[Element], padding: int) -> NDArray[Element]:
    """Return the array with its last element repeated so many times."""
    return np.concatenate([array, np.repeat(array[-1:], padding)]) if padding else array


class BatchProgram:
    """A computation at a fixed batch size: a `servable.Program`."""

    def __init__(
        self,
        computation: Computation,
        layout: RowLayout,
        batch_size: int,
        *,
        seconds: float = 0.0,
        fixed: bool = False,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.kind = computation.kind
        self.batch_size = batch_size
        self.seconds = seconds
        self._computation = computation
        self._layout = layout
        self.fixed = fixed
        self._clock = clock
        self._buffer = RowBuffer(layout, batch_size)
        self._single = RowBuffer(layout, 1)

    def execute(self, parts: Sequence[Rows]) -> list[Result]:
        """Compute the rows, those of several Runs one after the other.

        A prediction of one image that comes alone is not padded: the caller waits for nothing else, and no
        map depends on its last bits.

        Raises:
            OutOfMemory: the device could not hold the batch.
            FailedPrecondition: an output wanted has no gradient.

        """
        if not self.fixed and len(parts) == len(parts[0]) == 1 and isinstance(parts[0], PredictRows):
            return self._computation(self._single, parts)
        if self._buffer.size != self.batch_size:  # it was halved
            self._buffer = RowBuffer(self._layout, self.batch_size)
        began = self._clock()
        results = self._computation(self._buffer, parts)
        self.seconds += NEWEST * (self._clock() - began - self.seconds)
        return results

    def warm(self, subject: Subject, output: str) -> None:
        """Let every shape that it has run once; `subject` is an example.

        Raises:
            OutOfMemory: the device could not hold the batch.

        """
        self.execute([example_rows(self.kind, subject, output, self.batch_size)])
        if self.kind is Kind.FORWARD:
            inputs = {**subject.inputs, self._layout.image_input: subject.image}
            alone = {name: array[None] for name, array in inputs.items()}
            self.execute([PredictRows(alone, (output,), 1)])

    def halve(self) -> bool:
        """Halve the batch size after running out of memory; False if it is 1, or fixed, already."""
        if self.fixed or self.batch_size == 1:
            return False
        self.batch_size //= 2
        self.seconds /= 2
        return True


def example_rows(kind: Kind, subject: Subject, output: str, count: int) -> Rows:
    """Return rows of the ordinary kind: a window in the middle, or the highest element."""
    match kind:
        case Kind.FORWARD:
            height, width, _ = subject.image.shape
            window = [height // 4, width // 4, height - height // 4, width - width // 4]
            return OccludeRows(subject, output, np.array([window] * count, np.int32))
        case Kind.GRADIENT:
            return GradientRows(
                subject,
                output,
                targets=np.full(count, -1, np.int32),
                objective=Objective.OUTPUT,
                values=np.zeros(count, np.float32),
            )
        case Kind.PREDICT:
            raise ValueError("no example is needed of an inference")


def _spans(parts: Sequence[AnyRows]) -> Iterator[tuple[AnyRows, slice]]:
    """Yield each part with the rows of the batch that are its own."""
    start = 0
    for part in parts:
        yield part, slice(start, start + len(part))
        start += len(part)


def _wanted(part: Rows) -> tuple[str, ...]:
    return part.outputs if isinstance(part, PredictRows) else (part.output,)


def _evaluated(part: Rows, outputs: Mapping[str, NDArray[np.generic]], span: slice) -> Result:
    if isinstance(part, PredictRows):
        return predicted({name: outputs[name][span] for name in part.outputs}, len(part))
    return Result(_flattened(outputs[part.output][span]))


def predicted(tensors: Mapping[str, NDArray[np.generic]], rows: int) -> Result:
    """Return the result of PredictRows."""
    return Result(np.zeros((rows, 0), np.float32), tensors=tensors)


def _gradient_rows(part: Rows) -> GradientRows:
    if not isinstance(part, GradientRows):
        raise TypeError("a gradient program takes GradientRows")
    return part


def _flattened(output: NDArray[np.generic]) -> NDArray[np.float32]:
    return output.reshape(len(output), -1).astype(np.float32, copy=False)
