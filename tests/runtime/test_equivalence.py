"""The scheduler decides what the straightforward one decides, to the last bit, whatever happens."""

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from fakes.properties import examples
from fakes.runs import CostedProgram, CountedRun
from runtime.simulation import RESULT
from runtime.straightforward import StraightforwardScheduler
from vitrail_server.explainers.run import Nothing, Work
from vitrail_server.runtime.entry import Batch, Entry
from vitrail_server.runtime.queueing import Queueing
from vitrail_server.runtime.scheduler import Scheduler
from vitrail_server.servable import Batching, QueuePolicy

BATCHINGS = (
    Batching(),
    Batching(max_queue_delay=0.5, default_queue_policy=QueuePolicy("DELAY", 0.75)),
    Batching(preferred_batch_sizes=(2, 6), max_queue_delay=1.0),
    Batching(
        preferred_batch_sizes=(4,),
        max_queue_delay=2.0,
        priority_levels=2,
        default_queue_policy=QueuePolicy("REJECT", 1.5, allow_timeout_override=True, max_queue_size=3),
        priority_queue_policies={2: QueuePolicy("DELAY", 0.25, max_queue_size=2)},
    ),
)
"""How the inferences of each model wait."""

PROGRAMS = ((1, 0.5), (4, 0.125), (16, 1.0), (16, 0.1))
"""Batch sizes and seconds."""


class WholeRun(CountedRun):
    """An inference whose rows would rather stay together."""

    def __init__(self, rows: int, program: CostedProgram) -> None:
        super().__init__(rows)
        self._program = program

    def take(self, rows: int) -> Work | Nothing:
        return Nothing.WAIT if rows < min(self.waiting, self._program.batch_size) else super().take(rows)


@dataclass(frozen=True)
class Arrival:
    """What comes, for both sides alike."""

    program: int
    rows: int
    caller: str
    priority: int
    budget: float | None
    batching: int | None
    level: int
    timeout: float


@dataclass
class Side:
    """A scheduler in the hands of a device: the one under test, or the straightforward one."""

    scheduler: Scheduler | StraightforwardScheduler
    programs: list[CostedProgram] = field(default_factory=lambda: [CostedProgram(*each) for each in PROGRAMS])
    entries: list[Entry] = field(default_factory=list)
    """All that ever came, by number."""
    present: set[int] = field(default_factory=set)
    out: list[Batch] = field(default_factory=list)
    """The batches at the device."""

    def arrive(self, arrival: Arrival, now: float) -> bool:
        """Let a Run arrive; return whether its queue was full."""
        program, queueing = self.programs[arrival.program], None
        run = CountedRun(arrival.rows)
        if arrival.batching is not None:
            batching = BATCHINGS[arrival.batching]
            rows = min(arrival.rows, program.batch_size)
            run = WholeRun(rows, program) if arrival.level else CountedRun(rows)
            queueing = Queueing(batching, batching, arrival.level, rows, now, arrival.timeout)
            if self.scheduler.full(queueing):
                return True
        entry = Entry(
            run=run,
            program=program,
            caller=arrival.caller,
            arrived=now,
            priority=arrival.priority,
            ends=None if arrival.budget is None else now + arrival.budget,
            queueing=queueing,
        )
        self.present.add(len(self.entries))
        self.entries.append(entry)
        self.scheduler.add(entry)
        return False

    def decide(self, now: float) -> tuple[object, ...] | None:
        """Let a batch be formed; return all that there is to know of it."""
        batch = self.scheduler.next_batch(now)
        if batch is None:
            return None
        self.out.append(batch)
        parts = [
            (self.entries.index(part.entry), len(part), part.charged, part.was_begun, part.was_fresh)
            for part in batch.parts
        ]
        return self.programs.index(program_of(batch)), parts, dict(batch.waited)

    def withdraw(self) -> None:
        """Take the last batch back."""
        batch = self.out.pop()
        self.scheduler.withdraw(batch)
        self.come_back(batch, CountedRun.give_back)

    def complete(self, seconds: float, *, lost: bool) -> None:
        """Let the first batch end after `seconds`, with its results or without."""
        batch = self.out.pop(0)
        self.scheduler.settle(batch, seconds)
        self.come_back(batch, CountedRun.give_back if lost else absorb)

    def fail(self) -> None:
        """Let the first batch fail, whoever's fault it is."""
        batch = self.out.pop(0)
        for part in batch.parts:
            self.scheduler.isolate(part.entry)
        self.come_back(batch, CountedRun.give_back)

    def come_back(self, batch: Batch, how: Callable[[CountedRun, Work], None]) -> None:
        for part in batch.parts:
            self.scheduler.returned(part.entry)
            how(run_of(part.entry), part.work)
            if part.entry.run.finished:
                self.leave(self.entries.index(part.entry))

    def leave(self, number: int) -> None:
        """Let a Run go."""
        self.present.discard(number)
        self.scheduler.remove(self.entries[number])

    def expire(self, now: float) -> list[int]:
        """Let time end what it ends; return who went."""
        self.scheduler.expire(now)
        gone = sorted(map(self.entries.index, self.scheduler.timed_out))
        for number in gone:
            self.leave(number)
        return gone

    def standing(self) -> list[object]:
        """Return where everybody stands, as of the last decision."""
        return [
            (entry.turn.served, entry.turn.fresh, entry.dry, entry.begun, entry.run.finished)
            for entry in self.entries
        ]

    def known(self) -> dict[int, list[str]]:
        """Return the callers that are remembered, by priority."""
        return {number: sorted(each.callers) for number, each in self.scheduler._priorities.items()}


