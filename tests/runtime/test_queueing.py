"""How inferences wait: for company, for room, and not for ever. On a virtual clock."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes.properties import examples
from fakes.runs import CostedProgram, CountedRun
from runtime.simulation import Simulation
from vitrail.errors import DeadlineExceeded
from vitrail_server.inference.run import InferenceRun
from vitrail_server.runtime.entry import DEFAULT_PRIORITY, Batch, Entry
from vitrail_server.runtime.queueing import Queueing, rows_to_run
from vitrail_server.runtime.scheduler import Scheduler
from vitrail_server.savedmodel.programs import predicted
from vitrail_server.servable import Batching, QueuePolicy
from vitrail_server.work import Kind, PredictRows

QUEUE = object()


def waits(rows: int, batching: Batching, arrived: float = 0.0, **fields: Any) -> Queueing:
    return Queueing(QUEUE, batching, fields.pop("level", 0), rows, arrived, **fields)


@dataclass
class Server:
    """A scheduler with one model that predicts, in batches of at most 8."""

    batching: Batching
    scheduler: Scheduler = field(default_factory=Scheduler)
    program: CostedProgram = field(default_factory=lambda: predicting(8))

    def ask(self, rows: int = 1, at: float = 0.0, **terms: Any) -> Entry:
        """Let a request arrive."""
        asked = PredictRows({"x": np.zeros((rows, 1))}, ("y",), rows)
        priority = terms.pop("priority", DEFAULT_PRIORITY)
        caller = terms.pop("caller", "caller")
        entry = Entry(
            run=InferenceRun(asked, self.program),
            program=self.program,
            caller=caller,
            arrived=at,
            priority=priority,
            queueing=waits(rows, self.batching, at, **terms),
        )
        self.scheduler.add(entry)
        return entry

    def batches(self, now: float = 0.0) -> list[int]:
        """Return the rows of the batches that begin now, and compute them."""
        sizes = []
        while batch := self.scheduler.next_batch(now):
            sizes.append(batch.rows)
            self.compute(batch)
        return sizes

    def compute(self, batch: Batch) -> None:
        for part in batch.parts:
            part.entry.run.absorb(part.work, predicted({"y": np.zeros((len(part), 1))}, len(part)))
            if part.entry.run.finished:
                self.scheduler.remove(part.entry)


def predicting(batch_size: int) -> CostedProgram:
    program = CostedProgram(batch_size, 0.1)
    program.kind = Kind.PREDICT
    return program


def test_without_a_delay_whatever_is_there_runs() -> None:
    server = Server(Batching())
    server.ask(3)
    assert server.batches() == [3]
    for _ in range(5):
        server.ask(2)
    assert server.batches() == [8, 2]


def test_a_batch_waits_for_company_until_its_oldest_has_waited_enough() -> None:
    server = Server(Batching(max_queue_delay=1.0))
    server.ask(2, at=0.0)
    assert server.batches(0.0) == []
    assert server.scheduler.wakes(0.0) == 1.0
    server.ask(3, at=0.5)
    assert server.batches(0.5) == []
    assert server.scheduler.wakes(0.5) == 1.0
    assert server.batches(1.0) == [5]
    assert server.scheduler.wakes(1.0) is None


def test_a_full_batch_waits_for_nobody() -> None:
    server = Server(Batching(max_queue_delay=100.0))
    server.ask(6)
    server.ask(2)
    assert server.batches() == [8]
    server.ask(6)
    server.ask(3)
    assert server.batches() == [6], "the next request does not fit, so nobody can join"
    assert server.batches(100.0) == [3]


def test_a_preferred_size_runs_at_once_and_the_rest_waits() -> None:
    server = Server(Batching(preferred_batch_sizes=(2, 4), max_queue_delay=1.0))
    server.ask(1)
    assert server.batches() == []
    server.ask(1)
    assert server.batches() == [2]
    for _ in range(7):
        server.ask(1)
    assert server.batches() == [4, 2]
    assert server.batches(1.0) == [1]


def test_preferred_sizes_are_made_of_whole_requests() -> None:
    server = Server(Batching(preferred_batch_sizes=(4,), max_queue_delay=1.0))
    server.ask(3)
    server.ask(3)
    assert server.batches() == []
    assert server.batches(1.0) == [6]


def test_a_request_is_never_split_for_the_sake_of_a_batch() -> None:
    server = Server(Batching())
    server.ask(5)
    server.ask(5)
    server.ask(2)
    assert server.batches() == [5, 7]


@examples(200)
@given(
    st.lists(st.integers(1, 8), min_size=1, max_size=12),
    st.sets(st.integers(1, 8), max_size=3),
    st.floats(0, 2),
    st.floats(0, 3),
)
def test_the_next_batch_is_whole_requests_within_the_limit(
    rows: list[int], preferred: set[int], delay: float, now: float
) -> None:
    batching = Batching(preferred_batch_sizes=tuple(sorted(preferred)), max_queue_delay=delay)
    found = rows_to_run([waits(each, batching) for each in rows], 8, now)
    prefixes = [sum(rows[:count]) for count in range(1, len(rows) + 1)]
    fitting = [each for each in prefixes if each <= 8]
    if found is None:
        assert now < delay
        assert not set(fitting) & preferred
        assert prefixes[-1] < 8
    else:
        assert found in fitting
        if set(fitting) & preferred:
            assert found == max(set(fitting) & preferred)
        else:
            assert found == fitting[-1]


def test_other_work_goes_on_while_inferences_wait_for_company() -> None:
    simulation = Simulation()
    server = Server(Batching(max_queue_delay=10.0), simulation.scheduler)
    server.ask(1)
    simulation.arrive("other", CostedProgram(4, 0.1), 4)
    batch = simulation.step()
    assert batch is not None
    assert batch.parts[0].entry.caller == "other"
    assert simulation.step() is None


def test_waiting_inferences_take_the_free_places_of_an_explanation_s_batch() -> None:
    """They would be padding, so there is nothing to wait for."""
    scheduler = Scheduler()
    program = CostedProgram(4, 0.1)
    server = Server(Batching(max_queue_delay=10.0), scheduler, program)
    inference = server.ask(2)
    assert scheduler.next_batch(0.0) is None
    explanation = Entry(run=CountedRun(3), program=program, caller="a", arrived=0.0)
    scheduler.add(explanation)
    batch = scheduler.next_batch(0.0)
    assert batch is not None
    assert {id(part.entry): len(part) for part in batch.parts} == {id(explanation): 3, id(inference): 1}
    rest = scheduler.next_batch(0.0)
    assert rest is not None
    assert [len(part) for part in rest.parts] == [1], "what has begun waits for nothing"


def test_more_urgent_levels_go_first() -> None:
    server = Server(Batching(priority_levels=3, default_priority_level=2))
    late = [server.ask(4, level=level, priority=100 + level - 2) for level in (3, 2, 1)]
    batch = server.scheduler.next_batch(0.0)
    assert batch is not None
    assert [part.entry for part in batch.parts] == [late[2], late[1]]


REJECT = QueuePolicy(default_timeout=1.0)


@pytest.mark.parametrize(
    ("policy", "asked", "seconds"),
    [
        (QueuePolicy(), 0.0, None),
        (QueuePolicy(), 0.5, None),
        (QueuePolicy(allow_timeout_override=True), 0.5, None),
        (REJECT, 0.0, 1.0),
        (REJECT, 0.5, 1.0),
        (QueuePolicy(default_timeout=1.0, allow_timeout_override=True), 0.5, 0.5),
        (QueuePolicy(default_timeout=1.0, allow_timeout_override=True), 2.0, 1.0),
        (QueuePolicy(default_timeout=1.0, allow_timeout_override=True), 0.0, 1.0),
    ],
)
def test_a_request_may_shorten_a_timeout_where_its_model_allows_that(
    policy: QueuePolicy, asked: float, seconds: float | None
) -> None:
    queueing = waits(1, Batching(default_queue_policy=policy), 10.0, timeout=asked)
    assert queueing.times_out == (None if seconds is None else 10.0 + seconds)


def test_who_has_waited_too_long_is_refused() -> None:
    server = Server(Batching(default_queue_policy=REJECT))
    early, late = server.ask(1, at=0.0), server.ask(1, at=0.5)
    assert server.scheduler.wakes(0.5) == 1.0
    server.scheduler.expire(1.0)
    assert isinstance(early.run.error, DeadlineExceeded)
    assert early.run.error.message == "Request timeout expired"
    assert late.run.error is None
    assert server.batches(1.0) == [1]


def test_what_has_begun_is_not_refused() -> None:
    server = Server(Batching(default_queue_policy=REJECT))
    entry = server.ask(1)
    batch = server.scheduler.next_batch(0.9)
    assert batch is not None
    server.scheduler.expire(5.0)
    assert entry.run.error is None
    assert server.scheduler.wakes(0.9) is None
    server.compute(batch)
    assert entry.run.finished


def test_a_batch_that_is_taken_apart_waits_as_before() -> None:
    server = Server(Batching(default_queue_policy=REJECT))
    entry = server.ask(1)
    batch = server.scheduler.next_batch(0.5)
    assert batch is not None
    server.scheduler.withdraw(batch)
    entry.run.give_back(batch.parts[0].work)
    server.scheduler.expire(1.0)
    assert isinstance(entry.run.error, DeadlineExceeded)


def test_who_is_delayed_comes_after_everyone_else() -> None:
    server = Server(Batching(default_queue_policy=QueuePolicy("DELAY", 1.0)))
    delayed = server.ask(8, at=0.0)
    for at in (0.5, 0.6):
        server.ask(8, at=at)
    served = []
    while batch := server.scheduler.next_batch(1.2):
        served.append(batch.parts[0].entry)
        server.compute(batch)
    assert served[-1] is delayed
    assert len(served) == 3
    assert delayed.run.error is None


def test_levels_have_policies_and_queues_of_their_own() -> None:
    batching = Batching(
        priority_levels=2,
        default_priority_level=1,
        default_queue_policy=QueuePolicy(max_queue_size=2),
        priority_queue_policies={2: QueuePolicy(default_timeout=1.0, max_queue_size=1)},
    )
    server = Server(batching)
    first, second = waits(1, batching, level=1), waits(1, batching, level=2)
    assert (first.times_out, second.times_out) == (None, 1.0)
    assert not server.scheduler.full(second)
    server.ask(1, level=2)
    assert server.scheduler.full(second)
    assert not server.scheduler.full(first)
    other = Queueing(object(), batching, 2, 1, 0.0)
    assert not server.scheduler.full(other), "another model has another queue"
    server.ask(1, level=1)
    server.ask(1, level=1)
    assert server.scheduler.full(first)
    server.batches()
    assert not server.scheduler.full(first)


def test_a_request_that_failed_in_company_runs_alone_and_at_once() -> None:
    batching = Batching(max_queue_delay=100.0, default_queue_policy=QueuePolicy(max_queue_size=2))
    server = Server(batching)
    entry, _ = server.ask(1), server.ask(1)
    assert server.scheduler.full(waits(1, batching))
    server.scheduler.isolate(entry)
    assert not server.scheduler.full(waits(1, batching)), "it has left the queue"
    assert server.batches() == [1]
