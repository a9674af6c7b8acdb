import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial

import numpy as np
import pytest

from fakes.models import Linear, Softmax, picture, weights
from fakes.questions import ask
from fakes.runs import CostedProgram, CountedRun
from fakes.servables import FakeProgram
from runtime.stage import Held, Request, Stage
from vitrail.errors import FailedPrecondition, Internal, ResourceExhausted, Unavailable
from vitrail_server.explainers.gradient import GradientParameters, GradientRun
from vitrail_server.explainers.occlusion import OcclusionParameters, OcclusionRun
from vitrail_server.explainers.question import AllTargets
from vitrail_server.explainers.run import Nothing, Work
from vitrail_server.runtime.device import BACKLOG, IN_FLIGHT, PATIENCE, SHORT
from vitrail_server.work import Kind, OccludeRows, OutOfMemory, Result, Rows

SHAPE = (6, 6, 1)
MODEL = Linear(weights(5, 2, SHAPE))


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    stage = Stage()
    yield stage
    stage.close()


def occlusion(seed: int = 0) -> OcclusionRun:
    """A Run of 37 rows."""
    return OcclusionRun(ask(MODEL, picture(seed, SHAPE)), OcclusionParameters((1, 1)))


def counted(run: Request) -> CountedRun:
    assert isinstance(run.run, CountedRun)
    return run.run


async def finish_batch(program: Held, request: Request) -> None:
    """Let the batch that has begun finish, and wait until its results are with the Run."""
    changes = request.changes
    program.let()
    await request.until(lambda: request.changes > changes)


class TestMaps:
    async def test_a_map_through_the_device_is_that_of_the_formula(self, stage: Stage) -> None:
        """Hiding one pixel of a linear model takes away weight times pixel."""
        request = stage.submit(occlusion(), FakeProgram(MODEL, Kind.FORWARD, batch_size=4))
        await request.end()
        assert request.canvas
        assert request.canvas.final.all()
        expected = MODEL.weights[..., 0] * picture(0, SHAPE)[..., 0]
        np.testing.assert_allclose(request.canvas.values, expected, atol=1e-6)
        assert request.submission.summary().done == 37
        assert request.submission.error is None
        assert request.handle.closed == 1

    async def test_maps_have_the_same_bits_alone_and_in_company(self, stage: Stage) -> None:
        model = Softmax(weights(1, 3, SHAPE))
        occlude, gradient = FakeProgram(model, Kind.FORWARD, batch_size=8), FakeProgram(model, Kind.GRADIENT)

        def submit(seed: int, caller: str) -> list[Request]:
            question = ask(model, picture(seed, SHAPE), targets=AllTargets())
            return [
                stage.submit(
                    OcclusionRun(question, OcclusionParameters((2, 2), (1, 1))), occlude, caller=caller
                ),
                stage.submit(GradientRun(question, GradientParameters()), gradient, caller=caller),
            ]

        alone = []
        for seed in range(4):
            for request in submit(seed, "a"):
                await request.end()
                alone.append(request)
        together = [request for seed in range(4) for request in submit(seed, str(seed))]
        for request in together:
            await request.end()
        for one, other in zip(alone, together, strict=True):
            assert one.canvas
            assert other.canvas
            assert one.canvas.values.tobytes() == other.canvas.values.tobytes()
            assert one.submission.summary() == other.submission.summary()

    async def test_gradients_of_many_callers_become_one_batch(self, stage: Stage) -> None:
        blocker, program = stage.held(CostedProgram(1, 0.1)), FakeProgram(MODEL, Kind.GRADIENT, batch_size=16)
        first = [stage.submit(CountedRun(2), blocker)]
        await blocker.begun()
        requests = [
            stage.submit(
                GradientRun(ask(MODEL, picture(k, SHAPE)), GradientParameters()), program, caller=str(k)
            )
            for k in range(8)
        ]
        blocker.open()
        for request in [*first, *requests]:
            await request.end()
        assert program.batches == [16]


