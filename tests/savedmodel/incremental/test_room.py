"""The memory of plans: what one is charged, which goes when there is no room, and what is reported of it.

Every plan is taken to have 100 bytes, so that nothing here depends on the memory of the machine.
"""

import numpy as np
import pytest

from savedmodel.incremental.nets import Net, grid_of, net
from savedmodel.incremental.test_preparations import LAYOUT, SIZE, Bench, network
from vitrail_server.savedmodel.incremental import preparations
from vitrail_server.savedmodel.incremental.allowance import (
    OPERATION_BYTES,
    activations_of,
    allowance,
    charge,
)
from vitrail_server.savedmodel.incremental.program import IncrementalProgram
from vitrail_server.savedmodel.probe import Sample
from vitrail_server.savedmodel.programs import BatchProgram, Evaluate
from vitrail_server.servable import WindowGrid
from vitrail_server.work import Kind

A, B, C = (grid_of(SIZE, (size, size), (size, size)) for size in (3, 4, 5))
NO_ROOM = "there is no room for its plan beside those of other grids, which are asked for more often"


@pytest.fixture(scope="module")
def tested() -> Net:
    return net(network, SIZE)


@pytest.fixture(autouse=True)
def _same_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparations, "charge", lambda *_: 100)


class Room(Bench):
    """Preparations of a version that takes 1000 bytes, and has room for so many plans."""

    def __init__(self, tested: Net, plans: int) -> None:
        super().__init__(tested, allowance=1000 + 100 * plans)
        self.reported: list[int] = []
        self.preparations.settle(1000, self.reported.append)

    def ask(self, grid: WindowGrid) -> bool:
        """Explain once, and return whether it was incremental."""
        program = self.program(grid)
        self.prepare()
        if program is not None:
            program.close()
        return program is not None

    def begin(self, grid: WindowGrid) -> IncrementalProgram:
        program = self.program(grid)
        assert program is not None, self.reason(grid)
        return program

    def planned(self, grid: WindowGrid) -> bool:
        return self.reason(grid) == ""


def test_what_a_version_takes_is_reported_as_plans_come_and_go(tested: Net) -> None:
    room = Room(tested, plans=2)
    room.ask(A)
    room.ask(B)
    room.ask(C)
    room.ask(C)
    assert room.reported == [1000, 1100, 1200, 1100, 1200]
    room.preparations.close()
    assert len(room.reported) == 5


def test_the_plan_that_was_not_asked_for_longest_makes_way(tested: Net) -> None:
    room = Room(tested, plans=2)
    for grid in (A, B, A, C, C):
        room.ask(grid)
    assert [room.planned(grid) for grid in (A, B, C)] == [True, False, True]
    assert room.reason(B) == NO_ROOM


def test_grids_that_take_turns_do_not_drive_each_other_out(tested: Net) -> None:
    """One of them stays planned and the other runs in full."""
    room = Room(tested, plans=1)
    room.ask(A)
    found = [(room.ask(B), room.ask(A)) for _ in range(20)]
    assert found == [(False, True)] * 20
    assert room.reported == [1000, 1100]


def test_a_grid_that_is_asked_for_now_takes_over(tested: Net) -> None:
    room = Room(tested, plans=1)
    room.ask(A)
    assert [room.ask(B) for _ in range(4)] == [False, False, True, True]
    assert not room.planned(A)


def test_a_grid_that_made_way_has_to_be_asked_for_longer_each_time(tested: Net) -> None:
    """So that grids that take turns in runs, too, are planned anew less and less often."""
    room = Room(tested, plans=1)
    room.ask(A)
    waits = [next(n for n in range(100) if room.ask(grid)) for grid in (B, A, B, A, B)]
    assert waits == [2, 4, 4, 8, 8]


def test_one_plan_is_always_allowed(tested: Net) -> None:
    room = Room(tested, plans=-5)
    room.ask(A)
    assert room.ask(A)
    assert room.reported == [1000, 1100]


def test_a_plan_in_use_stays(tested: Net) -> None:
    room = Room(tested, plans=1)
    room.ask(A)
    running = room.begin(A)
    assert [room.ask(B) for _ in range(6)] == [False] * 6
    assert room.planned(A)
    running.close()
    running.close()
    room.ask(B)
    assert room.ask(B)


def test_plans_larger_than_expected_make_way_when_nobody_uses_them(
    tested: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = Room(tested, plans=2)
    room.ask(A)
    running = room.begin(A)
    monkeypatch.setattr(preparations, "charge", lambda *_: 150)
    room.ask(B)
    assert room.reported[-1] == 1250
    assert room.planned(A)
    running.close()
    assert room.reported[-1] == 1150
    assert [room.planned(grid) for grid in (A, B)] == [False, True]


def test_what_made_way_is_gone(tested: Net) -> None:
    """And its memory is released in the background."""
    released: list[bool] = []
    room = Room(tested, plans=1)
    room.ask(A)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preparations, "release_memory", lambda: released.append(True))
        room.program(B)
        room.program(B)
        assert released == []
        room.prepare()
    assert released == [True]


def test_a_plan_that_failed_is_let_go_and_not_made_again(tested: Net) -> None:
    room = Room(tested, plans=1)
    room.ask(A)
    running = room.begin(A)
    running._prepared.failure = "it failed: by intention"
    assert not room.ask(A)
    assert room.reported[-1] == 1100
    running.close()
    assert not room.ask(A)
    assert room.reported[-1] == 1000
    assert not room.ask(A)
    assert room.reason(A) == "it failed: by intention"


def test_a_measurement_is_believed_where_it_can_be_true() -> None:
    estimate = 1000 * OPERATION_BYTES
    assert charge(1000, 5_000_000, 5_000_000 + estimate + 1) == estimate + 1
    assert charge(1000, 5_000_000, 4_000_000) == estimate // 2
    assert charge(1000, 5_000_000, 900_000_000) == 2 * estimate
    assert charge(1000, 0, 0) == estimate


def test_a_version_may_take_four_times_its_weights_and_one_batch(tested: Net) -> None:
    """The largest map of one image has 8 channels; the head's ten numbers are the rest."""
    found = activations_of(tested.graph)
    largest = 4 * 20 * 20 * 8
    assert found.largest == largest
    assert largest < found.total < 4 * largest
    sample = Sample(LAYOUT, (0, 1), 1)
    program = BatchProgram(Evaluate(tested.forward), LAYOUT, 3)
    batch = 3 * (2 * LAYOUT.nbytes + 3 * largest)
    assert (
        allowance(1000, {SIZE: tested.graph}, {SIZE: sample}, {(Kind.FORWARD, SIZE): program}) == 4000 + batch
    )
    assert np.isclose(LAYOUT.nbytes, 4 * 20 * 20 * 3)


def test_of_many_grids_the_one_not_asked_for_longest_is_forgotten(
    tested: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its plan too, but not while it is used; then it is the next."""
    monkeypatch.setattr(preparations, "MOST_GRIDS", 2)
    room = Room(tested, plans=5)
    room.ask(A)
    running = room.begin(A)
    room.ask(B)
    room.ask(C)
    assert [room.planned(grid) for grid in (A, B, C)] == [True, False, True]
    assert room.reason(B) == "it was never asked for"
    running.close()
    room.ask(B)
    assert [room.planned(grid) for grid in (A, B, C)] == [False, True, True]
    assert room.reported[-1] == 1200
