"""ExplainStream: many explanations on one connection, each for itself, whatever happens to the others."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc.status_pb2 import Status
from numpy.typing import NDArray

from fakes.models import Linear, picture, weights
from fakes.serving import Gate, Offer, Served, served
from vitrail.v1 import explanation_pb2 as pb
from vitrail.v1.explanation_pb2_grpc import ExplanationServiceStub
from vitrail_server.explainers.question import Limits
from vitrail_server.rpc.context import Caller
from vitrail_server.rpc.conversation import Conversation, StreamLimits
from vitrail_server.rpc.session import Engine

from .files import saved
from .messages import (
    Refusal,
    by_id,
    cancel,
    event_of,
    occlusion,
    piece,
    received,
    refusal_of,
    refused,
    spec,
    start,
    tensor,
)

SHAPE = (6, 8, 3)
IMAGE = picture(0, SHAPE)
DATA = IMAGE.tobytes()
POISON = -1.0
"""The first pixel of the image that no model survives."""

Stream = grpc.aio.StreamStreamCall[pb.ExplainStreamRequest, pb.ExplainStreamResponse]


class Fragile(Linear):
    """Fails for one image, and for every batch that it is part of."""

    def outputs(self, image: NDArray[np.float64]) -> NDArray[np.float64]:
        if image[0, 0, 0] == POISON:
            raise ValueError("poisoned")
        return super().outputs(image)


@asynccontextmanager
async def talking(directory: Path, *, shut: bool = False, **settings: Any) -> AsyncIterator["Talk"]:
    """Run a server with one model and open a stream to it; `shut` holds back the model's batches."""
    offer = Offer(model=Fragile(weights(0, 2, SHAPE)), gate=Gate(is_open=not shut), batch_size=4)
    async with served(directory, {"m": offer}, **settings) as running:
        yield Talk(running)


class Talk:
    """One stream."""

    def __init__(self, running: Served) -> None:
        self.running = running
        self.call: Stream = running.explanations.ExplainStream()

    @property
    def gate(self) -> Gate:
        gate = self.running.offers["m"].gate
        assert gate is not None
        return gate

    async def say(self, *requests: pb.ExplainStreamRequest) -> None:
        for request in requests:
            await self.call.write(request)

    async def hear(self) -> tuple[str, Any]:
        """Return the next message: its id and its event."""
        response = await self.call.read()
        assert isinstance(response, pb.ExplainStreamResponse), "the stream has ended"
        return response.id, event_of(response)

    async def refusal(self, name: str) -> Refusal:
        """Return the next message, which must be the failure of this id."""
        heard, event = await self.hear()
        assert heard == name
        assert isinstance(event, Status), event
        return refusal_of(event)

    async def responses(self) -> AsyncIterator[pb.ExplainStreamResponse]:
        """Yield all that is left to hear."""
        while isinstance(response := await self.call.read(), pb.ExplainStreamResponse):
            yield response

    async def finish(self) -> dict[str, list[Any]]:
        """Half-close, and return all that is left to hear, by id."""
        await self.call.done_writing()
        return await self.answers()

    async def answers(self) -> dict[str, list[Any]]:
        """Return all that is left to hear of a stream that ends well, by id."""
        answers = await by_id(self.responses())
        assert await self.call.code() is grpc.StatusCode.OK
        return answers


async def whole_map(running: Served, what: pb.ExplanationSpec) -> NDArray[np.float32]:
    answer = await running.explanations.Explain(pb.ExplainRequest(spec=what))
    return np.frombuffer(answer.values, "<f4").reshape(tuple(answer.plan.map_shape))


def without_data(what: pb.ExplanationSpec) -> pb.ExplanationSpec:
    """Return a request whose image is to be uploaded."""
    empty = pb.ExplanationSpec()
    empty.CopyFrom(what)
    if empty.image.WhichOneof("source") == "tensor":
        empty.image.tensor.data = b""
    else:
        empty.image.encoded = b""
    return empty


