"""Rows of docs/clients/conformance.md: many explanations over one ExplainStream."""

from pathlib import Path

import pytest

from conformance.api import (
    Connection,
    Explained,
    Image,
    Refusal,
    Response,
    Spec,
    by_id,
    gradient,
    occlusion,
    refused,
    settled,
    spec,
    tensor_without_data,
)
from conformance.models import IMAGE, gated
from conformance.wire import content, text
from fakes.serving import served

pytestmark = pytest.mark.asyncio(loop_scope="module")

UPLOADED = content(Spec.IMAGE, content(Image.TENSOR, tensor_without_data(IMAGE))) + text(
    Spec.MODEL_NAME, "linear"
)
DATA = IMAGE.astype("<f4").tobytes()


async def test_every_id_gets_one_plan_then_tiles_then_one_summary(wire: Connection) -> None:
    stream = wire.stream()
    for name in ("a", "b", "c"):
        await stream.start(name, spec("linear", IMAGE), occlusion(2, 1))
    await stream.close()
    answers = await by_id(stream.answers())

    alone = await wire.explained(spec("linear", IMAGE), occlusion(2, 1))
    assert set(answers) == {"a", "b", "c"}
    for each in answers.values():
        explained = settled(each)
        assert isinstance(explained, Explained)
        assert explained.map().tobytes() == alone.map().tobytes()


async def test_answers_to_different_ids_are_interleaved(tmp_path: Path) -> None:
    offers, gate = gated()
    async with served(tmp_path, offers) as server:
        stream = Connection(server.channel).stream()
        await stream.start("long", spec("linear", IMAGE), occlusion(1, 1))
        await gate.reached(1)
        await stream.start("short", spec("linear", IMAGE), occlusion(3, 3))
        # Images are prepared in turn: once the third is refused, the second waits for the device.
        await stream.start("wrong", spec("linear", IMAGE), occlusion(9, 9))
        assert (await stream.answer()).id == "wrong"
        gate.open()
        await stream.close()
        ended = [answer.id async for answer in stream.answers() if answer.kind == Response.SUMMARY]

    assert ended == ["short", "long"]


async def test_an_error_closes_its_id_and_no_other(wire: Connection) -> None:
    stream = wire.stream()
    await stream.start("good", spec("linear", IMAGE), occlusion(2, 2))
    await stream.start("bad", spec("linear", IMAGE), occlusion(9, 1))
    await stream.close()
    answers = await by_id(stream.answers())

    bad, good = settled(answers["bad"]), settled(answers["good"])
    assert isinstance(bad, Refusal)
    assert (bad.name, bad.reason, bad.domain) == ("INVALID_ARGUMENT", "INVALID_ARGUMENT", "vitrail")
    assert bad.field == "spec.occlusion.patch.rows"
    assert isinstance(good, Explained)


async def test_an_id_may_be_used_again_once_it_is_answered(wire: Connection) -> None:
    stream = wire.stream()
    for _ in range(2):
        await stream.start("a", spec("linear", IMAGE), gradient())
        assert isinstance(await stream.answer_of("a"), Explained)
    await stream.start("a", spec("linear", IMAGE))
    assert isinstance(await stream.answer_of("a"), Refusal)
    await stream.start("a", spec("linear", IMAGE), gradient())
    assert isinstance(await stream.answer_of("a"), Explained)


@pytest.mark.parametrize("name", ["", "x" * 129, "é" * 65], ids=["empty", "129 bytes", "130 bytes"])
async def test_an_id_must_have_1_to_128_bytes(wire: Connection, name: str) -> None:
    stream = wire.stream()
    await stream.start(name, spec("linear", IMAGE), gradient())

    refusal = await refused(stream.messages())

    assert (refusal.name, refusal.field) == ("INVALID_ARGUMENT", "id")


async def test_an_id_that_is_open_ends_the_stream(tmp_path: Path) -> None:
    offers, _ = gated()
    async with served(tmp_path, offers) as server:
        stream = Connection(server.channel).stream()
        await stream.start("a", spec("linear", IMAGE), occlusion(1, 1))
        await stream.start("a", spec("linear", IMAGE), occlusion(1, 1))

        refusal = await refused(stream.messages())

    assert (refusal.name, refusal.field) == ("INVALID_ARGUMENT", "id")


