"""Makes a program of a computation: tries it at several batch sizes and keeps the best, warm.

Every trial is one batch through `run`, so that the device can serve others in between.
"""

from collections.abc import Callable
from dataclasses import dataclass

from vitrail_server.savedmodel.graph import Activations
from vitrail_server.savedmodel.measure import (
    LARGEST_BATCH,
    TOLERANCE,
    Measured,
    choose_batch_size,
    fastest,
    row_bytes,
)
from vitrail_server.savedmodel.probe import Run, Sample, example_rows
from vitrail_server.savedmodel.programs import BatchProgram, Computation
from vitrail_server.work import Kind, Result


@dataclass(frozen=True, slots=True)
class Bench:
    """Where programs of one model are tried, and within which bounds."""

    run: Run
    clock: Callable[[], float]
    time_slice: float
    """Seconds that a batch may take."""
    batch_bytes: int
    """Memory that a batch may take, by estimate."""
    max_batch_size: int | None
    """The largest batch that the model's configuration allows. None: no limit."""
    fixed_batch_size: int | None
    """The only batch size that may be used. None: any."""
    activations: Activations

    def program(self, computation: Computation, sample: Sample, output: str) -> BatchProgram:
        """Return the program for images of the sample's size, warm; `output` is the one it is tried on.

        Raises:
            OutOfMemory: not even one image fits.

        """
        programs: dict[int, BatchProgram] = {}

        def compute(size: int) -> Result:
            if size not in programs:
                fixed = self.fixed_batch_size is not None
                programs[size] = BatchProgram(computation, sample.layout, size, fixed=fixed, clock=self.clock)
            rows = example_rows(computation.kind, sample.subjects[0], output, size)
            return programs[size].execute([rows])[0]

        def execute(size: int) -> float:
            return self.run(lambda: self._timed(lambda: compute(size)))

        def alike(size: int) -> bool:
            return rows_alike(self.run(lambda: compute(size)))

        chosen = self._chosen(execute, alike, computation.kind, sample)
        program = programs[chosen.batch_size]
        program.seconds = chosen.seconds
        return program

    def _chosen(
        self, execute: Callable[[int], float], alike: Callable[[int], bool], kind: Kind, sample: Sample
    ) -> Measured:
        if size := self.fixed_batch_size:
            return Measured(size, fastest(lambda: execute(size)))
        affordable = self.batch_bytes // row_bytes(kind, sample.layout.nbytes, self.activations)
        largest = min(self.max_batch_size or LARGEST_BATCH, max(1, affordable))
        return choose_batch_size(
            execute, alike, largest=largest, time_slice=self.time_slice, tolerance=TOLERANCE[kind]
        )

    def _timed(self, compute: Callable[[], object]) -> float:
        began = self.clock()
        compute()
        return self.clock() - began


def rows_alike(result: Result) -> bool:
    """Return whether all rows of a result have the same bits; the batch was the same row all along."""
    arrays = [result.outputs] if result.gradients is None else [result.outputs, result.gradients]
    return all(row.tobytes() == array[0].tobytes() for array in arrays for row in array)