async def test_the_answers_to_several_ids_are_interleaved_and_each_is_whole(tmp_path: Path) -> None:
    images = [picture(seed, SHAPE) for seed in range(4)]
    methods: list[dict[str, Any]] = [
        {"occlusion": occlusion(3, 1)},
        {"occlusion": occlusion(2, order=pb.Occlusion.ORDER_PROGRESSIVE)},
        {"occlusion": occlusion(1, resolution=pb.Occlusion.RESOLUTION_WINDOWS)},
        {"gradient": pb.Gradient()},
    ]
    asked = [spec("m", image, **method) for image, method in zip(images, methods, strict=True)]
    async with talking(tmp_path, shut=True) as talk:
        await talk.say(*(start(str(i), what) for i, what in enumerate(asked)))
        await talk.gate.reached(1)
        talk.gate.open()
        await talk.call.done_writing()
        heard = [(response.id, event_of(response)) async for response in talk.responses()]
        expected = [await whole_map(talk.running, what) for what in asked]
        scrape = await talk.running.at_rest(8)

    for i, values in enumerate(expected):
        answer = received([event for name, event in heard if name == str(i)])
        assert np.array_equal(answer.values, values)
    order = [name for name, _ in heard]
    assert order != sorted(order), "the ids were answered one after the other"
    assert scrape.total("vitrail_explanations_total", outcome="complete") == 8


@pytest.mark.parametrize("size", [1, 7, 575, 576])
async def test_an_image_may_be_uploaded_in_pieces(tmp_path: Path, size: int) -> None:
    what = spec("m", IMAGE)
    async with talking(tmp_path) as talk:
        await talk.say(start("a", without_data(what), len(DATA)))
        await talk.say(*(piece("a", DATA[i : i + size]) for i in range(0, len(DATA), size)))
        answers = await talk.finish()
        expected = await whole_map(talk.running, what)
        await talk.running.at_rest(2)

    assert np.array_equal(received(answers["a"]).values, expected)


async def test_a_file_may_be_uploaded_in_pieces_between_those_of_another(tmp_path: Path) -> None:
    file = saved((IMAGE * 255).astype(np.uint8))
    encoded, plain = spec("m", file), spec("m", IMAGE)
    async with talking(tmp_path) as talk:
        await talk.say(
            start("file", without_data(encoded), len(file)),
            start("plain", without_data(plain), len(DATA)),
            piece("file", file[:10]),
            piece("plain", DATA[:100]),
            piece("file", file[10:]),
            piece("plain", DATA[100:]),
        )
        answers = await talk.finish()
        expected = {
            "file": await whole_map(talk.running, encoded),
            "plain": await whole_map(talk.running, plain),
        }

    for name, values in expected.items():
        assert np.array_equal(received(answers[name]).values, values)


@pytest.mark.parametrize(
    ("pieces", "said"),
    [
        ([DATA + b"x"], "the pieces have 577 bytes, but start.upload_bytes announced 576"),
        ([DATA[:500], DATA[:77]], "the pieces have 577 bytes, but start.upload_bytes announced 576"),
        ([DATA[:500], b""], "piece.data is empty; send at least one byte"),
    ],
)
async def test_pieces_that_do_not_fit_end_the_upload(tmp_path: Path, pieces: list[bytes], said: str) -> None:
    async with talking(tmp_path) as talk:
        await talk.say(start("a", without_data(spec("m", IMAGE)), len(DATA)))
        await talk.say(*(piece("a", data) for data in pieces))
        refusal = await talk.refusal("a")
        await talk.say(piece("a", b"late pieces are ignored"), start("a", spec("m", IMAGE)))
        answers = await talk.finish()
        await talk.running.at_rest(2)

    assert refusal == Refusal(grpc.StatusCode.INVALID_ARGUMENT, said, "piece.data", reason="INVALID_ARGUMENT")
    received(answers["a"])


async def test_a_piece_for_an_image_that_is_complete(tmp_path: Path) -> None:
    async with talking(tmp_path, shut=True) as talk:
        await talk.say(start("a", spec("m", IMAGE)), piece("a", b"x"))
        refusal = await talk.refusal("a")
        talk.gate.open()
        assert await talk.finish() == {}
        await talk.running.at_rest(1)

    assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT
    assert refusal.field == "piece"


async def test_a_piece_or_cancel_for_an_id_that_is_not_open_is_ignored(tmp_path: Path) -> None:
    async with talking(tmp_path) as talk:
        await talk.say(piece("a", b"x"), cancel("a"), start("a", spec("m", IMAGE)))
        answers = await talk.finish()

    received(answers["a"])


