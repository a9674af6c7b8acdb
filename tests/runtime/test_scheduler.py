import itertools
import sys
import weakref
from collections.abc import Callable
from types import FrameType

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from fakes.properties import examples
from fakes.runs import CostedProgram, CountedRun
from runtime.simulation import ENDLESS, RESULT, Simulation
from vitrail_server.explainers.run import Work
from vitrail_server.runtime.entry import Batch, Entry
from vitrail_server.runtime.priority import AGEING
from vitrail_server.runtime.queueing import Queueing
from vitrail_server.runtime.scheduler import Scheduler
from vitrail_server.servable import Batching, QueuePolicy


def callers_of(batch: Batch) -> list[str]:
    return [part.entry.caller for part in batch.parts]


class TestBatches:
    def test_one_run_fills_a_batch(self) -> None:
        simulation = Simulation()
        simulation.arrive("a", CostedProgram(4, 1.0), 6)
        assert [batch.rows for batch in simulation.steps(2)] == [4, 2]
        assert simulation.step() is None
        assert len(simulation.scheduler) == 0

    def test_the_tail_of_one_run_and_the_head_of_the_next_share_a_batch(self) -> None:
        simulation, program = Simulation(), CostedProgram(4, 1.0)
        simulation.arrive("a", program, 6)
        simulation.arrive("b", program, 2)
        shares = [[(part.entry.caller, len(part)) for part in batch.parts] for batch in simulation.steps(2)]
        assert shares == [[("a", 4)], [("b", 2), ("a", 2)]]

    def test_many_small_runs_become_one_batch(self) -> None:
        simulation, program = Simulation(), CostedProgram(8, 1.0)
        for caller in "abcdefghij":
            simulation.arrive(caller, program, 1)
        assert [callers_of(batch) for batch in simulation.steps(2)] == [list("abcdefgh"), list("ij")]

    def test_programs_are_never_mixed(self) -> None:
        simulation = Simulation()
        for caller, program in zip("abcd", itertools.cycle([CostedProgram(8, 1.0), CostedProgram(8, 1.0)])):
            simulation.arrive(caller, program, 1)
        assert [callers_of(batch) for batch in simulation.steps(2)] == [["a", "c"], ["b", "d"]]

    def test_a_run_that_must_be_alone_shares_no_batch(self) -> None:
        simulation, program = Simulation(), CostedProgram(8, 1.0)
        for caller in "abc":
            simulation.arrive(caller, program, 1)
        simulation.scheduler.isolate(simulation.entries[1])
        assert [callers_of(batch) for batch in simulation.steps(2)] == [["a", "c"], ["b"]]

    def test_a_run_that_must_be_alone_is_not_joined_when_it_comes_first(self) -> None:
        simulation, program = Simulation(), CostedProgram(8, 1.0)
        simulation.scheduler.isolate(simulation.arrive("a", program, 1))
        simulation.arrive("b", program, 1)
        assert [callers_of(batch) for batch in simulation.steps(2)] == [["a"], ["b"]]

    def test_nothing_of_a_paused_run_until_it_goes_on(self) -> None:
        simulation, program = Simulation(), CostedProgram(1, 1.0)
        entry = simulation.arrive("a", program, 1)
        simulation.scheduler.pause(entry, paused=True)
        assert simulation.step() is None
        simulation.scheduler.pause(entry, paused=False)
        assert simulation.step() is not None

    def test_nothing_of_a_cancelled_run(self) -> None:
        simulation = Simulation()
        entry = simulation.arrive("a", CostedProgram(1, 1.0), 1)
        entry.cancelled = True
        simulation.scheduler.remove(entry)
        assert simulation.step() is None

    def test_a_run_whose_rows_are_all_out_stops_nobody(self) -> None:
        simulation, program = Simulation(), CostedProgram(2, 1.0)
        simulation.arrive("a", program, 2)
        assert simulation.scheduler.next_batch(0.0) is not None
        simulation.arrive("b", program, 2)
        batch = simulation.scheduler.next_batch(0.0)
        assert batch is not None
        assert callers_of(batch) == ["b"]

    def test_forgetting_a_run_twice_does_nothing(self) -> None:
        simulation = Simulation()
        entry = simulation.arrive("a", CostedProgram(1, 1.0))
        simulation.scheduler.remove(entry)
        simulation.scheduler.remove(entry)
        assert len(simulation.scheduler) == 0
        assert simulation.step() is None


