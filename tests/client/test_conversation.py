import numpy as np
import pytest

from vitrail import Explanation
from vitrail.conversation import PIECE_BYTES, Conversation
from vitrail.errors import Internal, InvalidArgument, NotFound
from vitrail.request import image_message, specification
from vitrail.status import to_status
from vitrail.v1 import explanation_pb2 as pb

from .messages import complete, in_stream_response, occlusion_plan, whole_map


def conversation(in_flight: int = 2, timeout: float | None = None) -> Conversation[str]:
    return Conversation(specification("net", {}), timeout, in_flight)


def test_room_shrinks_and_grows_with_what_is_open() -> None:
    talk = conversation(in_flight=2)

    assert (talk.room, talk.idle()) == (2, True)

    talk.start("a", pb.Image(encoded=b"1"))
    talk.start("b", pb.Image(encoded=b"2"))

    assert (talk.room, talk.idle()) == (0, False)

    for event in whole_map():
        talk.receive(in_stream_response("1", event))

    assert (talk.room, talk.idle()) == (1, False)


def test_a_small_image_is_one_message() -> None:
    [message] = conversation(timeout=2).start("a", pb.Image(encoded=b"photo"))

    assert message.id == "0"
    assert message.start.spec.image.encoded == b"photo"
    assert message.start.spec.model_name == "net"
    assert message.start.spec.time_budget.ToSeconds() == 2
    assert message.start.upload_bytes == 0


@pytest.mark.parametrize("size", [PIECE_BYTES + 1, 2 * PIECE_BYTES, 3 * PIECE_BYTES - 1])
def test_a_large_image_comes_in_pieces(size: int) -> None:
    data = np.arange(size, dtype=np.uint8)

    start, *pieces = conversation().start("a", image_message(data[:, None]))

    assert start.start.upload_bytes == size
    assert list(start.start.spec.image.tensor.shape) == [size, 1]
    assert start.start.spec.image.tensor.data == b""
    assert b"".join(piece.piece.data for piece in pieces) == data.tobytes()
    assert max(len(piece.piece.data) for piece in pieces) == PIECE_BYTES
    assert {piece.id for piece in pieces} == {start.id}


def test_a_large_file_comes_in_pieces_too() -> None:
    start, *pieces = conversation().start("a", pb.Image(encoded=bytes(PIECE_BYTES + 1)))

    assert start.start.spec.image.WhichOneof("source") == "encoded"
    assert [len(piece.piece.data) for piece in pieces] == [PIECE_BYTES, 1]


def test_answers_to_two_images_may_be_interleaved() -> None:
    talk = conversation()
    talk.start("a", pb.Image(encoded=b"1"))
    talk.start("b", pb.Image(encoded=b"2"))
    answers = [in_stream_response(name, event) for event in whole_map() for name in ("1", "0")]

    settled = [talk.receive(answer) for answer in answers]

    (first, second) = (result for result in settled if result is not None)
    assert [first[0], second[0]] == ["b", "a"]
    assert isinstance(first[1], Explanation)
    assert first[1].image.encoded == b"2"
    assert first[1].complete


def test_an_error_settles_its_image_and_leaves_the_others_open() -> None:
    talk = conversation()
    talk.start("a", pb.Image(encoded=b"1"))
    talk.start("b", pb.Image(encoded=b"2"))
    talk.receive(in_stream_response("0", occlusion_plan()))

    settled = talk.receive(pb.ExplainStreamResponse(id="0", error=to_status(NotFound("gone", field="spec"))))

    assert settled is not None
    key, error = settled
    assert (key, type(error), str(error)) == ("a", NotFound, "gone")
    assert not talk.idle()


def test_what_is_open_can_be_sent_again() -> None:
    talk = conversation()
    talk.start("a", pb.Image(encoded=b"1"))
    talk.start("b", pb.Image(encoded=b"2"))

    again = [message for messages in talk.restart() for message in messages]

    assert [(message.id, message.start.spec.image.encoded) for message in again] == [("0", b"1"), ("1", b"2")]
    assert not talk.answered


@pytest.mark.parametrize("name", ["1", "", "0"])
def test_an_answer_to_something_that_is_not_open_is_refused(name: str) -> None:
    talk = conversation()
    talk.start("a", pb.Image(encoded=b"1"))
    talk.receive(in_stream_response("0", occlusion_plan()))
    talk.receive(in_stream_response("0", complete()))

    with pytest.raises(Internal, match="not open"):
        talk.receive(in_stream_response(name, occlusion_plan()))

    assert talk.answered


def test_a_stream_that_ends_with_something_open_was_not_whole() -> None:
    talk = conversation()
    talk.ended()
    talk.start("a", pb.Image(encoded=b"1"))

    with pytest.raises(Internal, match="1 explanations open"):
        talk.ended()


def test_at_least_one_image_is_in_flight() -> None:
    with pytest.raises(InvalidArgument, match="in_flight is 0"):
        conversation(in_flight=0)