@pytest.mark.parametrize(
    ("announced", "field", "said"),
    [
        (575, "start.upload_bytes", "start.upload_bytes is 575, but start.spec.image.tensor needs 576 bytes"),
        (577, "start.upload_bytes", "start.upload_bytes is 577, but start.spec.image.tensor needs 576 bytes"),
        (2**64 - 1, "start.upload_bytes", "an upload may have 67108864 bytes (--max-message-bytes)"),
    ],
)
async def test_an_upload_of_the_wrong_size_is_refused_before_it_comes(
    tmp_path: Path, announced: int, field: str, said: str
) -> None:
    async with talking(tmp_path) as talk:
        await talk.say(start("a", without_data(spec("m", IMAGE)), announced))
        refusal = await talk.refusal("a")
        await talk.running.at_rest(1)

    assert refusal.field == field
    assert said in refusal.message


async def test_an_upload_into_nothing_or_twice_is_refused(tmp_path: Path) -> None:
    nothing, broken = spec("m", IMAGE), without_data(spec("m", IMAGE))
    nothing.ClearField("image")
    broken.image.tensor.shape[0] = -1
    file = saved((IMAGE * 255).astype(np.uint8))
    async with talking(tmp_path) as talk:
        await talk.say(start("a", spec("m", IMAGE), 576))
        both = await talk.refusal("a")
        await talk.say(start("b", spec("m", file), 576))
        both_encoded = await talk.refusal("b")
        await talk.say(start("c", nothing, 576))
        neither = await talk.refusal("c")
        await talk.say(start("d", broken, 576))
        malformed = await talk.refusal("d")
        await talk.running.at_rest(4)

    assert both.field == "start.spec.image.tensor.data"
    assert both_encoded.field == "start.spec.image.encoded"
    assert neither.field == "start.spec.image"
    assert malformed.field == "start.spec.image.tensor.shape"


async def test_an_upload_that_never_ends_times_out_and_held_nothing(tmp_path: Path) -> None:
    async with talking(tmp_path, upload_timeout_secs=0.05, max_explanations=1) as talk:
        await talk.say(start("a", without_data(spec("m", IMAGE)), len(DATA)), piece("a", DATA[:-1]))
        await talk.say(start("b", spec("m", IMAGE)))  # the upload has not taken the only permit
        answers: dict[str, list[Any]] = {}
        while len(answers) < 2 or not isinstance(answers["b"][-1], pb.Summary):
            name, event = await talk.hear()
            answers.setdefault(name, []).append(event)
        await talk.say(piece("a", DATA[-1:]))  # too late
        assert await talk.finish() == {}
        await talk.running.at_rest(2)

    received(answers["b"])
    refusal = refusal_of(answers["a"][0])
    assert refusal.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert refusal.message == "the upload was not complete after 0.05 s (--upload-timeout-secs)"


async def test_the_time_of_an_upload_ends_with_it(tmp_path: Path) -> None:
    what = without_data(spec("m", IMAGE))
    async with talking(tmp_path, shut=True, upload_timeout_secs=0.05) as talk:
        await talk.say(start("a", what, len(DATA)), cancel("a"))
        assert (await talk.refusal("a")).code is grpc.StatusCode.CANCELLED
        await talk.say(start("a", spec("m", IMAGE)), start("b", what, len(DATA)))
        assert (await talk.refusal("b")).code is grpc.StatusCode.DEADLINE_EXCEEDED
        talk.gate.open()
        answers = await talk.finish()

    received(answers["a"])


async def test_an_upload_that_is_complete_has_all_the_time_of_an_explanation(tmp_path: Path) -> None:
    what = without_data(spec("m", IMAGE))
    async with talking(tmp_path, shut=True, upload_timeout_secs=0.2) as talk:
        await talk.say(start("a", what, len(DATA)), piece("a", DATA))
        await talk.gate.reached(1)
        await talk.say(start("b", what, len(DATA)))  # its time is over after that of the other
        assert (await talk.refusal("b")).code is grpc.StatusCode.DEADLINE_EXCEEDED
        talk.gate.open()
        answers = await talk.finish()

    received(answers["a"])


async def test_half_closing_fails_incomplete_uploads_and_finishes_complete_ones(tmp_path: Path) -> None:
    what = without_data(spec("m", IMAGE))
    async with talking(tmp_path, shut=True) as talk:
        await talk.say(
            start("half", what, len(DATA)),
            piece("half", DATA[:300]),
            start("none", what, len(DATA)),
            start("full", what, len(DATA)),
            piece("full", DATA),
        )
        await talk.gate.reached(1)
        await talk.call.done_writing()
        talk.gate.open()
        answers = await talk.answers()
        await talk.running.at_rest(3)

    received(answers["full"])
    for name, size in (("half", 300), ("none", 0)):
        (status,) = answers[name]
        refusal = refusal_of(status)
        assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT
        assert refusal.message == f"the stream was closed after {size} of 576 announced bytes"