class TestPipeline:
    async def test_one_batch_waits_behind_the_running_one(self, stage: Stage) -> None:
        program = stage.held(CostedProgram(4, 0.1))
        request = stage.submit(CountedRun(40), program)
        assert await program.begun() == 4
        assert counted(request).out == IN_FLIGHT * 4
        await finish_batch(program, request)
        assert await program.begun() == 4
        assert counted(request).done == 4
        assert counted(request).out == IN_FLIGHT * 4

    async def test_a_new_caller_goes_before_the_batch_that_waits(self, stage: Stage) -> None:
        program, short = stage.held(CostedProgram(4, 0.1)), stage.held(CostedProgram(4, 0.1))
        long = stage.submit(CountedRun(400), program, caller="a")
        await program.begun()
        stage.submit(CountedRun(1), short, caller="b")
        assert counted(long).out == 4, "the batch that waited is taken apart, and the newcomer's is behind"
        await finish_batch(program, long)
        assert await short.begun() == 1
        assert counted(long).out == 4, "and its rows wait again, behind the newcomer's"

    async def test_a_new_caller_joins_the_batch_that_waits(self, stage: Stage) -> None:
        blocker, program = stage.held(CostedProgram(1, 0.1)), stage.held(CostedProgram(8, 0.1))
        first = stage.submit(CountedRun(1), blocker)
        await blocker.begun()
        requests = [stage.submit(CountedRun(3), program, caller=caller) for caller in "abc"]
        blocker.open()
        assert await program.begun() == 8
        program.open()
        for request in [first, *requests]:
            await request.end()
        assert program.executed == [8, 1]

    async def test_newcomers_are_served_in_the_order_of_their_arrival(self, stage: Stage) -> None:
        """The batch is taken apart for each of them, and each keeps its place in it."""
        program, shorts = (
            stage.held(CostedProgram(4, 0.1)),
            [stage.held(CostedProgram(4, 0.1)) for _ in "abc"],
        )
        long = stage.submit(CountedRun(400), program, caller="long")
        await program.begun()
        newcomers = [
            stage.submit(CountedRun(4), short, caller=caller)
            for caller, short in zip("abc", shorts, strict=True)
        ]
        await finish_batch(program, long)
        for short, newcomer in zip(shorts, newcomers, strict=True):
            assert await short.begun() == 4
            await finish_batch(short, newcomer)

    async def test_no_row_is_lost_however_often_the_batch_is_taken_apart(self, stage: Stage) -> None:
        program = stage.held(FakeProgram(MODEL, Kind.FORWARD, batch_size=4))
        requests = [stage.submit(occlusion(0), program, caller="a")]
        for seed in range(1, 6):
            await program.begun()
            requests.append(stage.submit(occlusion(seed), program, caller=str(seed)))
            program.let()
        program.open()
        for seed, request in enumerate(requests):
            await request.end()
            expected = MODEL.weights[..., 0] * picture(seed, SHAPE)[..., 0]
            assert request.canvas
            np.testing.assert_allclose(request.canvas.values, expected, atol=1e-6)
            assert request.submission.summary().done == 37
            assert request.handle.closed == 1
        assert sum(program.executed) == 6 * 37

    async def test_work_that_comes_while_the_device_is_idle_begins_at_once(self, stage: Stage) -> None:
        program = stage.held(CostedProgram(4, 0.1))
        program.let(2)
        for _ in range(2):
            await stage.submit(CountedRun(1), program).end()
        assert program.executed == [1, 1]

    async def test_the_queue_is_reported(self, stage: Stage) -> None:
        program = stage.held(CostedProgram(4, 0.1))
        requests = [stage.submit(CountedRun(5), program, caller=caller) for caller in "abcd"]
        await program.begun()
        assert stage.events.queue == (4, 2)
        program.open()
        for request in requests:
            await request.end()
        assert stage.events.queue == (0, 0)


