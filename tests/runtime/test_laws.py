"""What holds of every schedule: laws of the scheduler in the device's pipeline, for arrivals at random."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes.properties import examples
from fakes.runs import CostedProgram, CountedRun
from runtime.pipeline import Begun, Pipeline
from vitrail_server.runtime.entry import DEFAULT_PRIORITY, Entry
from vitrail_server.runtime.priority import AGEING

PROGRAMS = ((1, 0.5), (4, 0.125), (8, 2.0))
"""Batch sizes and seconds."""


@dataclass(frozen=True)
class Arrival:
    """A Run that comes, and may go before its end."""

    at: float
    caller: str
    program: int
    rows: int
    priority: int
    budget: float | None
    leaves: float | None
    """Seconds after its arrival."""


def arrivals(
    priorities: tuple[int, ...] = (1, 99, DEFAULT_PRIORITY), *, callers: str = "abc"
) -> st.SearchStrategy[list[Arrival]]:
    """Return streams of arrivals, at most a few batches apart."""
    return st.lists(
        st.builds(
            Arrival,
            at=st.floats(0, 20),
            caller=st.sampled_from(callers),
            program=st.integers(0, len(PROGRAMS) - 1),
            rows=st.integers(1, 30),
            priority=st.sampled_from(priorities),
            budget=st.none() | st.floats(0, 30),
            leaves=st.none() | st.floats(0, 10),
        ),
        max_size=15,
    )


def played(stream: list[Arrival]) -> tuple[Pipeline, list[tuple[Arrival, Entry]]]:
    """Let everything of a stream happen."""
    pipeline, programs = Pipeline(), [CostedProgram(*each) for each in PROGRAMS]
    entries: list[tuple[Arrival, Entry]] = []

    def arriving(arrival: Arrival) -> Callable[[], None]:
        def arrive() -> None:
            entry = pipeline.arrive(
                arrival.caller,
                programs[arrival.program],
                arrival.rows,
                priority=arrival.priority,
                budget=arrival.budget,
            )
            entries.append((arrival, entry))
            if arrival.leaves is not None:
                pipeline.at(pipeline.now + arrival.leaves, lambda: pipeline.cancel(entry))

        return arrive

    for arrival in stream:
        pipeline.at(arrival.at, arriving(arrival))
    pipeline.run()
    return pipeline, entries


def run_of(entry: Entry) -> CountedRun:
    assert isinstance(entry.run, CountedRun)
    return entry.run


def begins(pipeline: Pipeline, entry: Entry) -> list[float]:
    """Return when batches with rows of a Run began."""
    return [begun.at for begun in pipeline.begun if any(part.entry is entry for part in begun.parts)]


@given(arrivals())
@examples(60)
def test_everybody_who_stays_is_served_to_the_end_or_to_the_end_of_the_budget(stream: list[Arrival]) -> None:
    pipeline, entries = played(stream)

    assert len(entries) == len(stream)
    for arrival, entry in entries:
        run = run_of(entry)
        if not entry.cancelled:
            assert run.finished
            assert run.out == 0
            assert run.done == arrival.rows or run.stopped
        assert run.done + run.out + run.waiting == arrival.rows
    assert pipeline.scheduler.waiting == 0


@given(arrivals())
@examples(60)
def test_the_device_never_idles_while_somebody_has_rows_to_give(stream: list[Arrival]) -> None:
    pipeline, _ = played(stream)

    assert all(waiting == 0 for _, waiting in pipeline.idle)


@given(arrivals())
@examples(60)
def test_no_row_begins_that_would_end_after_its_budget_or_belongs_to_nobody(stream: list[Arrival]) -> None:
    pipeline, entries = played(stream)

    for arrival, entry in entries:
        for at in begins(pipeline, entry):
            assert entry.ends is None or at + entry.program.seconds <= entry.ends
            if entry.cancelled and arrival.leaves is not None:
                assert at <= entry.arrived + arrival.leaves


@given(arrivals(priorities=(DEFAULT_PRIORITY,), callers="abcdefgh"))
@examples(60)
def test_a_newcomer_waits_for_the_running_batch_and_for_those_who_came_before(stream: list[Arrival]) -> None:
    """Its first rows are in the next batch, but for one batch of each caller that was there before."""
    pipeline, entries = played(stream)

    for arrival, entry in entries:
        first = begins(pipeline, entry)
        if not first or sum(each.caller == arrival.caller for each in stream) > 1:
            continue  # it left before its turn, or its caller has other Runs
        others = {each.caller for each, other in entries if other.arrived <= entry.arrived} - {arrival.caller}
        before = [begun for begun in pipeline.begun if entry.arrived <= begun.at < first[0]]
        assert len(before) <= len(others)


@given(
    st.tuples(st.integers(0, 2), st.integers(0, 2)),
    arrivals(priorities=(DEFAULT_PRIORITY,), callers="cdefghi"),
)
@examples(60)
def test_two_who_always_want_more_get_the_same_whoever_comes_and_goes(
    programs: tuple[int, int], stream: list[Arrival]
) -> None:
    """The bound of start-time fair queueing: the longest batch of the one plus that of the other.

    The batch that was running when the second one came counts for neither.
    """
    pipeline = Pipeline()
    bound = sum(PROGRAMS[each][1] for each in programs) + 1e-6
    for caller, program in zip("ab", programs, strict=True):
        pipeline.arrive(caller, CostedProgram(*PROGRAMS[program]))
    for each in stream:
        pipeline.arrive_at(each.at, each.caller, CostedProgram(*PROGRAMS[each.program]), each.rows)
    differences: list[float] = []
    pipeline.on_end = lambda: differences.append(pipeline.seconds["a"] - pipeline.seconds["b"])
    pipeline.run(until=60)

    assert max(abs(each - differences[0]) for each in differences) <= bound


def test_a_flood_of_newcomers_that_take_the_waiting_batch_apart_starves_nobody() -> None:
    pipeline, program = Pipeline(), CostedProgram(4, 0.3)
    old = pipeline.arrive("old", program)
    for number in range(400):
        pipeline.arrive_at(0.3 * number + 0.1, f"new {number}", program, 4)
    pipeline.run(until=120)

    # One newcomer for every batch, so whatever the old one gets lengthens the queue in front of it.
    assert run_of(old).done >= 4 * 10


@pytest.mark.parametrize("long_batches", [1, 4, 8])
def test_short_work_enters_at_the_next_batch_at_whatever_moment_it_comes(long_batches: int) -> None:
    """It waits for what is left of the running batch, and never for the one behind it."""
    pipeline = Pipeline()
    occlude, gradient = CostedProgram(long_batches, 0.5), CostedProgram(1, 0.125)
    for caller in "xyz":
        pipeline.arrive(caller, occlude)
    moments = [7 * number + 0.07 * number for number in range(1, 12)]
    for number, moment in enumerate(moments):
        pipeline.arrive_at(moment, f"new {number}", gradient, 1)
    pipeline.run(until=100)

    short = [begun for begun in pipeline.begun if begun.batch.program is gradient]
    assert [part.entry.arrived for begun in short for part in begun.parts] == moments
    assert all(begun.at - part.entry.arrived <= 0.5 for begun in short for part in begun.parts)


@pytest.mark.parametrize("behind", [1, 3])
def test_less_urgent_work_waits_its_levels_even_if_arrivals_never_end(behind: int) -> None:
    pipeline, program = Pipeline(), CostedProgram(4, 0.25)
    late = pipeline.arrive("late", program, priority=1 + behind)
    for number in range(400):
        pipeline.arrive_at(0.125 * number, f"new {number}", program, 4, priority=1)
    pipeline.run(until=50)

    gaps = [later - earlier for earlier, later in itertools.pairwise([0.0, *begins(pipeline, late)])]
    assert max(gaps) <= (behind + 1) * AGEING + 2 * program.seconds


def test_what_began_is_what_was_assembled_but_for_who_left() -> None:
    pipeline, program = Pipeline(), CostedProgram(4, 1.0)
    pipeline.arrive("a", program, 4)
    gone = pipeline.arrive("b", program, 2)
    pipeline.arrive("c", program, 2)
    pipeline.at(0.5, lambda: pipeline.cancel(gone))
    pipeline.run()

    def callers(begun: Begun) -> list[str]:
        return [part.entry.caller for part in begun.parts]

    assert [callers(begun) for begun in pipeline.begun] == [["a"], ["c"]]
    assert [part.entry.caller for part in pipeline.begun[1].batch.parts] == ["b", "c"]
