"""A Run that only counts rows, and a Program that only knows what it costs: for tests of policy."""

from collections.abc import Sequence

import numpy as np

from vitrail.errors import VitrailError
from vitrail_server.explainers.run import Nothing, Plan, Summary, Tile, Work
from vitrail_server.work import Kind, OccludeRows, Result, Rows, Subject

SUBJECT = Subject(np.zeros((1, 1, 1), np.float32))


class CountedRun:
    """Hands out `rows` rows, whatever they are."""

    kind = Kind.FORWARD
    image_size = (1, 1)
    map_shape = (1, 1, 1)
    plan: Plan | None = None

    def __init__(self, rows: int) -> None:
        self.waiting = rows
        self.out = 0
        self.done = 0
        self.stopped = False
        self.error: VitrailError | None = None

    @property
    def finished(self) -> bool:
        return self.error is not None or (not self.out and (self.stopped or not self.waiting))

    def take(self, rows: int) -> Work | Nothing:
        assert rows > 0
        count = 0 if self.stopped or self.error else min(rows, self.waiting)
        if not count:
            return Nothing.WAIT if self.out else Nothing.DONE
        self.waiting -= count
        self.out += count
        windows = np.zeros((count, 4), np.int32)
        return Work(OccludeRows(SUBJECT, "scores", windows), np.arange(count, dtype=np.int32))

    def absorb(self, work: Work, result: Result) -> None:
        self.out -= len(work.tag)
        self.done += len(work.tag)

    def give_back(self, work: Work) -> None:
        self.out -= len(work.tag)
        self.waiting += len(work.tag)

    def fail(self, error: VitrailError) -> None:
        self.error = error

    def stop(self) -> None:
        self.stopped = True

    def tiles(self) -> Sequence[Tile]:
        return ()

    def summary(self) -> Summary:
        raise NotImplementedError


class CostedProgram:
    """A Program whose batches take `seconds`, if it were ever executed."""

    kind = Kind.FORWARD

    def __init__(self, batch_size: int, seconds: float) -> None:
        self.batch_size = batch_size
        self.seconds = seconds

    def execute(self, parts: Sequence[Rows]) -> list[Result]:
        return [Result(np.zeros((len(part), 1), np.float32)) for part in parts]

    def halve(self) -> bool:
        return False