class TestTimes:
    async def test_queue_and_device_seconds_by_the_share_of_rows(self, stage: Stage) -> None:
        blocker, program = stage.held(CostedProgram(1, 7.0)), stage.held(CostedProgram(4, 2.0))
        first = stage.submit(CountedRun(2), blocker, caller="z")
        await blocker.begun()
        requests = [stage.submit(CountedRun(rows), program, caller=str(rows)) for rows in (1, 3, 2)]
        blocker.open()
        program.open()
        for request in [first, *requests]:
            await request.end()
        submissions = [request.submission for request in [first, *requests]]
        assert [each.queue_seconds for each in submissions] == [0.0, 7.0, 7.0, 9.0]
        assert [each.device_seconds for each in submissions] == [14.0, 0.5, 1.5, 2.0]

    async def test_batches_are_reported_with_rows_and_size(self, stage: Stage) -> None:
        program = stage.held(CostedProgram(4, 2.0))
        program.open()
        await stage.submit(CountedRun(6), program).end()
        assert [(event.rows, event.size, event.seconds) for event in stage.events.executed] == [
            (4, 4, 2.0),
            (2, 4, 2.0),
        ]
        assert {event.kind for event in stage.events.executed} == {Kind.FORWARD}


class TestCancelling:
    async def test_a_cancelled_run_gives_no_rows(self, stage: Stage) -> None:
        blocker, program = stage.held(CostedProgram(1, 0.1)), stage.held(CostedProgram(8, 0.1))
        first = stage.submit(CountedRun(IN_FLIGHT), blocker, priority=1)
        await blocker.begun()
        gone, stays = (stage.submit(CountedRun(3), program, caller=caller) for caller in "ab")
        gone.submission.cancel()
        blocker.open()
        program.open()
        await stays.end()
        await first.end()
        assert program.executed == [3]
        assert (counted(gone).done, counted(stays).done) == (0, 3)
        assert stage.events.dropped == 0, "its rows were in no batch yet"

    async def test_rows_that_were_in_the_waiting_batch_are_dropped_and_counted(self, stage: Stage) -> None:
        program = stage.held(CostedProgram(4, 0.1))
        first = stage.submit(CountedRun(4), program)
        assert await program.begun() == 4
        gone = stage.submit(CountedRun(3), program, caller="gone")
        assert counted(gone).out == 3
        gone.submission.cancel()
        assert gone.handle.closed == 0, "its rows may be read until the device has left them out"
        program.open()
        await first.end()
        await gone.let_go()
        assert program.executed == [4]
        assert stage.events.dropped == 3
        assert counted(gone).done == 0

    async def test_a_run_cancelled_in_the_middle_of_a_batch_ends_with_it(self, stage: Stage) -> None:
        program = stage.held(CostedProgram(4, 0.1))
        request = stage.submit(CountedRun(400), program)
        await program.begun()
        request.submission.cancel()
        assert request.handle.closed == 0
        program.open()
        await request.let_go()
        assert program.executed == [4]
        assert counted(request).done == 0
        assert stage.events.dropped == 4

    async def test_others_go_on_at_once(self, stage: Stage) -> None:
        program = stage.held(CostedProgram(4, 0.1))
        gone = stage.submit(CountedRun(400), program, caller="a")
        stays = stage.submit(CountedRun(8), program, caller="b")
        await program.begun()
        gone.submission.cancel()
        program.open()
        await stays.end()
        assert counted(stays).done == 8

    async def test_a_run_with_nothing_out_lets_go_at_once(self, stage: Stage) -> None:
        blocker, program = stage.held(CostedProgram(1, 0.1)), CostedProgram(4, 0.1)
        stage.submit(CountedRun(2), blocker, priority=1)
        await blocker.begun()
        request = stage.submit(CountedRun(4), program)
        request.submission.cancel()
        assert request.handle.closed == 1

    async def test_cancelling_twice_or_after_the_end_does_nothing(self, stage: Stage) -> None:
        request = stage.submit(CountedRun(4), CostedProgram(4, 0.1))
        await request.end()
        request.submission.cancel()
        request.submission.cancel()
        assert request.handle.closed == 1
        assert request.submission.finished


