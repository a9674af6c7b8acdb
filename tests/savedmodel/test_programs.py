"""Batches for a model that is a NumPy function."""

from collections.abc import Collection
from itertools import count

import numpy as np
import pytest
from numpy.typing import NDArray

from vitrail.errors import FailedPrecondition
from vitrail_server.savedmodel.programs import BatchProgram, Derivatives, Differentiate, Evaluate
from vitrail_server.savedmodel.rows import Arrays, InputLayout, RowLayout
from vitrail_server.work import GradientRows, Objective, OccludeRows, OutOfMemory, PredictRows, Rows, Subject

SHAPE = (2, 3, 1)
LAYOUT = RowLayout("image", InputLayout(SHAPE, np.dtype(np.float32)), {})


def subject(value: float) -> Subject:
    return Subject(np.full(SHAPE, value, np.float32), fill=np.float32(0) * np.ones(1, np.float32))


def windows(*hidden: int) -> NDArray[np.int32]:
    """Windows that hide so many pixels of the first row."""
    return np.array([[0, 0, 1, pixels] if pixels else [0] * 4 for pixels in hidden], np.int32)


class Sums:
    """The sum of the image, as whole numbers too; out of memory above `fits` rows."""

    def __init__(self, fits: int = 1000) -> None:
        self.fits = fits
        self.batches: list[int] = []

    def __call__(self, arrays: Arrays, wanted: Collection[str]) -> dict[str, NDArray[np.generic]]:
        images = arrays["image"].astype(np.float32)
        self.batches.append(len(images))
        if len(images) > self.fits:
            raise OutOfMemory
        total = images.sum((1, 2, 3))
        every = {"total": total, "whole": total.astype(np.int64)[:, None]}
        return {name: every[name] for name in wanted}


class Echo:
    """Answers with what it is asked: outputs are the images' sums, gradients the derivatives wanted."""

    outputs = ("a", "b", "whole")
    differentiable = frozenset({"a", "b"})

    def __init__(self) -> None:
        self.asked: list[Derivatives] = []

    def __call__(
        self, arrays: Arrays, derivatives: Derivatives, wanted: Collection[str]
    ) -> tuple[dict[str, NDArray[np.float32]], NDArray[np.float32]]:
        self.asked.append(derivatives)
        images = arrays["image"].astype(np.float32)
        gradients = np.zeros((len(images), *SHAPE), np.float32)
        gradients[:, 0, 0, 0] = derivatives.targets
        return {name: images.sum((1, 2, 3))[:, None] for name in wanted}, gradients


def occlude(forward: Sums, batch_size: int, *, fixed: bool = False) -> BatchProgram:
    ticks = count()
    return BatchProgram(Evaluate(forward), LAYOUT, batch_size, fixed=fixed, clock=lambda: float(next(ticks)))


def gradient_rows(value: float, output: str, *targets: int) -> GradientRows:
    return GradientRows(
        subject(value),
        output,
        np.array(targets, np.int32),
        Objective.SQUARED_ERROR,
        np.array(targets, np.float32) * np.float32(0.5),
    )


def test_each_part_gets_its_own_rows_as_flat_float32() -> None:
    forward = Sums()
    parts: list[Rows] = [
        OccludeRows(subject(1), "total", windows(0, 2)),
        OccludeRows(subject(10), "whole", windows(3)),
    ]
    first, second = occlude(forward, 8).execute(parts)
    np.testing.assert_array_equal(first.outputs, [[6], [4]])
    np.testing.assert_array_equal(second.outputs, [[30]])
    assert second.outputs.dtype == np.float32
    assert first.gradients is None
    assert forward.batches == [8], "one padded call"


@pytest.mark.parametrize(("alone", "fixed", "batch"), [(True, False, 1), (True, True, 8), (False, False, 8)])
def test_one_image_to_predict_is_padded_only_in_company(alone: bool, fixed: bool, batch: int) -> None:
    """And where the signature takes one batch size only."""
    forward = Sums()
    program = occlude(forward, 8, fixed=fixed)
    image = subject(2).image[None]
    rows: list[Rows] = [PredictRows({"image": image}, ("total",), 1)]
    if not alone:
        rows.append(OccludeRows(subject(1), "total", windows(0)))
    first, *_ = program.execute(rows)
    assert first.tensors is not None
    assert first.tensors["total"].tolist() == [12]
    assert forward.batches == [batch]


