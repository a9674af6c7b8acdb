"""Dynamic batching over the wire: Triton's batcher and model queue suites, as far as they apply.

A gate holds the device, so that a test decides what waits when; a long delay or timeout never passes in a
test, a short one is waited for by its effect.
"""

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from fakes.serving import FakeServable, Gate, Offer, Served, served
from rpc.messages import occlusion, spec, whole
from vitrail.v1 import explanation_pb2 as v1
from vitrail_server.kserve.v2 import grpc_service_pb2 as pb
from vitrail_server.servable import Batching, QueuePolicy

from .models import PICTURES, SHAPE, UNUSED, Arrays, pictures, predicts, simple
from .wire import Code, call, infer, outputs, request

Answer = asyncio.Task[pb.ModelInferResponse]

LONG = 1000.0
"""Seconds that no test waits for."""


def ask(value: int, rows: int = 1, **parameters: Any) -> pb.ModelInferRequest:
    """Return a request whose answer tells its value."""
    message = request(
        "simple", INPUT0=np.full((rows, 16), value, np.int32), INPUT1=np.full((rows, 16), 1, np.int32)
    )
    message.id = str(value)
    for name, number in parameters.items():
        message.parameters[name].int64_param = number
    return message


@asynccontextmanager
async def serving(
    directory: Path, gate: Gate | None = None, batching: Batching | None = None, most: int = 8
) -> AsyncIterator[Served]:
    async with served(directory, {"simple": simple(gate, batching or Batching(), most)}) as running:
        yield running


def servable(running: Served) -> FakeServable:
    (found,) = running.offers["simple"].servables.values()
    return found


async def send(
    running: Served, *requests: pb.ModelInferRequest
) -> "list[asyncio.Task[pb.ModelInferResponse]]":
    """Send requests, each one when the one before has arrived."""

    def arrived(before: int) -> bool:
        return running.metrics.received["ModelInfer"] > before

    tasks = []
    for each in requests:
        before = running.metrics.received["ModelInfer"]
        tasks.append(asyncio.create_task(infer(running, each)))
        await running.metrics.until(partial(arrived, before))
        await asyncio.sleep(0)  # the handler goes on to where it waits
    return tasks


def check(response: pb.ModelInferResponse, value: int) -> None:
    found = outputs(response)
    assert (found["OUTPUT0"] == value + 1).all()
    assert (found["OUTPUT1"] == value - 1).all()
    assert response.id == str(value)


async def refusal(task: Answer) -> tuple[Any, str]:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await task
    return error.value.code(), error.value.details() or ""


async def statistics(running: Served) -> pb.ModelStatistics:
    asked = pb.ModelStatisticsRequest(name="simple")
    response = await call(running, "ModelStatistics", asked, pb.ModelStatisticsResponse)
    (found,) = response.model_stats
    assert isinstance(found, pb.ModelStatistics)
    return found


async def held(running: Served, gate: Gate) -> Answer:
    """Keep the device with one request."""
    (blocker,) = await send(running, ask(99))
    await gate.reached(1)
    return blocker


async def test_requests_that_wait_together_run_together(tmp_path: Path) -> None:
    gate = Gate(is_open=False)
    async with serving(tmp_path, gate) as running:
        blocker = await held(running, gate)
        tasks = await send(running, ask(1, 2), ask(2, 1), ask(3, 4), ask(4, 3))
        gate.open()
        for value, task in enumerate(tasks, 1):
            check(await task, value)
        check(await blocker, 99)
        assert servable(running).batches[0] == 1
        assert sorted(servable(running).batches[1:]) == [3, 7]
        found = await statistics(running)
        assert (found.inference_count, found.execution_count) == (11, 3)
        assert [each.batch_size for each in found.batch_stats] == [1, 3, 7]
        assert found.inference_stats.success.count == 5
        assert found.inference_stats.queue.ns > 0


async def test_a_batch_waits_for_company_and_runs_when_it_is_full(tmp_path: Path) -> None:
    async with serving(tmp_path, batching=Batching(max_queue_delay=LONG)) as running:
        tasks = await send(running, ask(1, 4), ask(2, 2))
        assert servable(running).batches == []
        tasks += await send(running, ask(3, 2))
        for value, task in enumerate(tasks, 1):
            check(await task, value)
        assert servable(running).batches == [8]


async def test_a_batch_runs_when_its_delay_is_over(tmp_path: Path) -> None:
    async with serving(tmp_path, batching=Batching(max_queue_delay=0.05)) as running:
        for value, task in enumerate(await send(running, ask(1), ask(2)), 1):
            check(await task, value)
        assert sum(servable(running).batches) == 2


async def test_preferred_sizes_are_preferred(tmp_path: Path) -> None:
    batching = Batching(preferred_batch_sizes=(3, 6), max_queue_delay=LONG)
    async with serving(tmp_path, batching=batching) as running:
        tasks = await send(running, ask(1), ask(2))
        assert servable(running).batches == []
        tasks += await send(running, ask(3))
        for value, task in enumerate(tasks, 1):
            check(await task, value)
        assert servable(running).batches == [3]
        found = await statistics(running)
        assert [(each.batch_size, each.compute_infer.count) for each in found.batch_stats] == [(3, 1)]