def run_of(entry: Entry) -> CountedRun:
    assert isinstance(entry.run, CountedRun)
    return entry.run


def program_of(batch: Batch) -> CostedProgram:
    assert isinstance(batch.program, CostedProgram)
    return batch.program


def absorb(run: CountedRun, work: Work) -> None:
    run.absorb(work, RESULT)


@dataclass
class Load:
    """What makes one stream of events unlike another."""

    busy: int
    """Runs in progress at most."""
    callers: str
    priorities: tuple[int, ...]
    inferences: float
    """The share of inferences that wait in a queue."""
    budgets: float
    """The share of Runs with a time budget."""
    burst: int
    """How many arrive at once, at most."""

    def arrival(self, random: Random) -> Arrival:
        return Arrival(
            program=random.randrange(len(PROGRAMS)),
            rows=random.choice([1, 1, 2, 3, 9, 60]),
            caller=random.choice(self.callers),
            priority=random.choice(self.priorities),
            budget=random.choice([1.0, 4.0]) if random.random() < self.budgets else None,
            batching=random.randrange(len(BATCHINGS)) if random.random() < self.inferences else None,
            level=random.randrange(3),
            timeout=random.choice([0.0, 0.4]),
        )


class Comparison:
    """Both sides live through the same, and are compared after every step."""

    def __init__(self, load: Load, random: Random) -> None:
        self.sides = self.side, _ = Side(Scheduler()), Side(StraightforwardScheduler())
        self.load = load
        self.random = random
        self.now = 0.0
        self.steps: dict[Callable[[], None], int] = {
            self.arrive: 20,
            self.decide: 30,
            self.complete: 20,
            self.withdraw: 5,
            self.fail: 1,
            self.pause: 8,
            self.leave: 1,
            self.wait: 4,
            self.expire: 2,
            self.measure: 2,
        }
        """What may happen, and how often it does."""

    def live(self, steps: int) -> None:
        for step in self.random.choices(list(self.steps), list(self.steps.values()), k=steps):
            step()
            self.same(lambda side: len(side.scheduler))
            self.same(lambda side: side.scheduler.waiting)
            self.same(lambda side: sorted(map(side.entries.index, side.scheduler.timed_out)))
            self.same(lambda side: side.scheduler.wakes(self.now))

    def same(self, does: Callable[[Side], object]) -> object:
        one, other = map(does, self.sides)
        assert one == other
        return one

    def someone(self) -> int | None:
        return self.random.choice(sorted(self.side.present)) if self.side.present else None

    def arrive(self) -> None:
        """Let one or several Runs arrive, which often takes the waiting batch apart."""
        arrival = self.load.arrival(self.random)
        if self.random.random() < 0.5:
            self.withdraw()
        for _ in range(self.random.randint(1, self.load.burst)):
            if len(self.side.present) < self.load.busy:
                self.same(lambda side: side.arrive(arrival, self.now))

    def decide(self) -> None:
        if len(self.side.out) < 3:
            self.same(lambda side: side.decide(self.now))
            self.same(Side.standing)
            self.same(Side.known)

    def withdraw(self) -> None:
        if self.side.out:
            self.same(Side.withdraw)

    def complete(self) -> None:
        """Let a batch end as fast as its program says, or not."""
        if self.side.out:
            seconds = self.random.choice([0, 0.5, 1, 1, 1.1, 3]) * self.side.out[0].program.seconds
            lost = self.random.random() < 0.1
            self.now += seconds
            self.same(lambda side: side.complete(seconds, lost=lost))

    def fail(self) -> None:
        if self.side.out:
            self.same(Side.fail)

    def pause(self) -> None:
        """Let a reader fall behind, or catch up."""
        if (number := self.someone()) is not None:
            paused = self.random.random() < 0.5
            self.same(lambda side: side.scheduler.pause(side.entries[number], paused=paused))

    def leave(self) -> None:
        if (number := self.someone()) is not None:
            self.same(lambda side: side.leave(number))

    def wait(self) -> None:
        self.now += self.random.choice([0.01, 0.05, 0.3, 1.1])

    def expire(self) -> None:
        self.same(lambda side: side.expire(self.now))

    def measure(self) -> None:
        """Let the batches of a program take another time than they took, or let its batch size be halved."""
        program = self.random.randrange(len(PROGRAMS))
        seconds, size = self.random.choice([0.01, 0.2, 0.7, 2.0]), self.random.choice([1, 1, 1, 2])
        for side in self.sides:
            side.programs[program].seconds = seconds
            side.programs[program].batch_size = max(1, PROGRAMS[program][0] // size)


@given(
    load=st.builds(
        Load,
        busy=st.sampled_from([3, 10, 40]),
        callers=st.sampled_from(["a", "ab", "abcd", "abcdefghij"]),
        priorities=st.sampled_from([(100,), (100, 99), (100, 100, 99, 1)]),
        inferences=st.sampled_from([0.0, 0.5, 0.9]),
        budgets=st.sampled_from([0.0, 0.3]),
        burst=st.sampled_from([1, 12]),
    ),
    random=st.randoms(use_true_random=True),
)
@examples(150)
def test_it_decides_what_the_straightforward_one_decides(load: Load, random: Random) -> None:
    """Two hundred events of every kind; the seed says all that there is to know of them."""
    Comparison(load, random).live(200)