def test_two_images_to_predict_are_padded() -> None:
    forward = Sums()
    program = occlude(forward, 8)
    image = np.concatenate([subject(2).image[None], subject(3).image[None]])
    program.execute([PredictRows({"image": image}, ("total",), 2)])
    assert forward.batches == [8]


def test_every_shape_is_warmed_up() -> None:
    forward = Sums()
    occlude(forward, 4).warm(subject(1), "total")
    assert forward.batches == [4, 1]


def test_derivatives_are_those_of_each_part_padded_with_the_last() -> None:
    gradient = Echo()
    program = BatchProgram(Differentiate(gradient), LAYOUT, 5)
    first, second = program.execute([gradient_rows(1, "b", 4, -1), gradient_rows(2, "a", 7)])
    (asked,) = gradient.asked
    assert asked.outputs.tolist() == [1, 1, 0, 0, 0]
    assert asked.targets.tolist() == [4, -1, 7, 7, 7]
    assert asked.objectives.tolist() == [Objective.SQUARED_ERROR.value] * 5
    assert asked.values.tolist() == [2, -0.5, 3.5, 3.5, 3.5]
    assert first.outputs.tolist() == [[6], [6]]
    assert second.outputs.tolist() == [[12]]
    assert first.gradients is not None
    assert second.gradients is not None
    assert first.gradients[:, 0, 0, 0].tolist() == [4, -1]
    assert second.gradients[:, 0, 0, 0].tolist() == [7]


def test_an_output_without_a_gradient_is_refused_by_name() -> None:
    program = BatchProgram(Differentiate(Echo()), LAYOUT, 2)
    with pytest.raises(FailedPrecondition, match=r"'whole' does not hold floating point.*explain a, b"):
        program.execute([gradient_rows(1, "whole", 0)])


def test_halving_ends_at_one_row() -> None:
    program = occlude(Sums(), 5)
    program.seconds = 8
    assert [program.halve(), program.batch_size, program.seconds] == [True, 2, 4]
    assert [program.halve(), program.batch_size, program.seconds] == [True, 1, 2]
    assert not program.halve()


def test_a_fixed_size_is_not_halved() -> None:
    program = occlude(Sums(), 4, fixed=True)
    assert not program.halve()
    assert program.batch_size == 4


def test_after_running_out_of_memory_the_halved_program_gives_the_same_results() -> None:
    forward = Sums(fits=2)
    program = occlude(forward, 4)
    parts = [OccludeRows(subject(3), "total", windows(0, 1))]
    with pytest.raises(OutOfMemory):
        program.execute(parts)
    assert program.halve()
    np.testing.assert_array_equal(program.execute(parts)[0].outputs, [[18], [15]])
    assert forward.batches == [4, 2]


def test_the_seconds_follow_the_batches_slowly() -> None:
    """The clock ticks once between the start and the end of a batch; a fifth of the way each time."""
    program = occlude(Sums(), 1)
    program.seconds = 2.0
    parts = [OccludeRows(subject(1), "total", windows(0))]
    program.execute(parts)
    assert program.seconds == pytest.approx(2.0 + 0.2 * (1 - 2.0))
    program.execute(parts)
    assert program.seconds == pytest.approx(1.8 + 0.2 * (1 - 1.8))


def test_rows_of_the_wrong_kind_are_a_mistake() -> None:
    with pytest.raises(TypeError, match="OccludeRows"):
        occlude(Sums(), 1).execute([gradient_rows(1, "total", 0)])
    with pytest.raises(TypeError, match="GradientRows"):
        BatchProgram(Differentiate(Echo()), LAYOUT, 1).execute([OccludeRows(subject(1), "a", windows(0))])