async def test_uploads_of_all_callers_together_hold_only_so_much(tmp_path: Path) -> None:
    what = without_data(spec("m", IMAGE))
    rest = what.ByteSize()
    async with talking(tmp_path, max_upload_bytes=2 * rest + 1000) as talk:
        other = Talk(talk.running)
        await other.say(start("a", what, len(DATA)), piece("a", DATA[:500]), cancel("unknown"))
        await other.say(start("b", spec("m", IMAGE)))
        assert isinstance((await other.hear())[1], pb.Plan)  # by then the piece has arrived
        await talk.say(start("a", what, len(DATA)), piece("a", DATA[:501]))
        refusal = await talk.refusal("a")
        other.call.cancel()
        await talk.running.metrics.until(lambda: len(talk.running.metrics.ended) == 3)
        await talk.say(start("a", what, len(DATA)), piece("a", DATA))
        answers = await talk.finish()
        await talk.running.at_rest(4)

    assert refusal.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert f"at most {2 * rest + 1000} are held (--max-upload-bytes)" in refusal.message
    received(answers["a"])


async def test_what_comes_along_with_an_upload_counts_too(tmp_path: Path) -> None:
    """Else a start with a large fill, and an image that never comes, would hold memory beside the limit."""
    what = without_data(spec("m", IMAGE, occlusion=occlusion(fill=pb.Fill(image=tensor(IMAGE)))))
    async with talking(tmp_path, max_upload_bytes=1000) as talk:
        await talk.say(start("a", what, len(DATA)))
        await talk.say(start("b", what, len(DATA)))
        refusal = await talk.refusal("b")
        await talk.say(cancel("a"))
        await talk.refusal("a")
        await talk.running.at_rest(2)

    assert refusal.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "(--max-upload-bytes)" in refusal.message


async def test_cancelling_an_upload_a_queued_and_a_running_explanation(tmp_path: Path) -> None:
    async with talking(tmp_path, shut=True) as talk:
        await talk.say(start("running", spec("m", IMAGE, occlusion=occlusion(1))))
        await talk.gate.reached(1)
        talk.gate.let_through()
        assert isinstance((await talk.hear())[1], pb.Plan)
        await talk.say(
            start("queued", spec("m", IMAGE)),
            start("upload", without_data(spec("m", IMAGE)), len(DATA)),
            piece("upload", DATA[:1]),
            cancel("upload"),
            piece("upload", DATA[1:]),
            cancel("queued"),
            cancel("running"),
            cancel("running"),
        )
        await talk.call.done_writing()
        answers = await talk.answers()
        handles_before = talk.running.server.manager._models["m"].serving[1]._handles  # type: ignore[index]
        talk.gate.open()
        scrape = await talk.running.at_rest(3)
        await talk.running.server.manager.unload("m")  # returns once the last handle is given back

    assert answers.keys() == {"running", "queued", "upload"}
    for events in answers.values():
        refusal = refusal_of(events[-1])
        assert refusal.code is grpc.StatusCode.CANCELLED
        assert refusal.message == "cancelled by the client"
    assert handles_before > 0
    # 48 windows and the whole image were announced, and every one of them ended somehow.
    evaluations = "vitrail_explanation_evaluations_total"
    assert scrape.total(evaluations) == 49
    assert 0 < scrape.total(evaluations, result="done") < 49
    assert scrape.total("vitrail_explanations_total", outcome="cancelled") == 3


async def test_an_id_that_is_open_ends_the_stream(tmp_path: Path) -> None:
    async with talking(tmp_path, shut=True) as talk:
        await talk.say(start("a", spec("m", IMAGE)), start("a", spec("m", IMAGE)))
        refusal = await refused(talk.call.read())
        talk.gate.open()
        scrape = await talk.running.at_rest(1)

    assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT
    assert refusal.field == "id"
    assert refusal.message == "id 'a' is open already; an id may be used again once it is answered"
    assert scrape.total("vitrail_explanations_total", outcome="invalid_argument") == 1


