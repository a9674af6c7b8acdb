"""Warm-up samples are answered as inferences are, or the load fails and names the sample."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import pytest

from fakes.runs import CostedProgram
from vitrail.errors import FailedPrecondition, InvalidArgument
from vitrail_server.inference.warmup import warm_up
from vitrail_server.savedmodel.programs import predicted
from vitrail_server.servable import Description, ImageSize, OwnProgram, Program, WindowGrid
from vitrail_server.work import Kind, PredictRows, Result, Rows

T = TypeVar("T")


class Answering(CostedProgram):
    """Doubles its input, at most three rows at a time."""

    def __init__(self, fault: Exception | None = None) -> None:
        super().__init__(3, 0.1)
        self.kind = Kind.FORWARD
        self.batches: list[int] = []
        self._fault = fault

    def execute(self, parts: Sequence[Rows]) -> list[Result]:
        if self._fault is not None:
            raise self._fault
        (rows,) = parts
        assert isinstance(rows, PredictRows)
        self.batches.append(len(rows))
        return [predicted({"y": rows.inputs["x"].astype(np.float32) * 2}, len(rows))]


class Warmed:
    """A servable of one program."""

    description: Description

    def __init__(self, program: Answering) -> None:
        self._program = program

    def program(self, kind: Kind, image_size: ImageSize) -> Program:
        raise AssertionError("nothing is explained here")

    def incremental(self, image_size: ImageSize, grid: WindowGrid) -> OwnProgram | None:
        raise AssertionError("nothing is explained here")

    def predictor(self, rows: PredictRows) -> Program:
        assert rows.outputs == ("y",)
        return self._program

    def close(self) -> None:
        raise AssertionError("whoever warms it up does not close it")


class Thread:
    """Runs what is to run on the device's thread, and counts."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, chore: Callable[[], T], /) -> T:
        self.calls += 1
        return chore()


def rows() -> PredictRows:
    return PredictRows({"x": np.ones((5, 2), np.float32)}, ("y",), 5)


def test_a_sample_is_answered_as_often_as_it_says_in_batches_that_fit() -> None:
    program, thread = Answering(), Thread()
    warm_up(Warmed(program), "s", 2, rows, thread)
    assert program.batches == [3, 2, 3, 2]
    assert thread.calls == 4


def unreadable() -> PredictRows:
    raise InvalidArgument("warmup data file 'f' cannot be read: No such file or directory")


@pytest.mark.parametrize(
    ("fault", "sample", "reason"),
    [
        (ValueError("bad input\nand more"), rows, "ValueError: bad input"),
        (None, unreadable, "warmup data file 'f' cannot be read: No such file or directory"),
    ],
)
def test_a_sample_that_cannot_be_answered_is_named(
    fault: Exception | None, sample: Callable[[], PredictRows], reason: str
) -> None:
    with pytest.raises(FailedPrecondition) as caught:
        warm_up(Warmed(Answering(fault)), "first one", 1, sample, Thread())
    assert caught.value.message == f"failed to run warmup sample 'first one': {reason}"