class TestHandles:
    async def test_it_is_let_go_when_the_last_row_is_in_not_when_the_last_tile_is_read(
        self, stage: Stage
    ) -> None:
        request = stage.submit(occlusion(), FakeProgram(MODEL, Kind.FORWARD, batch_size=16))
        await request.end(reads=False)
        assert request.handle.closed == 1
        request.read()
        assert request.canvas
        assert request.canvas.final.all()

    async def test_it_is_kept_while_rows_are_out(self, stage: Stage) -> None:
        program = stage.held(CostedProgram(4, 0.1))
        request = stage.submit(CountedRun(8), program)
        await program.begun()
        await finish_batch(program, request)
        await program.begun()
        assert request.handle.closed == 0
        program.open()
        await request.end()
        assert request.handle.closed == 1

    async def test_a_failed_run_keeps_it_while_its_other_rows_are_at_the_device(self, stage: Stage) -> None:
        program = stage.held(Breaking(4, when=lambda _: True))
        request = stage.submit(CountedRun(8), program)
        await program.begun()
        await finish_batch(program, request)
        assert request.submission.error is not None
        assert request.submission.finished
        program.open()
        await request.let_go()
        assert request.handle.closed == 1


class Breaking(CostedProgram):
    """Fails for the images that `when` says."""

    def __init__(
        self, batch_size: int, when: Callable[[Rows], bool], error: BaseException | None = None
    ) -> None:
        super().__init__(batch_size, 0.1)
        self.when = when
        self.error = error or ValueError("Incompatible shapes: [2,3] vs. [4]\n\t [[node at 0x7f]]")

    def execute(self, parts: Sequence[Rows]) -> list[Result]:
        if any(self.when(part) for part in parts):
            raise self.error
        return super().execute(parts)


class MarkedRun(CountedRun):
    """A counted Run whose rows a program can tell from others'."""

    def take(self, rows: int) -> Work | Nothing:
        work = super().take(rows)
        if isinstance(work, Work) and isinstance(work.rows, OccludeRows):
            return Work(OccludeRows(work.rows.subject, "marked", work.rows.windows), work.tag)
        return work


def marked(rows: Rows) -> bool:
    return isinstance(rows, OccludeRows) and rows.output == "marked"


class TestFailures:
    async def test_an_image_that_breaks_the_model_fails_alone(
        self, stage: Stage, caplog: pytest.LogCaptureFixture
    ) -> None:
        program = stage.held(Breaking(16, marked))
        blocker = stage.held(CostedProgram(1, 0.1))
        stage.submit(CountedRun(2), blocker)
        await blocker.begun()
        good, bad, other = (
            stage.submit(run, program, caller=caller)
            for caller, run in [("a", CountedRun(5)), ("b", MarkedRun(5)), ("c", CountedRun(5))]
        )
        blocker.open()
        program.open()
        for request in (good, other, bad):
            await request.end()
        assert program.executed[0] == 15
        assert (counted(good).done, counted(other).done) == (5, 5)
        assert isinstance(bad.submission.error, Internal)
        assert bad.submission.error.message == (
            "the model failed while it computed: ValueError: Incompatible shapes: [2,3] vs. [4]"
        )
        assert good.submission.error is other.submission.error is None
        assert [request.handle.closed for request in (good, bad, other)] == [1, 1, 1]
        assert stage.events.failed == [False, False]
        assert [record.message for record in caplog.records] == ["a batch failed"]

    async def test_what_the_program_refuses_is_told_as_it_is(self, stage: Stage) -> None:
        refusal = FailedPrecondition("output 'classes' has no gradient")
        request = stage.submit(CountedRun(4), Breaking(4, lambda _: True, refusal))
        await request.end()
        assert request.submission.error is refusal
        assert request.handle.closed == 1

    async def test_the_device_goes_on_after_a_failure(
        self, stage: Stage, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.CRITICAL)
        broken = stage.submit(CountedRun(5), Breaking(4, lambda _: True))
        await broken.end()
        request = stage.submit(CountedRun(5), CostedProgram(4, 0.1))
        await request.end()
        assert counted(request).done == 5

    async def test_a_failed_run_costs_the_device_no_more_batches(
        self, stage: Stage, caplog: pytest.LogCaptureFixture
    ) -> None:
        program = stage.held(Breaking(4, lambda _: True))
        request = stage.submit(CountedRun(400), program)
        program.open()
        await request.let_go()
        assert len(program.executed) <= IN_FLIGHT
        assert len(caplog.records) <= IN_FLIGHT

    async def test_results_that_a_run_cannot_absorb_fail_that_run_only(
        self, stage: Stage, caplog: pytest.LogCaptureFixture
    ) -> None:
        class Choking(CountedRun):
            def absorb(self, work: Work, result: Result) -> None:
                super().absorb(work, result)
                raise ZeroDivisionError

        program = stage.held(CostedProgram(8, 0.1))
        bad = stage.submit(Choking(4), program, caller="a")
        await program.begun()
        good = stage.submit(CountedRun(4), program, caller="b")
        program.open()
        await bad.end()
        await good.end()
        assert isinstance(bad.submission.error, Internal)
        assert counted(good).done == 4
        assert bad.handle.closed == 1
        assert "could not absorb" in caplog.text