@pytest.mark.parametrize(
    ("request_", "field", "said"),
    [
        (start("", spec("m", IMAGE)), "id", "id has 0 bytes; it must have 1 to 128"),
        (start("x" * 129, spec("m", IMAGE)), "id", "id has 129 bytes; it must have 1 to 128"),
        (start("é" * 65, spec("m", IMAGE)), "id", "id has 130 bytes; it must have 1 to 128"),
        (pb.ExplainStreamRequest(id="a"), "action", "action is unset; set start, piece or cancel"),
        (pb.ExplainStreamRequest(), "id", "id has 0 bytes"),
    ],
)
async def test_a_message_that_no_id_can_answer_ends_the_stream(
    tmp_path: Path, request_: pb.ExplainStreamRequest, field: str, said: str
) -> None:
    async with talking(tmp_path) as talk:
        await talk.say(request_)
        refusal = await refused(talk.call.read())

    assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT
    assert refusal.field == field
    assert said in refusal.message


async def test_the_longest_id_is_taken(tmp_path: Path) -> None:
    name = "é" * 64
    async with talking(tmp_path) as talk:
        await talk.say(start(name, spec("m", IMAGE)))
        received((await talk.finish())[name])


async def test_more_than_sixteen_on_one_stream_are_refused_and_the_others_go_on(tmp_path: Path) -> None:
    async with talking(tmp_path, shut=True) as talk:
        await talk.say(*(start(str(i), spec("m", IMAGE)) for i in range(16)))
        await talk.say(start("upload", without_data(spec("m", IMAGE)), len(DATA)))
        refusal = await talk.refusal("upload")
        talk.gate.open()
        answers = await talk.finish()
        await talk.running.at_rest(17)

    assert refusal.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert refusal.retry_delay == 1.0
    assert refusal.message.startswith(
        "16 explanations are open on this stream, the most it takes (--max-explanations-per-stream)"
    )
    assert len(answers) == 16
    for events in answers.values():
        received(events)


async def test_a_client_may_start_many_more_before_it_reads(tmp_path: Path) -> None:
    async with talking(tmp_path, shut=True, max_explanations_per_stream=2) as talk:
        await talk.say(*(start(str(i), spec("m", IMAGE)) for i in range(100)))
        refusals = [await talk.refusal(str(i)) for i in range(2, 100)]
        talk.gate.open()
        answers = await talk.finish()
        await talk.running.at_rest(100)

    assert {each.code for each in refusals} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert answers.keys() == {"0", "1"}


async def test_a_client_that_only_writes_has_to_wait_and_is_cut_off(tmp_path: Path) -> None:
    options = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1 << 16)]
    async with (
        talking(tmp_path, max_explanations_per_stream=2, write_timeout_secs=0.1) as talk,
        grpc.aio.insecure_channel(talk.running.target, options) as channel,
    ):
        call = ExplanationServiceStub(channel).ExplainStream()

        async def flood() -> None:
            for i in itertools.count():
                await call.write(start(str(i), spec("n", IMAGE)))

        flooding = asyncio.create_task(flood())
        metrics = talk.running.metrics
        await metrics.until(lambda: ("ExplainStream", "CANCELLED") in metrics.handled)
        await talk.running.at_rest(1)
        flooding.cancel()
        await asyncio.gather(flooding, return_exceptions=True)  # however far it came
        unanswered = [event for event in metrics.ended if event.outcome == "cancelled"]

    assert len(unanswered) <= 4  # twice the explanations that a stream may have open


async def test_the_permits_of_the_server_are_shared_by_its_streams(tmp_path: Path) -> None:
    async with talking(tmp_path, shut=True, max_explanations=1) as talk:
        await talk.say(start("a", spec("m", IMAGE)))
        await talk.gate.reached(1)
        await talk.say(start("b", spec("m", IMAGE)))
        refusal = await talk.refusal("b")
        talk.gate.open()
        answers = await talk.finish()
        await talk.running.at_rest(2)

    assert refusal.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "1 explanations are in flight" in refusal.message
    received(answers["a"])