async def test_an_unset_action_ends_the_stream(wire: Connection) -> None:
    stream = wire.stream()
    await stream.send("a")

    refusal = await refused(stream.messages())

    assert (refusal.name, refusal.field) == ("INVALID_ARGUMENT", "action")


async def test_cancelling_an_id_is_answered_with_cancelled_and_the_others_go_on(tmp_path: Path) -> None:
    offers, gate = gated()
    async with served(tmp_path, offers) as server:
        stream = Connection(server.channel).stream()
        await stream.start("dropped", spec("linear", IMAGE), occlusion(1, 1))
        await stream.start("kept", spec("linear", IMAGE), occlusion(2, 2))
        await gate.reached(1)
        await stream.cancel("dropped")
        cancelled = await stream.answer_of("dropped")  # while the model still computes
        gate.open()
        await stream.close()
        kept = await stream.answer_of("kept")

    assert isinstance(cancelled, Refusal)
    assert cancelled.name == "CANCELLED"
    assert isinstance(kept, Explained)


async def test_a_cancel_or_a_piece_for_an_id_that_is_not_open_is_ignored(wire: Connection) -> None:
    stream = wire.stream()
    await stream.cancel("nobody")
    await stream.piece("nobody", b"late")
    await stream.start("a", spec("linear", IMAGE), gradient())
    await stream.close()

    assert set(await by_id(stream.answers())) == {"a"}


@pytest.mark.parametrize("size", [1, 97, len(DATA)], ids=lambda size: f"{size} bytes")
async def test_an_image_may_be_uploaded_in_pieces_of_any_size(wire: Connection, size: int) -> None:
    stream = wire.stream()
    await stream.start("a", UPLOADED, gradient(), upload_bytes=len(DATA))
    for at in range(0, len(DATA), size):
        await stream.piece("a", DATA[at : at + size])
    explained = await stream.answer_of("a")

    whole = await wire.explained(spec("linear", IMAGE), gradient())
    assert isinstance(explained, Explained)
    assert explained.map().tobytes() == whole.map().tobytes()


async def test_more_bytes_than_announced_fail_the_upload(wire: Connection) -> None:
    stream = wire.stream()
    await stream.start("a", UPLOADED, gradient(), upload_bytes=len(DATA))
    await stream.piece("a", DATA + b"x")
    refusal = await stream.answer_of("a")

    assert isinstance(refusal, Refusal)
    assert refusal.name == "INVALID_ARGUMENT"


async def test_half_closing_answers_what_is_open_and_fails_incomplete_uploads(
    tmp_path: Path,
) -> None:
    offers, gate = gated()
    async with served(tmp_path, offers) as server:
        stream = Connection(server.channel).stream()
        await stream.start("open", spec("linear", IMAGE), occlusion(2, 2))
        await stream.start("half", UPLOADED, gradient(), upload_bytes=len(DATA))
        await stream.piece("half", DATA[:100])
        await gate.reached(1)
        await stream.close()
        half = await stream.answer_of("half")
        gate.open()
        answers = await by_id(stream.answers())

    assert isinstance(half, Refusal)
    assert (half.name, half.field) == ("INVALID_ARGUMENT", "start.upload_bytes")
    assert isinstance(settled(answers["open"]), Explained)


async def test_a_call_that_is_cancelled_ends_every_id(tmp_path: Path) -> None:
    offers, gate = gated()
    async with served(tmp_path, offers) as server:
        stream = Connection(server.channel).stream()
        for name in ("a", "b"):
            await stream.start(name, spec("linear", IMAGE), occlusion(1, 1))
        await gate.reached(1)
        stream.cancel_all()
        await server.metrics.until(lambda: len(server.metrics.ended) == 2)

        assert [each.outcome for each in server.metrics.ended] == ["cancelled", "cancelled"]