class TestOutOfMemory:
    async def test_it_halves_the_batch_and_loses_no_window(
        self, stage: Stage, caplog: pytest.LogCaptureFixture
    ) -> None:
        program = FakeProgram(MODEL, Kind.FORWARD, batch_size=16, fits=5)
        requests = [stage.submit(occlusion(seed), program, caller=str(seed)) for seed in range(3)]
        for seed, request in enumerate(requests):
            await request.end()
            expected = MODEL.weights[..., 0] * picture(seed, SHAPE)[..., 0]
            assert request.canvas
            assert request.canvas.final.all()
            np.testing.assert_allclose(request.canvas.values, expected, atol=1e-6)
            assert request.submission.summary().done == 37
            assert request.handle.closed == 1
        assert program.batch_size == 4
        assert sum(program.batches) == 3 * 37
        assert stage.events.failed == [True, True]
        assert stage.events.dropped == 0
        assert "out of memory; batches of 4 from now on" in caplog.text

    async def test_the_batch_that_waited_behind_is_not_halved_twice(self, stage: Stage) -> None:
        """It was assembled with the old size: it is done in smaller batches, and nothing more is halved."""
        inner = FakeProgram(MODEL, Kind.FORWARD, batch_size=16, fits=8)
        program = stage.held(inner)
        request = stage.submit(occlusion(), program)
        assert await program.begun() == 16
        program.open()
        await request.end()
        assert inner.batch_size == 8
        assert inner.batches == [8, 8, 8, 8, 5]
        assert stage.events.failed == [True]

    async def test_a_single_image_that_does_not_fit_is_refused(self, stage: Stage) -> None:
        program = FakeProgram(MODEL, Kind.FORWARD, batch_size=4, fits=0)
        request = stage.submit(occlusion(), program)
        await request.end()
        assert isinstance(request.submission.error, ResourceExhausted)
        assert (
            "out of memory for a single row; use a smaller image or input" in request.submission.error.message
        )
        await request.let_go()
        assert request.handle.closed == 1

    async def test_a_fixed_batch_that_does_not_fit_fails_everybody_alone(self, stage: Stage) -> None:
        program = stage.held(Breaking(8, lambda _: True, OutOfMemory()))
        requests = [stage.submit(CountedRun(2), program, caller=caller) for caller in "ab"]
        program.open()
        for request in requests:
            await request.end()
            assert isinstance(request.submission.error, ResourceExhausted)
            assert request.handle.closed == 1


class TestSlowReaders:
    async def test_a_reader_that_is_behind_stops_its_own_run_only(self, stage: Stage) -> None:
        program = stage.held(CostedProgram(4, 0.1))
        program.open()
        slow = stage.submit(CountedRun(400), program, caller="slow")
        quick = stage.submit(CountedRun(400), program, caller="quick")
        await quick.end()
        assert counted(quick).done == 400
        assert BACKLOG * 4 <= counted(slow).done <= (BACKLOG + IN_FLIGHT - 1) * 4
        assert not slow.submission.finished

        slow.read()
        await slow.end()
        assert counted(slow).done == 400
        assert slow.handle.closed == 1

    async def test_a_stalled_run_whose_time_is_over_ends_when_its_reader_is_back(self, stage: Stage) -> None:
        program = stage.held(CostedProgram(4, 0.1))
        program.open()
        slow = stage.submit(CountedRun(400), program, time_budget=60.0)
        await slow.until(lambda: counted(slow).done >= BACKLOG * 4 and counted(slow).out == 0)
        stage.clock.now += 100
        slow.read()
        await slow.end()
        assert counted(slow).stopped
        assert slow.handle.closed == 1