async def test_one_that_fails_in_every_way_leaves_the_others_alone(tmp_path: Path) -> None:
    poisoned = IMAGE.copy()
    poisoned[0, 0, 0] = POISON
    async with talking(tmp_path, shut=True) as talk:
        await talk.say(
            start("good", spec("m", IMAGE)),
            start("poisoned", spec("m", poisoned)),
            start("unknown", spec("n", IMAGE)),
            start("wrong", spec("m", IMAGE, occlusion=occlusion(9))),
            start("empty", pb.ExplanationSpec()),
            start("also good", spec("m", picture(1, SHAPE), gradient=pb.Gradient())),
        )
        await talk.gate.reached(1)
        talk.gate.open()
        answers = await talk.finish()
        await talk.running.at_rest(6)

    received(answers["good"])
    received(answers["also good"])
    codes = {name: refusal_of(answers[name][-1]).code for name in ("poisoned", "unknown", "wrong", "empty")}
    assert codes == {
        "poisoned": grpc.StatusCode.INTERNAL,
        "unknown": grpc.StatusCode.NOT_FOUND,
        "wrong": grpc.StatusCode.INVALID_ARGUMENT,
        "empty": grpc.StatusCode.NOT_FOUND,
    }


async def test_a_fault_of_the_server_ends_its_id_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with talking(tmp_path) as talk:
        servable = talk.running.offers["m"].servables[1]
        broken = [True, False]

        def program(*given: Any) -> Any:
            if broken.pop(0):
                raise RuntimeError("secret")
            return type(servable).program(servable, *given)

        monkeypatch.setattr(servable, "program", program)
        await talk.say(start("a", spec("m", IMAGE)))
        refusal = await talk.refusal("a")
        await talk.say(start("a", spec("m", IMAGE)))
        answers = await talk.finish()
        scrape = await talk.running.at_rest(2)

    assert refusal.code is grpc.StatusCode.INTERNAL
    assert refusal.message == "the server failed while it answered; its log says why"
    received(answers["a"])
    assert scrape.total("vitrail_explanations_total", outcome="internal") == 1


async def test_an_id_may_be_used_again_after_every_kind_of_end(tmp_path: Path) -> None:
    async with talking(tmp_path) as talk:
        for what in (spec("m", IMAGE), spec("n", IMAGE), spec("m", IMAGE, gradient=pb.Gradient())) * 5:
            await talk.say(start("a", what))
            event = None
            while not isinstance(event, pb.Summary | Status):
                name, event = await talk.hear()
                assert name == "a"
        assert await talk.finish() == {}
        await talk.running.at_rest(15)


async def test_a_stream_on_which_nothing_is_asked_ends_at_once(tmp_path: Path) -> None:
    async with talking(tmp_path) as talk:
        assert await talk.finish() == {}


async def test_an_upload_whose_message_is_too_large_ends_the_stream(tmp_path: Path) -> None:
    async with talking(tmp_path, max_message_bytes=2000) as talk:
        await talk.say(start("a", spec("m", IMAGE)), piece("b", bytes(3000)))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await talk.answers()
        await talk.running.at_rest(1)

    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "2000" in (caught.value.details() or "")


async def test_an_id_is_free_again_while_its_last_message_is_still_being_written(tmp_path: Path) -> None:
    """The client may have read it, and may use the id again, before the server knows that it is written."""
    async with served(tmp_path, {"m": Offer(model=Linear(weights(0, 2, SHAPE)))}) as running:
        server = running.server
        engine = Engine(
            manager=server.manager,
            devices=server._devices,
            decoding=server._decoding,
            admission=server._admission,
            events=running.metrics,
            limits=Limits(),
            max_image_pixels=1,
        )
        asked = [spec("m", IMAGE), spec("n", IMAGE), spec("m", IMAGE)]
        requests: asyncio.Queue[pb.ExplainStreamRequest | None] = asyncio.Queue()
        heard: list[Any] = []

        async def listen() -> AsyncIterator[pb.ExplainStreamRequest]:
            while (request := await requests.get()) is not None:
                yield request
                requests.task_done()
            requests.task_done()

        async def send(response: pb.ExplainStreamResponse) -> None:
            heard.append(event_of(response))
            if isinstance(heard[-1], pb.Summary | Status):
                requests.put_nowait(start("a", asked.pop(0)) if asked else None)
                await requests.join()  # it is taken while this one is still being written

        requests.put_nowait(start("a", asked.pop(0)))
        await Conversation(engine, StreamLimits(1, 1000, 60.0), Caller("here", "r")).hold(listen(), send)
        await running.at_rest(3)

    ends = [event for event in heard if isinstance(event, pb.Summary | Status)]
    assert [type(event) for event in ends] == [pb.Summary, Status, pb.Summary]
    assert refusal_of(ends[1]).code is grpc.StatusCode.NOT_FOUND
