"""Rows of docs/clients/conformance.md: how calls are refused, how they fail, and how they are ended."""

import asyncio
import threading
from pathlib import Path

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

from conformance.api import (
    HEALTH,
    Connection,
    Gradient,
    Image,
    Occlusion,
    Refusal,
    Spec,
    Tensor,
    Tiles,
    Whole,
    gradient,
    occlusion,
    refused,
    spec,
    targets,
    tensor,
    time_budget,
)
from conformance.models import IMAGE, WEIGHTS, everything, gated
from conformance.wire import Message, content, double, number, text
from fakes.models import Linear
from fakes.serving import Offer, served

pytestmark = pytest.mark.asyncio(loop_scope="module")

UNKNOWN = number(1000, 1) + text(1001, "tomorrow") + double(1002, 1.0) + content(1003, text(1, "tomorrow"))
"""Fields of every kind that the API does not have."""


class Failing(Linear):
    """Fails from a given evaluation on."""

    def __init__(self, good: int) -> None:
        super().__init__(WEIGHTS)
        self.left = good

    def outputs(self, image: NDArray[np.float64]) -> NDArray[np.float64]:
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("the device is gone")
        return super().outputs(image)


async def test_a_refusal_comes_before_the_plan_with_reason_and_field(wire: Connection) -> None:
    refusal = await refused(wire.tiles(spec("linear", IMAGE), occlusion(9, 1)))

    assert refusal == Refusal(
        code=grpc.StatusCode.INVALID_ARGUMENT.value[0],
        message="spec.occlusion.patch.rows is 9; it must be 1 to 6, the image's rows",
        reason="INVALID_ARGUMENT",
        domain="vitrail",
        field="spec.occlusion.patch.rows",
        retry_delay=None,
    )


async def test_an_error_may_come_after_tiles_and_takes_the_summary_with_it(tmp_path: Path) -> None:
    async with served(tmp_path, {"failing": Offer(model=Failing(good=8))}) as server:
        received: list[Message] = []
        call = Connection(server.channel).tiles(spec("failing", IMAGE), occlusion(2, 2))
        refusal = await refused(call, received)

    assert (refusal.name, refusal.reason) == ("INTERNAL", "INTERNAL")
    assert Tiles.PLAN in received[0]
    assert Tiles.TILE in received[-1]


async def test_a_version_being_loaded_is_unavailable_and_says_when_to_try_again(tmp_path: Path) -> None:
    loading, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        loading.set()
        assert go_on.wait(30)

    async with served(tmp_path, {"slow": Offer(model=Linear(WEIGHTS), on_load=hold)}, load=False) as server:
        load = asyncio.create_task(server.server.load())
        assert await asyncio.to_thread(loading.wait, 30)
        wire = Connection(server.channel)
        refusal = await refused(wire.tiles(spec("slow", IMAGE), gradient()))
        go_on.set()
        assert await load
        explained = await wire.explained(spec("slow", IMAGE), gradient())

    assert (refusal.name, refusal.reason) == ("UNAVAILABLE", "UNAVAILABLE")
    assert refusal.retry_delay is not None
    assert refusal.retry_delay > 0
    assert explained.tiles


async def test_an_unset_method_is_refused_naming_those_served(wire: Connection) -> None:
    refusal = await refused(wire.tiles(spec("linear", IMAGE)))

    assert (refusal.name, refusal.field) == ("INVALID_ARGUMENT", "spec.method")
    assert "gradient" in refusal.message
    assert "occlusion" in refusal.message


async def test_a_method_the_server_does_not_know_is_refused_as_unset(wire: Connection) -> None:
    tomorrow = content(99, number(1, 1))

    refusal = await refused(wire.tiles(spec("linear", IMAGE), tomorrow))

    assert (refusal.name, refusal.field) == ("INVALID_ARGUMENT", "spec.method")


async def test_an_enum_value_the_server_does_not_know_is_refused(wire: Connection) -> None:
    refusal = await refused(
        wire.tiles(spec("linear", IMAGE), gradient(number(Gradient.CHANNEL_REDUCTION, 99)))
    )

    assert (refusal.name, refusal.field) == ("INVALID_ARGUMENT", "spec.gradient.channel_reduction")


async def test_unknown_fields_are_ignored(wire: Connection) -> None:
    image = content(Spec.IMAGE, content(Image.TENSOR, tensor(IMAGE), UNKNOWN), UNKNOWN)
    request = content(1, text(Spec.MODEL_NAME, "linear"), image, gradient(UNKNOWN), UNKNOWN) + UNKNOWN

    answer = Message.of(await wire.unary("/vitrail.v1.ExplanationService/Explain", request))

    known = await wire.explained(spec("linear", IMAGE), gradient())
    assert answer.bytes(Whole.VALUES) == known.map().tobytes()


async def test_repeated_numbers_may_be_packed_or_not(wire: Connection) -> None:
    loose = b"".join(number(Tensor.SHAPE, side) for side in IMAGE.shape)
    fields = number(Tensor.DATA_TYPE, Tensor.FP32) + loose + content(Tensor.DATA, IMAGE.tobytes())
    request = text(Spec.MODEL_NAME, "linear") + content(Spec.IMAGE, content(Image.TENSOR, fields))

    explained = await wire.explained(request, gradient())

    known = await wire.explained(spec("linear", IMAGE), gradient())
    assert explained.map().tobytes() == known.map().tobytes()