class TestTimeBudgets:
    async def test_a_budget_spent_in_the_queue_ends_the_run_without_a_plan(self, stage: Stage) -> None:
        blocker, program = stage.held(CostedProgram(1, 5.0)), FakeProgram(MODEL, Kind.FORWARD)
        stage.submit(CountedRun(3), blocker, priority=1)
        await blocker.begun()
        request = stage.submit(occlusion(), program, time_budget=4.0)
        blocker.open()
        await request.end()
        assert request.submission.plan is None
        assert request.submission.summary().partial == "TIME_BUDGET"
        assert program.batches == []
        assert request.handle.closed == 1

    async def test_a_budget_that_is_spent_already_ends_the_run_at_once(self, stage: Stage) -> None:
        request = stage.submit(occlusion(), FakeProgram(MODEL, Kind.FORWARD), time_budget=0.0)
        assert request.submission.finished
        assert request.handle.closed == 1

    async def test_a_run_ends_within_its_budget_with_what_it_has(self, stage: Stage) -> None:
        """Batches of a second: the one that waits behind the running one is looked at again in its turn."""
        program = stage.held(FakeProgram(MODEL, Kind.FORWARD, batch_size=4, seconds=1.0))
        request = stage.submit(occlusion(), program, time_budget=5.5)
        for _ in range(5):
            await program.begun()
            await finish_batch(program, request)
            request.read()
        await request.end()
        assert stage.clock.now - 100 <= 5.5
        assert program.executed == [4] * 5
        summary = request.submission.summary()
        assert summary.partial == "TIME_BUDGET"
        assert (summary.done, summary.dropped) == (20, 17)
        assert request.canvas
        assert request.canvas.final.sum() == 2 * 19
        assert request.handle.closed == 1


class TestChores:
    """Warm-up and measuring, which come from the loading thread."""

    async def test_a_chore_runs_at_once_on_an_idle_device_and_returns_its_result(self, stage: Stage) -> None:
        name = await asyncio.to_thread(stage.device.call, lambda: threading.current_thread().name)
        assert name.startswith("device")

    async def test_what_a_chore_raises_is_raised_where_it_was_asked_for(self, stage: Stage) -> None:
        def chore() -> None:
            raise OutOfMemory("too large")

        with pytest.raises(OutOfMemory, match="too large"):
            await asyncio.to_thread(stage.device.call, chore)
        assert await asyncio.to_thread(stage.device.call, lambda: 1) == 1

    async def test_a_chore_waits_for_a_quiet_moment(self, stage: Stage) -> None:
        program = stage.held(CostedProgram(4, 0.1))
        request = stage.submit(CountedRun(12), program)
        await program.begun()
        chore = asyncio.create_task(asyncio.to_thread(stage.device.call, lambda: len(program.executed)))
        await queued(stage, 1)
        program.open()
        await request.end()
        assert await chore == 3

    async def test_a_chore_that_has_waited_long_goes_before_the_next_batch(self, stage: Stage) -> None:
        program = stage.held(CostedProgram(4, 0.1))
        request = stage.submit(CountedRun(400), program)
        await program.begun()
        chore = asyncio.create_task(asyncio.to_thread(stage.device.call, lambda: len(program.executed)))
        await queued(stage, 1)
        stage.clock.now += PATIENCE
        program.open()
        # The running batch and the one behind it come first.
        assert await chore == IN_FLIGHT
        await request.end()
        assert counted(request).done == 400

    @pytest.mark.parametrize(("seconds", "waits"), [(0.125, False), (0.75, True)])
    async def test_chores_no_longer_than_a_batch_wait_a_few_times_their_own_duration(
        self, stage: Stage, seconds: float, *, waits: bool
    ) -> None:
        def chore() -> int:
            stage.clock.now += seconds
            return len(program.executed)

        program = stage.held(CostedProgram(4, 0.5))
        program.let(IN_FLIGHT)
        await stage.submit(CountedRun(4 * IN_FLIGHT), program).end()
        assert await asyncio.to_thread(stage.device.call, chore) == IN_FLIGHT, "now its duration is known"

        request = stage.submit(CountedRun(40), program)
        await program.begun()
        again = asyncio.create_task(asyncio.to_thread(stage.device.call, chore))
        await queued(stage, 1)
        stage.clock.now += SHORT * 0.125
        await finish_batch(program, request)
        assert bool(stage.device._chores) is waits
        program.open()
        await request.end()
        await again

    async def test_chores_run_in_the_order_of_arrival(self, stage: Stage) -> None:
        done: list[int] = []
        program = stage.held(CostedProgram(4, 0.1))
        request = stage.submit(CountedRun(4), program)
        await program.begun()
        chores = []
        for number in range(3):
            chores.append(
                asyncio.create_task(asyncio.to_thread(stage.device.call, partial(done.append, number)))
            )
            await queued(stage, number + 1)
        program.open()
        await request.end()
        await asyncio.gather(*chores)
        assert done == [0, 1, 2]

    async def test_a_batch_waits_behind_a_chore(self, stage: Stage) -> None:
        began, may_end = asyncio.Event(), threading.Event()
        loop = asyncio.get_running_loop()

        def chore() -> None:
            loop.call_soon_threadsafe(began.set)
            may_end.wait()

        task = asyncio.create_task(asyncio.to_thread(stage.device.call, chore))
        await began.wait()
        request = stage.submit(CountedRun(40), CostedProgram(4, 0.1))
        assert counted(request).out == 4
        may_end.set()
        await task
        await request.end()


