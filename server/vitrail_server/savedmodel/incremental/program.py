"""The program of one explanation that is evaluated incrementally: a plan, and what is kept of its image.

Every explanation has its own, so its batches hold its own rows only, and what is kept goes when it ends.
The tables are made in its first batch, whose first row is the clean image: that row goes through the same
function as all the others, with the pixels of the image itself in its window.
"""

import time
from collections.abc import Callable, Sequence

import numpy as np

from vitrail_server.savedmodel.incremental.evaluator import Evaluator, Tables
from vitrail_server.savedmodel.programs import NEWEST
from vitrail_server.wording import reason_of
from vitrail_server.work import Kind, OccludeRows, OutOfMemory, Result, Rows, Subject


class Prepared:
    """A plan that was tried and found good; shared by the explanations of its grid."""

    def __init__(self, evaluator: Evaluator, batch_size: int, seconds: float) -> None:
        self.evaluator = evaluator
        self.batch_size = batch_size
        self.seconds = seconds
        """How long a batch takes, as last measured."""
        self.failure = ""
        """Why it is not used any more; empty if it is."""


class IncrementalProgram:
    """Evaluates the windows of one image: a `servable.OwnProgram`."""

    kind = Kind.FORWARD

    def __init__(
        self,
        prepared: Prepared,
        give_back: Callable[[], None],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`give_back` is called when what is kept of the image is let go."""
        self.batch_size = prepared.batch_size
        self.seconds = prepared.seconds
        self._prepared = prepared
        self._give_back = give_back
        self._clock = clock
        self._tables: tuple[Subject, Tables] | None = None

    def execute(self, parts: Sequence[Rows]) -> list[Result]:
        """Compute the rows, all of one image.

        Raises:
            OutOfMemory: the device could not hold the batch.

        """
        try:
            return [self._computed(part) for part in parts]
        except OutOfMemory:
            if self.batch_size == 1:
                self._prepared.failure = "it ran out of memory with a single window"
            raise
        except Exception as error:
            self._prepared.failure = f"it failed: {reason_of(error)}"
            raise

    def halve(self) -> bool:
        """Halve the batch size after running out of memory, for later explanations too; False if it is 1."""
        if self.batch_size == 1:
            return False
        self.batch_size //= 2
        self.seconds /= 2
        self._prepared.batch_size = min(self._prepared.batch_size, self.batch_size)
        self._prepared.seconds = self.seconds
        return True

    def close(self) -> None:
        """Let go of what is kept of the image; a second time does nothing."""
        self._tables = None
        self._give_back()

    def _computed(self, part: Rows) -> Result:
        if not isinstance(part, OccludeRows):
            raise TypeError("an incremental program takes OccludeRows")
        evaluator, rows = self._prepared.evaluator, len(part)
        tables = self._tables_of(part.subject)
        began = self._clock()
        windows = np.pad(part.windows, ((0, self.batch_size - rows), (0, 0)), "edge")
        output = evaluator.outputs(tables, part.subject, windows, {part.output})[part.output][:rows]
        self.seconds += NEWEST * (self._clock() - began - self.seconds)
        self._prepared.seconds = self.seconds
        return Result(output.reshape(rows, -1).astype(np.float32, copy=False))

    def _tables_of(self, subject: Subject) -> Tables:
        if self._tables is None or self._tables[0] is not subject:
            self._tables = subject, self._prepared.evaluator.tables(subject)
        return self._tables[1]