async def test_one_bad_request_of_a_batch_fails_alone(tmp_path: Path) -> None:
    gate = Gate(is_open=False)
    async with serving(tmp_path, gate) as running:
        blocker = await held(running, gate)
        tasks = await send(running, ask(1), ask(13), ask(2))
        gate.open()
        await blocker
        code, message = await refusal(tasks.pop(1))
        assert code is Code.INTERNAL
        assert message.startswith(
            "[request id: 13] the model failed while it computed: RuntimeError: thirteen"
        )
        for value, task in enumerate(tasks, 1):
            check(await task, value)
        found = await statistics(running)
        assert (found.inference_stats.success.count, found.inference_stats.fail.count) == (3, 1)
        assert found.inference_count == 3


async def test_who_leaves_while_waiting_for_company_is_not_counted(tmp_path: Path) -> None:
    async with serving(tmp_path, batching=Batching(max_queue_delay=LONG)) as running:
        first, gone = await send(running, ask(1, 4), ask(2, 2))
        gone.cancel()
        await running.metrics.until(lambda: ("ModelInfer", "CANCELLED") in running.metrics.handled)
        (last,) = await send(running, ask(3, 4))  # with the rows of whoever left, these would be too many
        check(await first, 1)
        check(await last, 3)
        assert servable(running).batches == [8]
        found = await statistics(running)
        assert (found.inference_stats.success.count, found.inference_stats.fail.count) == (2, 1)


async def test_who_leaves_while_its_batch_runs_takes_nobody_along(tmp_path: Path) -> None:
    gate = Gate(is_open=False)
    async with serving(tmp_path, gate) as running:
        blocker = await held(running, gate)
        gone, stays = await send(running, ask(1), ask(2))
        gate.let_through()
        check(await blocker, 99)
        await gate.reached(2)
        gone.cancel()
        await running.metrics.until(lambda: ("ModelInfer", "CANCELLED") in running.metrics.handled)
        gate.open()
        check(await stays, 2)
        assert servable(running).batches == [1, 2]
        found = await statistics(running)
        assert (found.inference_count, found.inference_stats.fail.count) == (2, 1)
        assert running.server._admission.inferences == 0


async def test_requests_of_different_shapes_and_outputs_wait_together(tmp_path: Path) -> None:
    """Those of one shape are a batch, whichever outputs they want."""

    def asked(value: int, width: int, *wanted: str) -> pb.ModelInferRequest:
        message = request("any", INPUT0=np.full((1, width), value, np.int32))
        message.id = str(value)
        message.outputs.extend(pb.ModelInferRequest.InferRequestedOutputTensor(name=name) for name in wanted)
        return message

    def double_and_negate(arrays: Arrays, wanted: Collection[str]) -> Arrays:
        numbers = np.asarray(arrays["INPUT0"], np.int32)
        return {"DOUBLE": 2 * numbers, "NEGATIVE": -numbers}

    gate = Gate(is_open=False)
    spec = ("INT32", (-1, -1))
    described = predicts({"INPUT0": spec}, {"DOUBLE": spec, "NEGATIVE": spec}, batching=Batching())
    offer = Offer(model=UNUSED, description=described, predict=double_and_negate, gate=gate)
    async with served(tmp_path, {"any": offer}) as running:
        (blocker,) = await send(running, asked(9, 1))
        await gate.reached(1)
        narrow, wide, double, negative = await send(
            running, asked(1, 3), asked(2, 5), asked(3, 3, "DOUBLE"), asked(4, 3, "NEGATIVE")
        )
        gate.open()
        await blocker
        for task, value, width, names in (
            (narrow, 1, 3, {"DOUBLE", "NEGATIVE"}),
            (wide, 2, 5, {"DOUBLE", "NEGATIVE"}),
            (double, 3, 3, {"DOUBLE"}),
            (negative, 4, 3, {"NEGATIVE"}),
        ):
            found = outputs(await task)
            assert found.keys() == names
            for name, array in found.items():
                assert array.tolist() == [[value * (2 if name == "DOUBLE" else -1)] * width]
        (each,) = offer.servables.values()
        assert sorted(each.batches) == [1, 1, 3]


async def test_a_full_queue_refuses(tmp_path: Path) -> None:
    gate = Gate(is_open=False)
    policy = QueuePolicy(max_queue_size=2)
    async with serving(tmp_path, gate, Batching(default_queue_policy=policy), most=1) as running:
        blocker = await held(running, gate)
        # One more is assembled behind the running batch, and two wait behind that.
        tasks = await send(running, ask(1), ask(2), ask(3))
        code, message = await refusal((await send(running, ask(4)))[0])
        assert code is Code.RESOURCE_EXHAUSTED
        assert message == "[request id: 4] Exceeds maximum queue size"
        gate.open()
        await blocker
        for value, task in enumerate(tasks, 1):
            check(await task, value)
        assert running.server._admission.inferences == 0


