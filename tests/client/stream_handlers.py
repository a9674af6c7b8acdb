"""Answers to an ExplainStream, for `FakeServer.on_stream`."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from vitrail.errors import VitrailError
from vitrail.status import to_status
from vitrail.v1 import explanation_pb2 as pb

from .fake_server import StreamHandler
from .messages import Event, in_stream_response

Answer = Callable[[bytes], list[Event | VitrailError]]
"""What the image with these bytes is answered with."""


@dataclass
class Uploads:
    """Puts the images of one stream together from their messages."""

    waiting: dict[str, tuple[int, bytes]] = field(default_factory=dict)

    def complete(self, request: pb.ExplainStreamRequest) -> bytes | None:
        """Take in one message; return the image that it completes."""
        if request.WhichOneof("action") == "start":
            if not request.start.upload_bytes:
                return request.start.spec.image.encoded
            self.waiting[request.id] = (request.start.upload_bytes, b"")
            return None
        size, data = self.waiting[request.id]
        data += request.piece.data
        self.waiting[request.id] = (size, data)
        return data if len(data) == size else None


def in_order(answer: Answer) -> StreamHandler:
    """Answer each image as soon as it is complete."""

    def handle(
        requests: Iterator[pb.ExplainStreamRequest],
    ) -> Iterator[pb.ExplainStreamResponse | VitrailError]:
        uploads = Uploads()
        for request in requests:
            image = uploads.complete(request)
            if image is not None:
                for step in answer(image):
                    yield _response(request.id, step)

    return handle


def interleaved(count: int, answer: Answer) -> StreamHandler:
    """Collect `count` images, then send the first message of each, then the second of each, and so on."""

    def handle(
        requests: Iterator[pb.ExplainStreamRequest],
    ) -> Iterator[pb.ExplainStreamResponse | VitrailError]:
        scripts = []
        for request in requests:
            scripts.append((request.id, answer(request.start.spec.image.encoded)))
            if len(scripts) == count:
                for step in range(max(len(script) for _, script in scripts)):
                    for name, script in scripts:
                        if step < len(script):
                            yield _response(name, script[step])

    return handle


def _response(name: str, step: Event | VitrailError) -> pb.ExplainStreamResponse:
    if isinstance(step, VitrailError):
        return pb.ExplainStreamResponse(id=name, error=to_status(step))
    return in_stream_response(name, step)