async def test_fields_may_come_in_any_order_and_the_last_of_a_choice_counts(wire: Connection) -> None:
    explained = await wire.explained(gradient(), occlusion(2, 2), targets(1), spec("linear", IMAGE))

    known = await wire.explained(spec("linear", IMAGE), occlusion(2, 2), targets(1))
    assert explained.map().tobytes() == known.map().tobytes()


async def test_bytes_that_are_no_message_are_refused(wire: Connection) -> None:
    refusal = await refused(wire.unary("/vitrail.v1.ExplanationService/Explain", b"\x0f\xff\xff"))

    assert refusal.name == "INVALID_ARGUMENT"


async def test_a_request_over_the_limit_is_refused(tmp_path: Path) -> None:
    async with served(tmp_path, everything(), max_message_bytes=10_000) as server:
        wire = Connection(server.channel)
        fill = content(Occlusion.FILL, content(5, text(3, "x" * 10_000)))
        refusal = await refused(wire.tiles(spec("linear", IMAGE), occlusion(2, 2, fill)))

    assert refusal.name == "RESOURCE_EXHAUSTED"
    assert "10000" in refusal.message


async def test_a_call_the_server_does_not_have_is_unimplemented(wire: Connection) -> None:
    refusal = await refused(wire.unary("/vitrail.v1.ExplanationService/ExplainTomorrow"))

    assert refusal.name == "UNIMPLEMENTED"


async def test_cancelling_the_call_ends_its_work(tmp_path: Path) -> None:
    offers, gate = gated()
    async with served(tmp_path, offers, max_explanations=1) as server:
        wire = Connection(server.channel)
        call = wire.tiles(spec("linear", IMAGE), occlusion(1, 1))
        gate.let_through(1)
        first = Message.of(await call.read())
        call.cancel()
        await server.metrics.until(lambda: bool(server.metrics.ended))
        gate.open()
        after = await wire.explained(spec("linear", IMAGE), occlusion(2, 2))

        assert Tiles.PLAN in first
        assert await call.code() is grpc.StatusCode.CANCELLED
        assert server.metrics.ended[0].outcome == "cancelled"
        assert server.metrics.ended[0].dropped > 0
        assert after.tiles  # in the one place there is


async def test_the_deadline_of_the_call_ends_it_without_a_map(tmp_path: Path) -> None:
    offers, _ = gated()
    async with served(tmp_path, offers) as server:
        wire = Connection(server.channel)
        refusal = await refused(wire.tiles(spec("linear", IMAGE), occlusion(1, 1), timeout=0.2))
        await server.metrics.until(lambda: bool(server.metrics.ended))

        assert refusal.name == "DEADLINE_EXCEEDED"
        assert server.metrics.ended[0].outcome == "deadline_exceeded"


async def test_a_time_budget_too_short_for_one_batch_fails_and_names_its_field(wire: Connection) -> None:
    refusal = await refused(wire.tiles(spec("linear", IMAGE), occlusion(1, 1), time_budget(0, 1)))

    assert (refusal.name, refusal.field) == ("DEADLINE_EXCEEDED", "spec.time_budget")


async def test_more_explanations_than_there_are_places_are_refused_at_once(tmp_path: Path) -> None:
    offers, gate = gated()
    async with served(tmp_path, offers, max_explanations=1) as server:
        wire = Connection(server.channel)
        first = wire.tiles(spec("linear", IMAGE), occlusion(2, 2))
        await gate.reached(1)
        refusal = await refused(wire.tiles(spec("linear", IMAGE), gradient()))
        gate.open()
        messages = [message async for message in first]

    assert refusal.name == "RESOURCE_EXHAUSTED"
    assert "max-explanations" in refusal.message
    assert messages


async def test_a_server_with_tokens_answers_only_those_who_bring_one(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("explain open-sesame\n")
    tokens.chmod(0o600)
    async with served(tmp_path, everything(), token_file=tokens) as server:
        wire = Connection(server.channel)
        without = await refused(wire.tiles(spec("linear", IMAGE), gradient()))
        wrong = await refused(
            wire.tiles(spec("linear", IMAGE), gradient(), metadata=(("authorization", "Bearer sesame"),))
        )
        right = wire.tiles(
            spec("linear", IMAGE), gradient(), metadata=(("authorization", "Bearer open-sesame"),)
        )
        messages = [message async for message in right]

    assert without.name == wrong.name == "UNAUTHENTICATED"
    assert messages


async def test_the_standard_health_check_tells_when_models_are_served(wire: Connection) -> None:
    serving, unknown = 1, "models/tomorrow"

    for service in ("", "vitrail.v1.ExplanationService", "models/linear"):
        answer = Message.of(await wire.unary(f"{HEALTH}/Check", text(1, service)))
        assert answer.number(1) == serving
    assert (await refused(wire.unary(f"{HEALTH}/Check", text(1, unknown)))).name == "NOT_FOUND"
