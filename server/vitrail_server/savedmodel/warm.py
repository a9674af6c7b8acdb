"""Makes a program of a computation: tries it at several batch sizes and keeps the best, warm.

Every trial is one batch through `run`, so that the device can serve others in between.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from vitrail_server.savedmodel.graph import Activations
from vitrail_server.savedmodel.measure import (
    LARGEST_BATCH,
    TOLERANCE,
    Measured,
    choose_batch_size,
    fastest,
    row_bytes,
)
from vitrail_server.savedmodel.probe import Run, Sample
from vitrail_server.savedmodel.programs import BatchProgram, Computation, example_rows
from vitrail_server.work import Kind, Result, Rows, Subject

FEWEST_TRIALS, MOST_TRIALS, TRIAL_SECONDS = 2, 128, 1.0
"""How often, and for how long, the slots of a batch are compared."""


@dataclass(frozen=True, slots=True)
class Bench:
    """Where programs of one model are tried, and within which bounds."""

    run: Run
    clock: Callable[[], float]
    time_slice: float
    """Seconds that a batch may take."""
    batch_bytes: int
    """Memory that a batch may take, by estimate."""
    input_bytes: int | None
    """Bytes of inputs that a batch may have. None: any."""
    max_batch_size: int | None
    """The largest batch that the model's configuration allows. None: no limit."""
    fixed_batch_size: int | None
    """The only batch size that may be used. None: any."""
    activations: Activations

    def program(
        self,
        computation: Computation,
        sample: Sample,
        output: str,
        known: tuple[int, float] | None = None,
    ) -> BatchProgram:
        """Return the program for images of the sample's size, warm; `output` is the one it is tried on.

        `known` are a batch size and its seconds from an earlier measurement, which is not made again.

        Raises:
            OutOfMemory: not even one image fits.

        """
        programs: dict[int, BatchProgram] = {}

        def program(size: int) -> BatchProgram:
            if size not in programs:
                fixed = self.fixed_batch_size is not None
                programs[size] = BatchProgram(computation, sample.layout, size, fixed=fixed, clock=self.clock)
            return programs[size]

        def execute(size: int) -> float:
            rows = example_rows(computation.kind, sample.subjects[0], output, size)
            return self.run(lambda: self._timed(program(size), [rows]))

        def alike(size: int) -> bool:
            return self._slots_alike(program(size), sample, output)

        if known and self.fixed_batch_size in (None, known[0]):
            chosen = Measured(*known)
        else:
            chosen = self._chosen(execute, alike, computation.kind, sample)
        best = program(chosen.batch_size)
        self.run(lambda: best.warm(sample.subjects[0], output))
        best.seconds = chosen.seconds
        return best

    def _chosen(
        self, execute: Callable[[int], float], alike: Callable[[int], bool], kind: Kind, sample: Sample
    ) -> Measured:
        if size := self.fixed_batch_size:
            return Measured(size, fastest(lambda: execute(size)))
        affordable = self.batch_bytes // row_bytes(kind, sample.layout.nbytes, self.activations)
        if self.input_bytes is not None:
            affordable = min(affordable, self.input_bytes // sample.layout.nbytes)
        largest = min(self.max_batch_size or LARGEST_BATCH, max(1, affordable))
        return choose_batch_size(
            execute, alike, largest=largest, time_slice=self.time_slice, tolerance=TOLERANCE[kind]
        )

    def _slots_alike(self, program: BatchProgram, sample: Sample, output: str) -> bool:
        """Return whether no row gets other bits in another slot, as far as some trials can tell.

        A difference shows in few rows where an output has few elements, so a small model, whose batches
        are short, is tried more often.
        """
        random = np.random.default_rng(0)
        began = self.clock()
        for trial in range(MOST_TRIALS):
            if trial >= FEWEST_TRIALS and self.clock() - began > TRIAL_SECONDS:
                break
            parts = various_rows(program.kind, sample.subjects[0], output, program.batch_size, random)
            shift = int(random.integers(1, program.batch_size))
            moved = parts[shift:] + parts[:shift]
            here = self.run(partial(program.execute, parts))
            there = self.run(partial(program.execute, moved))
            if not results_alike(here[shift:] + here[:shift], there):
                return False
        return True

    def _timed(self, program: BatchProgram, parts: Sequence[Rows]) -> float:
        began = self.clock()
        program.execute(parts)
        return self.clock() - began


def various_rows(
    kind: Kind, subject: Subject, output: str, count: int, random: np.random.Generator
) -> list[Rows]:
    """Return `count` rows of different images, one part each: the subject's, shifted at random."""
    shifts = random.integers(0, subject.image.shape[:2], (count, 2))
    return [
        example_rows(kind, replace(subject, image=np.roll(subject.image, tuple(shift), (0, 1))), output, 1)
        for shift in shifts
    ]


def results_alike(some: Sequence[Result], others: Sequence[Result]) -> bool:
    """Return whether results have the same bits."""
    return all(
        one.outputs.tobytes() == other.outputs.tobytes()
        and (
            one.gradients is None
            or other.gradients is None
            or one.gradients.tobytes() == other.gradients.tobytes()
        )
        for one, other in zip(some, others, strict=True)
    )
