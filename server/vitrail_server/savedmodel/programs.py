"""The programs of a servable: rows of several Runs in, one padded batch through the model, results out.

One shape per program: a short batch is padded with its last row, so a row's result has the same bits
whoever is in the batch with it. NumPy only; the model is a function that is handed in.
"""

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vitrail.errors import FailedPrecondition
from vitrail_server.savedmodel.rows import NOTHING_HIDDEN, Arrays, RowBuffer, RowLayout, Window
from vitrail_server.wording import listed, quoted
from vitrail_server.work import GradientRows, Kind, OccludeRows, Result, Rows

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


class Evaluate:
    """Forwards of images with one window hidden each."""

    kind = Kind.FORWARD

    def __init__(self, forward: ForwardFunction) -> None:
        self._forward = forward

    def __call__(self, buffer: RowBuffer, parts: Sequence[Rows]) -> list[Result]:
        """Return the outputs; all parts are OccludeRows."""
        arrays = buffer.fill((part.subject, window) for part in parts for window in _windows(part))
        outputs = self._forward(arrays, {part.output for part in parts})
        return [Result(_flattened(outputs[part.output][span])) for part, span in _spans(parts)]


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
        arrays = buffer.fill((part.subject, NOTHING_HIDDEN) for part in parts for _ in range(len(part)))
        derivatives = self._derivatives([_gradient_rows(part) for part in parts], buffer.size)
        outputs, gradients = self._gradient(arrays, derivatives, {part.output for part in parts})
        return [Result(outputs[part.output][span], gradients[span]) for part, span in _spans(parts)]

    def _derivatives(self, parts: Sequence[GradientRows], size: int) -> Derivatives:
        """Return what each row asks for, padded with the last row's."""
        for part in parts:
            if part.output not in self._gradient.differentiable:
                raise FailedPrecondition(
                    f"output {quoted(part.output)} does not hold floating point numbers, so it has no "
                    f"gradient: explain {listed(sorted(self._gradient.differentiable))}, or use occlusion"
                )
        counts = [len(part) for part in parts]
        padding = (0, size - sum(counts))
        positions = [self._gradient.outputs.index(part.output) for part in parts]
        objectives = [part.objective.value for part in parts]
        return Derivatives(
            outputs=np.pad(np.repeat(positions, counts).astype(np.int32), padding, "edge"),
            targets=np.pad(np.concatenate([part.targets for part in parts]), padding, "edge"),
            objectives=np.pad(np.repeat(objectives, counts).astype(np.int32), padding, "edge"),
            values=np.pad(np.concatenate([part.values for part in parts]), padding, "edge"),
        )


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
        self._fixed = fixed
        self._clock = clock
        self._buffer = RowBuffer(layout, batch_size)

    def execute(self, parts: Sequence[Rows]) -> list[Result]:
        """Compute the rows, those of several Runs one after the other.

        Raises:
            OutOfMemory: the device could not hold the batch.
            FailedPrecondition: an output wanted has no gradient.

        """
        if self._buffer.size != self.batch_size:  # it was halved
            self._buffer = RowBuffer(self._layout, self.batch_size)
        began = self._clock()
        results = self._computation(self._buffer, parts)
        self.seconds += NEWEST * (self._clock() - began - self.seconds)
        return results

    def halve(self) -> bool:
        """Halve the batch size after running out of memory; False if it is 1, or fixed, already."""
        if self._fixed or self.batch_size == 1:
            return False
        self.batch_size //= 2
        self.seconds /= 2
        return True


def _spans(parts: Sequence[Rows]) -> Iterator[tuple[Rows, slice]]:
    """Yield each part with the rows of the batch that are its own."""
    start = 0
    for part in parts:
        yield part, slice(start, start + len(part))
        start += len(part)


def _windows(part: Rows) -> list[Window]:
    if not isinstance(part, OccludeRows):
        raise TypeError("a forward program takes OccludeRows")
    return [(top, left, bottom, right) for top, left, bottom, right in part.windows.tolist()]


def _gradient_rows(part: Rows) -> GradientRows:
    if not isinstance(part, GradientRows):
        raise TypeError("a gradient program takes GradientRows")
    return part


def _flattened(output: NDArray[np.generic]) -> NDArray[np.float32]:
    return output.reshape(len(output), -1).astype(np.float32, copy=False)