async def test_a_request_that_waited_too_long_is_refused(tmp_path: Path) -> None:
    gate = Gate(is_open=False)
    policy = QueuePolicy(default_timeout=LONG, allow_timeout_override=True)
    async with serving(tmp_path, gate, Batching(default_queue_policy=policy), most=1) as running:
        blocker = await held(running, gate)
        first, patient, hasty = await send(running, ask(1), ask(2), ask(3, timeout=1000))
        code, message = await refusal(hasty)
        assert code is Code.DEADLINE_EXCEEDED
        assert message == "[request id: 3] Request timeout expired"
        gate.open()
        for value, task in ((99, blocker), (1, first), (2, patient)):
            check(await task, value)
        assert servable(running).batches == [1, 1, 1], "the refused one was not computed"


async def test_a_timeout_counts_only_where_the_model_has_one(tmp_path: Path) -> None:
    gate = Gate(is_open=False)
    async with serving(tmp_path, gate) as running:
        blocker = await held(running, gate)
        (task,) = await send(running, ask(1, timeout=1))
        gate.open()
        await blocker
        check(await task, 1)


async def test_who_is_delayed_comes_last(tmp_path: Path) -> None:
    gate = Gate(is_open=False)
    policy = QueuePolicy("DELAY", LONG, allow_timeout_override=True)
    order: list[str] = []
    async with serving(tmp_path, gate, Batching(default_queue_policy=policy), most=1) as running:
        blocker = await held(running, gate)
        tasks = await send(running, ask(1, timeout=1))
        await asyncio.sleep(0.01)  # much longer than it would wait
        tasks += await send(running, ask(2), ask(3))
        for task in tasks:
            task.add_done_callback(lambda done: order.append(done.result().id))
        gate.open()
        await asyncio.gather(blocker, *tasks)
        await asyncio.sleep(0)
    assert order == ["2", "3", "1"]


async def test_urgent_requests_go_first(tmp_path: Path) -> None:
    gate = Gate(is_open=False)
    batching = Batching(priority_levels=3, default_priority_level=2)
    order: list[str] = []
    async with serving(tmp_path, gate, batching, most=1) as running:
        blocker = await held(running, gate)
        asked = [ask(1, priority=3), ask(2), ask(3, priority=9), ask(4, priority=1)]
        tasks = await send(running, *asked)
        for task in tasks:
            task.add_done_callback(lambda done: order.append(done.result().id))
        gate.open()
        await asyncio.gather(blocker, *tasks)
        await asyncio.sleep(0)
    assert order[0] == "4"
    assert order[-1] == "1"
    assert sorted(order[1:3]) == ["2", "3"]


async def test_the_order_is_kept_where_the_model_says_so(tmp_path: Path) -> None:
    gate = Gate(is_open=False)
    order: list[str] = []
    async with serving(tmp_path, gate, Batching(preserve_ordering=True), most=1) as running:
        blocker = await held(running, gate)
        # The urgent ones are computed first, and answered in their turn.
        tasks = await send(running, ask(1, priority=150), ask(2), ask(3, priority=1), ask(4, priority=50))
        for task in tasks:
            task.add_done_callback(lambda done: order.append(done.result().id))
        gate.open()
        await asyncio.gather(blocker, *tasks)
        await asyncio.sleep(0)
    assert order == ["1", "2", "3", "4"]


async def test_results_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    images = np.random.default_rng(3).random((6, *SHAPE)).astype(np.float32)
    gate = Gate(is_open=False)
    async with served(tmp_path, {"pictures": pictures(gate, batching=Batching())}) as running:
        blocker = asyncio.create_task(infer(running, request("pictures", image=images[:1])))
        await gate.reached(1)
        tasks = [
            asyncio.create_task(infer(running, request("pictures", image=part)))
            for part in (images[:1], images[1:4], images[4:])
        ]
        gate.open()
        await blocker
        together = np.concatenate([outputs(await task)["scores"] for task in tasks])
        alone = [
            outputs(await infer(running, request("pictures", image=each[None])))["scores"] for each in images
        ]
    assert together.tobytes() == np.concatenate(alone).tobytes()


async def test_inferences_and_explanations_share_batches_and_the_device(tmp_path: Path) -> None:
    """A long explanation does not keep an inference waiting, and both have the same scores, bit for bit."""
    image = np.random.default_rng(3).random(SHAPE).astype(np.float32)
    gate = Gate(is_open=False)
    async with served(tmp_path, {"pictures": pictures(gate, batching=Batching())}) as running:
        asked = v1.ExplainTilesRequest(spec=spec("pictures", image, occlusion=occlusion(patch=1)))
        explained = asyncio.create_task(whole(running.explanations.ExplainTiles(asked)))
        await gate.reached(1)
        (task,) = await send(running, request("pictures", image=image[None]))
        gate.let_through(2)
        scores = outputs(await task)["scores"]
        assert not explained.done(), "the inference did not wait for the whole map"
        gate.open()
        answer = await explained
        (target,) = answer.plan.targets
        assert np.float32(target.output).tobytes() == scores[0, target.index].tobytes()
        np.testing.assert_allclose(scores[0], PICTURES.outputs(image.astype(np.float64)), rtol=1e-6)