async def queued(stage: Stage, chores: int) -> None:
    """Return when so many chores wait at the device."""
    while len(stage.device._chores) < chores:  # noqa: ASYNC110 - nobody is told of a chore
        await asyncio.sleep(0)


class TestClosing:
    async def test_the_running_batch_ends_and_what_waits_is_told(self, stage: Stage) -> None:
        program = stage.held(CostedProgram(4, 0.1))
        running = stage.submit(CountedRun(4), program, caller="a")
        behind = stage.submit(CountedRun(4), program, caller="b")
        queued_run = stage.submit(CountedRun(4), program, caller="c")
        await program.begun()
        # Behind everything in the lane: dropped last, when the lane is being closed.
        stage.device._lane.submit(int).add_done_callback(lambda _: program.open())
        stage.device.close()
        assert program.executed == [4]
        for request in (running, behind, queued_run):
            await request.end()
            assert isinstance(request.submission.error, Unavailable)
            assert "shutting down" in request.submission.error.message
            await request.let_go()
            assert request.handle.closed == 1
            assert counted(request).done == 0

    async def test_chores_that_wait_are_refused_so_that_no_thread_hangs(self, stage: Stage) -> None:
        program = stage.held(CostedProgram(4, 0.1))
        stage.submit(CountedRun(400), program)
        await program.begun()
        waiting = asyncio.create_task(asyncio.to_thread(stage.device.call, lambda: 1))
        await queued(stage, 1)
        stage.device._lane.submit(int).add_done_callback(lambda _: program.open())
        stage.device.close()
        with pytest.raises(Unavailable, match="shutting down"):
            await waiting

    async def test_a_chore_behind_the_running_batch_is_refused_too(self, stage: Stage) -> None:
        program = stage.held(CostedProgram(4, 0.1))
        request = stage.submit(CountedRun(400), program)
        await program.begun()
        waiting = asyncio.create_task(asyncio.to_thread(stage.device.call, lambda: 1))
        await queued(stage, 1)
        stage.clock.now += PATIENCE
        await finish_batch(program, request)
        await program.begun()
        assert not stage.device._chores
        stage.device._lane.submit(int).add_done_callback(lambda _: program.open())
        stage.device.close()
        with pytest.raises(Unavailable, match="shutting down"):
            await waiting

    async def test_a_closed_device_takes_nothing_in(self, stage: Stage) -> None:
        stage.device.close()
        request = stage.submit(CountedRun(4), CostedProgram(4, 0.1))
        assert isinstance(request.submission.error, Unavailable)
        assert request.handle.closed == 1
        with pytest.raises(Unavailable, match="shutting down"):
            await asyncio.to_thread(stage.device.call, lambda: 1)

    async def test_closing_twice_does_nothing(self, stage: Stage) -> None:
        stage.device.close()
        stage.device.close()
