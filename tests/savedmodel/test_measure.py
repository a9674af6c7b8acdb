"""The choice of a batch size, on devices whose times are known."""

from collections.abc import Callable

import numpy as np
import pytest

from vitrail_server.savedmodel.graph import Activations
from vitrail_server.savedmodel.measure import REPEATS, choose_batch_size, fastest, row_bytes
from vitrail_server.savedmodel.warm import results_alike
from vitrail_server.work import Kind, OutOfMemory, Result


class FakeDevice:
    """Takes `overhead` seconds per batch and `row` per row beyond the first `free`; fits `fits` rows."""

    def __init__(self, overhead: float, row: float, free: int = 0, fits: int = 1000) -> None:
        self.overhead, self.row, self.free, self.fits = overhead, row, free, fits
        self.tried: list[int] = []
        self.uneven: set[int] = set()
        """The sizes at which a row's bits depend on its slot."""

    def execute(self, size: int) -> float:
        self.tried.append(size)
        if size > self.fits:
            raise OutOfMemory
        return self.overhead + self.row * max(0, size - self.free)

    def chosen(self, largest: int = 1000, time_slice: float = 1000, tolerance: float = 0.05) -> int:
        return choose_batch_size(
            self.execute,
            lambda size: size not in self.uneven,
            largest=largest,
            time_slice=time_slice,
            tolerance=tolerance,
        ).batch_size


def test_one_row_is_enough_where_more_bring_nothing() -> None:
    device = FakeDevice(overhead=0, row=1)
    assert device.chosen() == 1
    assert max(device.tried) == 4, "two doublings without a gain are enough"


def test_the_smallest_size_near_the_best_wins() -> None:
    """Per row 11, 6, 3.5, 2.25, 1.625, 1.3125, 1.15625, 1.078, 1.039: within 12 % of the last from 64 on."""
    assert FakeDevice(overhead=10, row=1).chosen(tolerance=0.12) == 64


def test_rows_that_cost_nothing_are_taken() -> None:
    assert FakeDevice(overhead=1, row=1, free=8).chosen() == 8


def test_a_size_at_which_slots_differ_is_not_taken() -> None:
    """Per row 2, 1.5, 1.25, 1.125: 8 is best, then 4; without both, 16 is within 12 % of the best."""
    device = FakeDevice(overhead=1, row=1)
    assert device.chosen(largest=16, tolerance=0.07) == 8
    device.uneven = {8}
    assert device.chosen(largest=16, tolerance=0.07) == 16
    device.uneven = {2, 4, 8, 16}
    assert device.chosen(largest=16, tolerance=0.07) == 1


def test_results_alike_are_alike_to_the_bit() -> None:
    outputs = np.array([[1, 2]], np.float32)
    nearly = np.nextafter(outputs, np.float32(9))
    assert results_alike([Result(outputs)], [Result(outputs.copy())])
    assert results_alike([Result(np.full((1, 2), np.nan, np.float32))] * 2, [Result(outputs * np.nan)] * 2)
    assert not results_alike([Result(outputs), Result(outputs)], [Result(outputs), Result(nearly)])
    assert not results_alike([Result(outputs, outputs)], [Result(outputs, nearly)])


def test_a_batch_longer_than_the_time_slice_is_not_taken() -> None:
    """1, 2 and 4 rows take 2, 3 and 5 seconds; 8 would take 9."""
    device = FakeDevice(overhead=1, row=1)
    assert device.chosen(time_slice=5.5) == 4
    assert max(device.tried) == 4, "the times before tell"


def test_a_batch_that_turns_out_longer_than_the_time_slice_is_not_taken() -> None:
    """1 to 8 rows take 1 second, so 16 are tried; they take 9."""
    device = FakeDevice(overhead=1, row=1, free=8)
    assert device.chosen(time_slice=2) == 8
    assert max(device.tried) == 16


def test_a_size_that_would_be_too_slow_is_not_even_tried() -> None:
    device = FakeDevice(overhead=0, row=1)
    device.chosen(time_slice=1.4)
    assert max(device.tried) == 1


def test_one_row_runs_however_long_it_takes() -> None:
    assert FakeDevice(overhead=5, row=5).chosen(time_slice=0.1) == 1


def test_the_largest_size_allowed_is_not_exceeded() -> None:
    device = FakeDevice(overhead=10, row=1)
    assert device.chosen(largest=6) == 4
    assert max(device.tried) == 4


def test_sizes_that_do_not_fit_are_not_taken() -> None:
    assert FakeDevice(overhead=10, row=1, fits=9).chosen() == 8


def test_a_row_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(OutOfMemory):
        FakeDevice(overhead=10, row=1, fits=0).chosen()


def test_a_machine_that_gets_faster_meanwhile_does_not_make_larger_batches_look_better() -> None:
    """Rows cost the same in any batch; the first four runs are disturbed."""
    runs = 0

    def execute(size: int) -> float:
        nonlocal runs
        runs += 1
        return size * (2.0 if runs <= 4 else 1.0)

    measured = choose_batch_size(execute, lambda _: True, largest=8, time_slice=100, tolerance=0.05)
    assert (measured.batch_size, measured.seconds) == (1, 1)


@pytest.mark.parametrize(("row", "chosen"), [(0.1, 1), (0.01, 4), (0.001, 16)])
def test_short_rows_share_what_the_server_does_around_a_batch(row: float, chosen: int) -> None:
    """A row of 10 ms takes 12, 11, 10.5, 10.25 in batches of 1, 2, 4, 8."""
    assert FakeDevice(overhead=0, row=row).chosen(largest=16) == chosen


def test_the_seconds_are_those_of_one_batch() -> None:
    device = FakeDevice(overhead=1, row=1, free=8)
    measured = choose_batch_size(device.execute, lambda _: True, largest=8, time_slice=100, tolerance=0.05)
    assert (measured.batch_size, measured.seconds) == (8, 1)


def recorded(*seconds: float) -> Callable[[], float]:
    remaining = iter(seconds)
    return lambda: next(remaining)


def test_the_first_run_warms_up_and_the_fastest_of_the_others_counts() -> None:
    assert REPEATS == 3
    assert fastest(recorded(0.1, 5, 3, 4)) == 3


@pytest.mark.parametrize(
    ("kind", "expected"), [(Kind.FORWARD, 2 * 7 + 3 * 100), (Kind.GRADIENT, 2 * 7 + 900)]
)
def test_a_gradient_keeps_every_activation_and_a_forward_a_few(kind: Kind, expected: int) -> None:
    assert row_bytes(kind, 7, Activations(largest=100, total=900)) == expected
