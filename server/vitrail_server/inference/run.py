"""An inference as a Run: its rows to the device, its outputs back, in order.

Like an explanation's, its rows may be computed in several batches and with others' rows. A row that only
fills the place beside an occlusion's is free, so a request to a program that explains is split gladly; one
to a predict program, whose batches are as long as they come, stays together as long as it fits.
"""

from collections import deque
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from vitrail.errors import DeadlineExceeded, Internal, VitrailError
from vitrail_server.explainers.run import Nothing, Work
from vitrail_server.servable import Program
from vitrail_server.wording import quoted
from vitrail_server.work import Kind, PredictRows, Result

Tensors = Mapping[str, NDArray[np.generic]]


class InferenceRun:
    """One inference in progress (`explainers.run.Run`); `program` is the one that its rows are for."""

    def __init__(self, rows: PredictRows, program: Program) -> None:
        self.rows = rows
        self.kind: Kind = program.kind
        self.error: VitrailError | None = None
        self._program = program
        self._waiting = deque(range(len(rows)))
        self._outstanding = 0
        self._parts: list[tuple[NDArray[np.int32], Tensors]] = []

    @property
    def finished(self) -> bool:
        """Nothing is out and nothing will come."""
        return self.error is not None or (not self._outstanding and not self._waiting)

    def take(self, rows: int) -> Work | Nothing:
        """Hand out at most `rows` rows, or all of them at once where they would rather stay together."""
        if self.error is not None or not self._waiting:
            return Nothing.WAIT if self._outstanding else Nothing.DONE
        if self.kind is Kind.PREDICT and rows < min(len(self._waiting), self._program.batch_size):
            return Nothing.WAIT
        tag = np.array([self._waiting.popleft() for _ in range(min(rows, len(self._waiting)))], np.int32)
        self._outstanding += 1
        return Work(self._chosen(tag), tag)

    def absorb(self, work: Work, result: Result) -> None:
        """Take in the outputs of `work`, in any order."""
        if result.tensors is None:
            raise TypeError("an inference needs the results of PredictRows")
        self._outstanding -= 1
        self._parts.append((work.tag, result.tensors))

    def give_back(self, work: Work) -> None:
        """Take back rows that were not computed; they come first again."""
        self._outstanding -= 1
        self._waiting.extendleft(reversed(work.tag.tolist()))

    def fail(self, error: VitrailError) -> None:
        """End with `error`."""
        self.error = error

    def stop(self) -> None:
        """End without an answer: half an inference is none."""
        self.fail(DeadlineExceeded("the time of the request is over"))

    def outputs(self) -> Tensors:
        """Return the wanted outputs, once finished without error.

        Raises:
            Internal: the rows of an output cannot be told apart, and they were computed in several batches.

        """
        if len(self._parts) == 1:
            return self._parts[0][1]
        order = np.argsort(np.concatenate([tag for tag, _ in self._parts]), kind="stable")
        return {name: self._joined(name)[order] for name in self.rows.outputs}

    def _joined(self, name: str) -> NDArray[np.generic]:
        for tag, tensors in self._parts:
            if tensors[name].shape[:1] != tag.shape:
                raise Internal(
                    f"output {quoted(name)} has no row per row of the inputs, and cannot be computed in parts"
                )
        return np.concatenate([tensors[name] for _, tensors in self._parts])

    def _chosen(self, tag: NDArray[np.int32]) -> PredictRows:
        rows = self.rows
        if len(tag) == len(rows):
            return rows
        inputs = {name: array[tag] for name, array in rows.inputs.items()}
        return PredictRows(inputs, rows.outputs, len(tag), rows.batched)
