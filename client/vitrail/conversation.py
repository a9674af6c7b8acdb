"""The client's side of one ExplainStream, without any I/O: many images over one connection.

A client asks `room` how many more images may be opened, passes the messages of `start` on to the
server and the server's to `receive`, which answers with a result whenever one is known. Ids are
numbers of our own; the caller's keys never cross the wire.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from vitrail.errors import Internal, InvalidArgument, VitrailError
from vitrail.explanation import Explanation, receive
from vitrail.request import set_budget
from vitrail.status import from_status
from vitrail.v1 import explanation_pb2 as pb

K = TypeVar("K")

Result = Explanation | VitrailError
"""What becomes of one image."""

PIECE_BYTES = 1 << 20
"""Images with more bytes are uploaded in pieces of this size."""


@dataclass(slots=True)
class _Open(Generic[K]):
    key: K
    image: pb.Image
    explanation: Explanation | None = None


class Conversation(Generic[K]):
    """The images that are open on one stream."""

    def __init__(self, spec: pb.ExplanationSpec, timeout: float | None, in_flight: int) -> None:
        if in_flight < 1:
            raise InvalidArgument(f"in_flight is {in_flight}; it must be at least 1", field="in_flight")
        self._spec = pb.ExplanationSpec()
        self._spec.CopyFrom(spec)
        set_budget(self._spec, timeout)
        self._in_flight = in_flight
        self._open: dict[str, _Open[K]] = {}
        self._started = 0
        self.answered = False
        """Whether the server has sent anything, after which nothing is tried again."""

    @property
    def room(self) -> int:
        """How many more images may be opened now."""
        return self._in_flight - len(self._open)

    def idle(self) -> bool:
        """Return whether no image is open."""
        return not self._open

    def start(self, key: K, image: pb.Image) -> Iterator[pb.ExplainStreamRequest]:
        """Open an image and return the messages that send it, which may be read in another thread."""
        name = str(self._started)
        self._started += 1
        self._open[name] = _Open(key, image)
        return self._messages(name, image)

    def restart(self) -> list[Iterator[pb.ExplainStreamRequest]]:
        """Return the messages that send every open image again, on a new stream."""
        return [self._messages(name, opened.image) for name, opened in self._open.items()]

    def receive(self, response: pb.ExplainStreamResponse) -> tuple[K, Result] | None:
        """Take in a message of the server; return the key and the result of an image that it settles.

        Raises:
            Internal: the message has no place here.

        """
        self.answered = True
        opened = self._open.get(response.id)
        if opened is None:
            raise Internal(f"the server answered to {response.id!r}, which is not open")
        if response.WhichOneof("event") == "error":
            del self._open[response.id]
            return opened.key, from_status(response.error)
        opened.explanation = receive(opened.explanation, response, opened.image)
        if opened.explanation.summary is None:
            return None
        del self._open[response.id]
        return opened.key, opened.explanation

    def ended(self) -> None:
        """Check that nothing was open when the server ended the stream.

        Raises:
            Internal: something was.

        """
        if self._open:
            raise Internal(f"the server ended the stream with {len(self._open)} explanations open")

    def _messages(self, name: str, image: pb.Image) -> Iterator[pb.ExplainStreamRequest]:
        start = pb.ExplainStreamRequest.Start(spec=self._spec)
        start.spec.image.CopyFrom(image)
        encoded = image.WhichOneof("source") == "encoded"
        data = image.encoded if encoded else image.tensor.data
        if len(data) > PIECE_BYTES:
            start.upload_bytes = len(data)
            if encoded:
                start.spec.image.encoded = b""
            else:
                start.spec.image.tensor.data = b""
        yield pb.ExplainStreamRequest(id=name, start=start)
        for offset in range(0, start.upload_bytes, PIECE_BYTES):
            piece = pb.ExplainStreamRequest.Piece(data=data[offset : offset + PIECE_BYTES])
            yield pb.ExplainStreamRequest(id=name, piece=piece)