class Policy(RuleBasedStateMachine):
    """Whatever happens, in whatever order: batches keep to the rules and the device is never left idle."""

    entries: Bundle[Entry] = Bundle("entries")
    batches: Bundle[Batch] = Bundle("batches")

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = Scheduler()
        self.programs = [CostedProgram(1, 0.5), CostedProgram(4, 0.1), CostedProgram(8, 3.0)]
        self.present: list[Entry] = []
        self.now = 0.0

    @rule(
        target=entries,
        caller=st.sampled_from("abc"),
        program=st.integers(0, 2),
        rows=st.integers(1, 20),
        priority=st.sampled_from([1, 2, 100]),
        alone=st.booleans(),
        budget=st.sampled_from([None, None, 2.0]),
    )
    def arrive(
        self, caller: str, program: int, rows: int, priority: int, budget: float | None, *, alone: bool
    ) -> Entry:
        entry = Entry(
            run=CountedRun(rows),
            program=self.programs[program],
            caller=caller,
            arrived=self.now,
            priority=priority,
            ends=None if budget is None else self.now + budget,
            alone=alone,
        )
        self.scheduler.add(entry)
        self.present.append(entry)
        return entry

    @rule(entry=entries, paused=st.booleans())
    def pause(self, entry: Entry, *, paused: bool) -> None:
        self.scheduler.pause(entry, paused=paused)

    @rule(entry=consumes(entries))
    def cancel(self, entry: Entry) -> None:
        entry.cancelled = True
        self.forget(entry)

    @rule(seconds=st.sampled_from([0.0, 0.3, 5.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(target=batches)
    def form(self) -> Batch:
        able = [entry for entry in self.present if self.has_rows(entry)]
        batch = self.scheduler.next_batch(self.now)
        for entry in self.present:
            expired = entry.ends is not None and self.now + entry.program.seconds > entry.ends
            assert run_of(entry).stopped == (expired or run_of(entry).stopped)
        if batch is None:
            assert not able
            return multiple()  # type: ignore[return-value]  # nothing for the bundle
        self.check(batch, able)
        return batch

    @rule(data=st.data())
    def take_apart(self, data: st.DataObject) -> None:
        """A batch that is withdrawn leaves everybody's place as it was, however often that happens."""
        formed = self.scheduler.next_batch(self.now)
        if formed is None:
            return
        self.withdraw(formed)
        before = self.places()
        for _ in range(data.draw(st.integers(1, 3))):
            again = self.scheduler.next_batch(self.now)
            assert again is not None
            self.withdraw(again)
        assert self.places() == before

    def withdraw(self, batch: Batch) -> None:
        self.scheduler.withdraw(batch)
        for part in batch.parts:
            part.entry.run.give_back(part.work)

    def places(self) -> list[tuple[float, bool, float, bool, float]]:
        """Return where everybody stands: what the order is made of, but for the clocks."""
        found = []
        for entry in self.present:
            priority = self.scheduler._priorities[entry.priority]
            caller = priority.callers[entry.caller].turn
            mine, its = round(entry.turn.served, 6), round(caller.served, 6)
            found.append((mine, entry.turn.fresh, its, caller.fresh, priority.waiting_since))
        return found

    def check(self, batch: Batch, able: list[Entry]) -> None:
        assert 0 < batch.rows <= batch.program.batch_size
        members = [part.entry for part in batch.parts]
        assert len(set(map(id, members))) == len(members)
        assert {id(entry.program) for entry in members} == {id(batch.program)}
        assert all(any(entry is each for each in able) for entry in members)
        assert len(members) == 1 or not any(entry.alone for entry in members)
        if batch.rows < batch.program.batch_size and not members[0].alone:
            left = [entry for entry in self.present if self.has_rows(entry) and not entry.alone]
            assert not any(entry.program is batch.program for entry in left), "the batch had room for more"

    def has_rows(self, entry: Entry) -> bool:
        run = run_of(entry)
        expired = entry.ends is not None and self.now + entry.program.seconds > entry.ends
        return bool(run.waiting) and not (run.stopped or expired or entry.paused or entry.cancelled)

    @rule(batch=consumes(batches), seconds=st.floats(0, 2))
    def complete(self, batch: Batch, seconds: float) -> None:
        self.scheduler.settle(batch, seconds)
        self.now += seconds
        for part in batch.parts:
            part.entry.run.absorb(part.work, RESULT)
            if part.entry.run.finished:
                self.forget(part.entry)

    @rule(batch=consumes(batches))
    def give_back(self, batch: Batch) -> None:
        for part in batch.parts:
            part.entry.run.give_back(part.work)

    def forget(self, entry: Entry) -> None:
        self.scheduler.remove(entry)
        self.present = [each for each in self.present if each is not entry]

    @invariant()
    def it_knows_who_is_there(self) -> None:
        assert len(self.scheduler) == len(self.present)


def run_of(entry: Entry) -> CountedRun:
    assert isinstance(entry.run, CountedRun)
    return entry.run


TestPolicy = Policy.TestCase
TestPolicy.settings = examples(40)


class TestFairness:
    def test_ten_runs_of_one_caller_get_as_much_as_one_run_of_another(self) -> None:
        simulation, program = Simulation(), CostedProgram(4, 0.3)
        for caller in ["a"] * 10 + ["b"]:
            simulation.arrive(caller, program)
        for _ in simulation.steps(400):
            assert abs(simulation.seconds["a"] - simulation.seconds["b"]) <= 0.3 + 1e-9

    def test_the_runs_of_one_caller_get_the_same(self) -> None:
        simulation, program = Simulation(), CostedProgram(4, 0.3)
        entries = [simulation.arrive(caller, program) for caller in ["a", "a", "a", "b"]]
        for _ in simulation.steps(200):
            done = [run_of(entry).done for entry in entries[:3]]
            assert max(done) - min(done) <= 4

    def test_slow_and_fast_programs_share_by_seconds_not_rows(self) -> None:
        simulation, slow, fast = Simulation(), CostedProgram(8, 1.5), CostedProgram(8, 0.05)
        simulation.arrive("slow", slow)
        simulation.arrive("fast", fast)
        for _ in simulation.steps(1000):
            assert abs(simulation.seconds["slow"] - simulation.seconds["fast"]) <= 1.5 + 1e-9

    @given(
        st.lists(st.tuples(st.sampled_from([0.01, 0.3, 1.0, 4.0]), st.integers(1, 3)), min_size=2, max_size=5)
    )
    @examples(20)
    def test_callers_that_always_want_more_never_differ_by_more_than_a_batch_each(
        self, callers: list[tuple[float, int]]
    ) -> None:
        """The bound of start-time fair queueing: the longest batch of the one plus that of the other."""
        simulation = Simulation()
        for name, (seconds, runs) in enumerate(callers):
            program = CostedProgram(4, seconds)
            for _ in range(runs):
                simulation.arrive(str(name), program)
        for _ in simulation.steps(150):
            for (i, (one, _)), (j, (other, _)) in itertools.combinations(enumerate(callers), 2):
                assert abs(simulation.seconds[str(i)] - simulation.seconds[str(j)]) <= one + other + 1e-9

    def test_short_work_of_a_new_caller_enters_at_the_next_batch(self) -> None:
        """However many occlusions are running, and however long they have been."""
        simulation, occlude, gradient = Simulation(), CostedProgram(8, 0.3), CostedProgram(8, 0.1)
        for caller in "abcdefgh":
            simulation.arrive(caller, occlude)
        for newcomer in range(30):
            for _ in simulation.steps(8 + newcomer):
                pass
            simulation.arrive(f"new {newcomer}", gradient, 3)
            batch = simulation.step()
            assert batch is not None
            assert callers_of(batch) == [f"new {newcomer}"]

    def test_short_work_of_a_busy_caller_comes_before_its_long_work(self) -> None:
        simulation, occlude, gradient = Simulation(), CostedProgram(8, 0.3), CostedProgram(8, 0.1)
        simulation.arrive("a", occlude)
        simulation.run_for(30)
        simulation.arrive("a", gradient, 1)
        batch = simulation.step()
        assert batch is not None
        assert batch.program is gradient

    def test_who_was_away_is_not_owed_for_it(self) -> None:
        simulation, program = Simulation(), CostedProgram(4, 0.3)
        simulation.arrive("b", program, 4)
        simulation.arrive("a", program)
        simulation.run_for(60)
        simulation.arrive("b", program)
        before = dict(simulation.seconds)
        simulation.run_for(6)
        assert simulation.seconds["b"] - before["b"] == pytest.approx(3, abs=0.61)

    def test_a_caller_cannot_gain_by_sending_its_work_as_many_short_runs(self) -> None:
        simulation, program = Simulation(), CostedProgram(4, 0.3)
        simulation.arrive("long", program)
        for _ in range(200):
            if simulation.entries[-1].run.finished or simulation.entries[-1].caller == "long":
                simulation.arrive("short", program, 4)
            simulation.step()
        assert simulation.seconds["short"] <= simulation.seconds["long"] + 0.61

    def test_a_reader_that_was_slow_is_not_owed_for_its_pause(self) -> None:
        simulation, program = Simulation(), CostedProgram(4, 0.3)
        slow = simulation.arrive("slow", program)
        simulation.arrive("quick", program)
        simulation.scheduler.pause(slow, paused=True)
        simulation.run_for(60)
        simulation.scheduler.pause(slow, paused=False)
        before = dict(simulation.seconds)
        simulation.run_for(6)
        assert simulation.seconds["slow"] - before.get("slow", 0) == pytest.approx(3, abs=0.61)

    def test_a_paused_run_is_not_owed_by_the_other_runs_of_its_caller(self) -> None:
        simulation, program = Simulation(), CostedProgram(4, 0.3)
        slow, quick = simulation.arrive("a", program), simulation.arrive("a", program)
        simulation.scheduler.pause(slow, paused=True)
        simulation.run_for(60)
        simulation.scheduler.pause(slow, paused=False)
        before = run_of(quick).done
        simulation.run_for(6)
        assert run_of(slow).done == pytest.approx(run_of(quick).done - before, abs=8)

    def test_runs_whose_rows_are_all_out_give_newcomers_no_claim(self) -> None:
        simulation, program = Simulation(), CostedProgram(4, 0.3)
        for number in range(9):
            simulation.arrive(f"out {number}", CostedProgram(1, 0.3), 1)
            assert simulation.scheduler.next_batch(0.0) is not None
        simulation.arrive("a", program)
        simulation.run_for(60)
        simulation.arrive("b", program)
        simulation.run_for(6)
        assert simulation.seconds["b"] == pytest.approx(3, abs=0.61)

    def test_filling_up_a_batch_is_paid_for(self) -> None:
        """A batch is charged by rows: who only fills up others' batches falls behind in turn."""
        simulation, program = Simulation(), CostedProgram(4, 0.3)
        simulation.arrive("odd", program, 3)
        simulation.arrive("a", program)
        assert [callers_of(batch) for batch in simulation.steps(1)] == [["odd", "a"]]
        assert simulation.seconds == pytest.approx({"odd": 0.225, "a": 0.075})

    def test_a_long_run_is_not_starved_by_a_stream_of_new_callers(self) -> None:
        simulation, program = Simulation(), CostedProgram(4, 0.3)
        old = simulation.arrive("old", program)
        simulation.step()
        for newcomer in range(400):
            simulation.arrive(f"new {newcomer}", program, 4)
            simulation.step()
        # At most a queue of newcomers is in front of it, so it gets a fair part of the 120 seconds.
        assert run_of(old).done >= 4 * 10

    def test_a_long_run_is_not_starved_by_short_ones_of_its_own_caller(self) -> None:
        simulation, program = Simulation(), CostedProgram(4, 0.3)
        long = simulation.arrive("a", program)
        simulation.step()
        for _ in range(400):
            simulation.arrive("a", program, 4)
            simulation.step()
        assert run_of(long).done >= 4 * 10

    def test_who_fell_behind_goes_first_as_soon_as_the_longest_batch_is_short_enough(self) -> None:
        """Of callers that had the same, the one whose Run was overtaken by more than a batch."""
        simulation, slow, fast = Simulation(), CostedProgram(1, 4.0), CostedProgram(1, 0.125)
        overtaken = [simulation.arrive(caller, program) for caller in "ab" for program in (slow, fast)][1]
        assert [callers_of(batch) for batch in simulation.steps(4)] == [["a"], ["b"], ["a"], ["b"]]
        simulation.scheduler.remove(simulation.entries[3])
        newcomers = [simulation.arrive("b", fast), simulation.arrive("a", fast)]

        def first() -> Entry:
            batch = simulation.scheduler.next_batch(simulation.now)
            assert batch is not None
            simulation.scheduler.withdraw(batch)
            for part in batch.parts:
                part.entry.run.give_back(part.work)
            return batch.parts[0].entry

        assert first() is newcomers[0]
        slow.seconds = 1.0
        assert first() is overtaken


class TestCharges:
    def test_a_program_that_takes_longer_than_it_says_is_charged_for_it(self) -> None:
        simulation, liar, honest = Simulation(), CostedProgram(4, 0.01), CostedProgram(4, 1.0)
        simulation.arrive("liar", liar)
        simulation.arrive("honest", honest)
        for _ in range(200):
            simulation.step(seconds=1.0)
        assert simulation.seconds["liar"] == pytest.approx(simulation.seconds["honest"], abs=1.01)

    def test_a_batch_is_charged_when_it_is_formed(self) -> None:
        """So that the one behind the running batch belongs to somebody else already."""
        simulation, program = Simulation(), CostedProgram(4, 0.3)
        for caller in "ab":
            simulation.arrive(caller, program)
        batches = [simulation.scheduler.next_batch(0.0) for _ in range(4)]
        assert [callers_of(batch) for batch in batches if batch] == [["a"], ["b"], ["a"], ["b"]]

    def test_settling_charges_what_a_batch_really_took(self) -> None:
        simulation, program = Simulation(), CostedProgram(4, 1.0)
        simulation.arrive("a", program, 3)
        simulation.arrive("b", program)
        batch = simulation.scheduler.next_batch(0.0)
        assert batch is not None
        assert [part.entry.turn.served for part in batch.parts] == [0.75, 0.25]
        assert [part.charged for part in batch.parts] == [0.75, 0.25]
        simulation.scheduler.settle(batch, 4.0)
        assert [part.entry.turn.served for part in batch.parts] == [3.0, 1.0]

    def test_a_batch_that_was_dropped_is_refunded(self) -> None:
        simulation, program = Simulation(), CostedProgram(4, 1.0)
        entry = simulation.arrive("a", program)
        batch = simulation.scheduler.next_batch(0.0)
        assert batch is not None
        entry.run.give_back(batch.parts[0].work)
        simulation.scheduler.settle(batch, 0.0)
        assert entry.turn.served == 0

    def test_settling_after_the_caller_is_gone_does_nothing(self) -> None:
        simulation, program = Simulation(), CostedProgram(4, 1.0)
        entry = simulation.arrive("a", program, 4)
        batch = simulation.scheduler.next_batch(0.0)
        assert batch is not None
        simulation.scheduler.remove(entry)
        simulation.scheduler.settle(batch, 2.0)


class TestPriority:
    def test_the_most_urgent_goes_first(self) -> None:
        simulation, program = Simulation(), CostedProgram(1, 0.01)
        for priority in (3, 1, 2):
            simulation.arrive(f"priority {priority}", program, 3, priority=priority)
        order = [callers_of(batch)[0][-1] for batch in simulation.steps(9)]
        assert "".join(order) == "111222333"

    def test_the_less_urgent_fill_up_the_batches_of_the_urgent(self) -> None:
        simulation, program = Simulation(), CostedProgram(4, 0.01)
        simulation.arrive("late", program, 4, priority=2)
        simulation.arrive("urgent", program, 3, priority=1)
        (batch,) = simulation.steps(1)
        assert callers_of(batch) == ["urgent", "late"]

    @pytest.mark.parametrize("seconds", [0.01, 0.3, 2.5])
    @pytest.mark.parametrize("behind", [1, 5])
    def test_a_run_behind_a_stream_of_more_urgent_ones_waits_its_levels_and_not_for_ever(
        self, behind: int, seconds: float
    ) -> None:
        simulation, program = Simulation(), CostedProgram(4, seconds)
        simulation.arrive("urgent", program, priority=1)
        late = simulation.arrive("late", program, priority=1 + behind)
        served = []
        while simulation.now < 20 * (behind + 1) * AGEING:
            start = simulation.now
            (batch,) = simulation.steps(1)
            if "late" in callers_of(batch):
                served.append(start)
        gaps = [b - a for a, b in itertools.pairwise([0.0, *served])]
        assert min(gaps) >= behind * AGEING
        assert max(gaps) <= (behind + 1) * AGEING + 2 * seconds
        assert run_of(late).done == 4 * len(served)

    def test_a_pause_is_no_waiting(self) -> None:
        simulation, program = Simulation(), CostedProgram(4, 0.3)
        late = simulation.arrive("late", program, priority=5)
        simulation.arrive("urgent", program, priority=1)
        simulation.scheduler.pause(late, paused=True)
        simulation.run_for(60)
        simulation.scheduler.pause(late, paused=False)
        assert [callers_of(batch) for batch in simulation.steps(3)] == [["urgent"]] * 3

    @pytest.mark.parametrize("seconds", [0.3, 2.5])
    def test_waiting_does_not_disturb_what_is_fair_within_a_priority(self, seconds: float) -> None:
        """Everybody waits longer than a level is worth; still the callers get the same."""
        simulation, program = Simulation(), CostedProgram(4, seconds)
        for caller in ["many"] * 12 + ["one", "other"]:
            simulation.arrive(caller, program)
        for _ in simulation.steps(300):
            shares = [simulation.seconds[caller] for caller in ("many", "one", "other")]
            assert max(shares) - min(shares) <= seconds + 1e-9

    def test_who_waited_behind_the_urgent_owns_nothing_more_than_who_comes_afterwards(self) -> None:
        simulation, program = Simulation(), CostedProgram(4, 0.3)
        simulation.arrive("urgent", program, 4 * 200, priority=1)
        simulation.arrive("first", program)
        while not simulation.entries[0].run.finished:
            assert simulation.step()
        simulation.arrive("second", program)
        before = dict(simulation.seconds)
        simulation.run_for(6)
        assert simulation.seconds["second"] == pytest.approx(3, abs=0.61)
        assert simulation.seconds["first"] - before.get("first", 0) == pytest.approx(3, abs=0.61)

    def test_urgent_work_does_not_count_against_the_same_callers_other_work(self) -> None:
        simulation, program = Simulation(), CostedProgram(4, 0.3)
        simulation.arrive("a", program, 4 * 200, priority=1)
        simulation.arrive("a", program)
        simulation.arrive("b", program)
        while not simulation.entries[0].run.finished:
            assert simulation.step()
        done = [run_of(entry).done for entry in simulation.entries]
        simulation.run_for(6)
        after = [run_of(entry).done for entry in simulation.entries]
        assert after[1] - done[1] == pytest.approx(after[2] - done[2], abs=4)


class TestTimeBudget:
    def test_a_run_stops_one_measured_batch_before_its_end(self) -> None:
        simulation, program = Simulation(), CostedProgram(4, 0.3)
        entry = simulation.arrive("a", program, ends=1.0)
        while simulation.step():
            assert simulation.now <= 1.0
        assert run_of(entry).stopped
        assert simulation.now == pytest.approx(0.9)

    def test_a_batch_that_ends_just_in_time_is_still_done(self) -> None:
        simulation = Simulation()
        simulation.arrive("a", CostedProgram(4, 0.25), ends=1.0)
        while simulation.step():
            assert simulation.now <= 1.0
        assert simulation.now == 1.0

    def test_a_longer_measurement_stops_it_earlier(self) -> None:
        simulation, program = Simulation(), CostedProgram(4, 0.1)
        simulation.arrive("a", program, ends=1.0)
        simulation.step()
        program.seconds = 0.6
        simulation.step(seconds=0.6)
        assert simulation.step() is None

    def test_a_paused_run_stops_too(self) -> None:
        simulation = Simulation()
        entry = simulation.arrive("a", CostedProgram(4, 0.3), ends=1.0)
        simulation.scheduler.pause(entry, paused=True)
        simulation.now = 0.8
        assert simulation.step() is None
        assert entry.run.finished

    def test_others_go_on(self) -> None:
        simulation, program = Simulation(), CostedProgram(4, 0.3)
        simulation.arrive("a", program, ends=0.0)
        simulation.arrive("b", program)
        (batch,) = simulation.steps(1)
        assert callers_of(batch) == ["b"]


class TestMemory:
    """A caller that came and went is forgotten once nothing is owed."""

    def test_callers_that_come_one_after_the_other(self) -> None:
        simulation, program = Simulation(), CostedProgram(4, 0.3)
        for caller in range(1000):
            simulation.arrive(str(caller), program, 2)
            simulation.step()
        assert remembered(simulation.scheduler) == 0

    @pytest.mark.parametrize("priorities", [1, 50])
    def test_callers_that_overlap_beside_one_that_stays(self, priorities: int) -> None:
        simulation, program = Simulation(), CostedProgram(4, 0.3)
        simulation.arrive("stays", program)
        most = 0
        for caller in range(600):
            simulation.arrive(str(caller), program, 3, priority=100 - caller % priorities)
            simulation.step()
            simulation.step()
            most = max(most, remembered(simulation.scheduler) - len(simulation.scheduler))
        assert most <= 20

    def test_callers_that_never_leave_the_queue_empty(self) -> None:
        simulation, program = Simulation(), CostedProgram(1, 0.3)
        most = 0
        for caller in range(1000):
            simulation.arrive(str(caller), program, 1)
            simulation.arrive(f"{caller} again", program, 1) if caller % 100 == 0 else None
            simulation.step()
            most = max(most, remembered(simulation.scheduler) - len(simulation.scheduler))
        assert most <= 100

    def test_a_run_that_left_is_gone_though_its_caller_is_remembered(self) -> None:
        """It has an image, and its caller may be ahead of the clock for long."""
        simulation, program = Simulation(), CostedProgram(4, 0.3)
        simulation.arrive("stays", program)
        simulation.arrive("left", program, 4)
        assert [callers_of(batch) for batch in simulation.steps(2)] == [["stays"], ["left"]]
        run = weakref.ref(simulation.entries.pop().run)
        simulation.batches.clear()
        assert remembered(simulation.scheduler) == 2
        assert run() is None


class TestCost:
    """A decision costs nothing for those who have no part in it: in calls, which are always the same."""

    @pytest.mark.parametrize("callers", [1, 4, 10_000])
    def test_a_decision(self, callers: int) -> None:
        few, many = (calls_of_a_decision(outstanding, callers) for outstanding in (50, 1000))
        assert many <= 1.1 * few

    @pytest.mark.parametrize("callers", [1, 4, 10_000])
    def test_a_decision_among_those_who_wait_for_company(self, callers: int) -> None:
        few, many = (calls_of_a_decision(each, callers, queued=True) for each in (50, 1000))
        assert many <= 1.1 * few

    def test_a_decision_beside_those_who_are_paused(self) -> None:
        few, many = (calls_of_a_decision(50, 10_000, paused=paused) for paused in (0, 1000))
        assert many <= 1.1 * few


def calls_of_a_decision(outstanding: int, callers: int, *, queued: bool = False, paused: int = 0) -> float:
    """Return what a decision takes, with everything that a device asks around it.

    So many Runs of a row each are outstanding, some of them of the same caller; who is served comes again.
    """
    simulation, program = Simulation(), CostedProgram(8, 0.3)
    scheduler, batching = simulation.scheduler, Batching(default_queue_policy=QueuePolicy("DELAY", 1e6))

    def arrive(number: int) -> Entry:
        queueing = Queueing(program, batching, 0, 1, simulation.now) if queued else None
        return simulation.arrive(str(number % callers), program, 1, ends=1e9, queueing=queueing)

    def decide() -> None:
        batch = scheduler.next_batch(simulation.now)
        scheduler.expire(simulation.now)
        assert not scheduler.timed_out
        assert scheduler.waiting == outstanding - 7  # nobody asked the last of the batch for a second row
        assert (scheduler.wakes(simulation.now) is not None) == queued
        assert batch is not None
        simulation.complete(batch, 0.3)

    for number in range(outstanding):
        arrive(number)
    for number in range(paused):
        scheduler.pause(arrive(outstanding + number), paused=True)
    counts = []
    for _ in range(300):
        counts.append(calls(decide))
        for part in simulation.batches[-1].parts:
            arrive(int(part.entry.caller))
    return sum(counts[150:]) / 150


def calls(does: Callable[[], None]) -> int:
    """Return how many functions are called."""
    count = 0

    def note(_frame: FrameType, event: str, _argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        does()
    finally:
        sys.setprofile(None)
    return count


def remembered(scheduler: Scheduler) -> int:
    """How many callers the scheduler has in memory, one per caller and priority."""
    return sum(len(each.callers) for each in scheduler._priorities.values())


def test_a_run_hands_out_work_only_to_the_scheduler() -> None:
    """What `take` returns is in exactly one batch."""
    simulation, program = Simulation(), CostedProgram(3, 1.0)
    entry = simulation.arrive("a", program, ENDLESS)
    for batch in simulation.steps(3):
        assert all(isinstance(part.work, Work) for part in batch.parts)
    assert run_of(entry).done == 9
    assert run_of(entry).out == 0
