"""One ExplainStream: many explanations over one connection, kept apart by their ids.

A task listens to the client; the rpc's own task writes the answers, those of all ids in turn. An
explanation that fails is answered with its error and forgotten, the others go on. What cannot be
answered by id (no id, or an id that is open already) ends the stream.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass

from vitrail.errors import Cancelled, DeadlineExceeded, InvalidArgument, ResourceExhausted, VitrailError
from vitrail.tensors import layout
from vitrail.v1 import explanation_pb2 as pb
from vitrail_server.rpc.admission import Admission
from vitrail_server.rpc.context import Caller
from vitrail_server.rpc.refusals import logged, status_of
from vitrail_server.rpc.session import Engine, Message, Session

MAX_ID_BYTES = 128


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """What one stream allows."""

    open: int
    """Explanations and uploads at a time."""
    upload_bytes: int
    """Bytes of one upload."""
    upload_seconds: float
    """From the start of an upload until it is complete."""


class Upload:
    """The bytes of an image that arrives in pieces. Holds no permit and no handle, and times out."""

    def __init__(self, spec: pb.ExplanationSpec, size: int, admission: Admission) -> None:
        """Wait for `size` bytes of the image of `spec`.

        Raises:
            ResourceExhausted: the server holds too many bytes of unfinished uploads.

        """
        self.spec = spec
        self.size = size
        self._admission = admission
        self._data = bytearray()
        self._reserved = 0
        self._reserve(spec.ByteSize())  # a fill, or further inputs, may be as large as the image

    @property
    def complete(self) -> bool:
        """All bytes have arrived."""
        return len(self._data) == self.size

    @property
    def received(self) -> int:
        """How many bytes have arrived."""
        return len(self._data)

    def append(self, data: bytes) -> None:
        """Take the next bytes.

        Raises:
            InvalidArgument: none, or more than were announced.
            ResourceExhausted: the server holds too many bytes of unfinished uploads.

        """
        if not data:
            raise InvalidArgument("piece.data is empty; send at least one byte", field="piece.data")
        if self.received + len(data) > self.size:
            raise InvalidArgument(
                f"the pieces have {self.received + len(data)} bytes, but start.upload_bytes announced "
                f"{self.size}",
                field="piece.data",
            )
        self._reserve(len(data))
        self._data += data

    def finished_spec(self) -> pb.ExplanationSpec:
        """Return the request with its image complete."""
        image = self.spec.image
        if image.WhichOneof("source") == "tensor":
            image.tensor.data = bytes(self._data)
        else:
            image.encoded = bytes(self._data)
        return self.spec

    def close(self) -> None:
        """Give the reserved bytes back."""
        self._admission.release(self._reserved)
        self._reserved = 0
        self._data.clear()

    def _reserve(self, size: int) -> None:
        self._admission.reserve(size)
        self._reserved += size


@dataclass(slots=True, eq=False)
class _Open:
    """One id that is open."""

    session: Session
    upload: Upload | None = None
    timer: asyncio.TimerHandle | None = None
    starting: asyncio.Task[None] | None = None
    failure: VitrailError | None = None

    def close(self, failure: VitrailError | None = None) -> None:
        if self.timer is not None:
            self.timer.cancel()
        if self.upload is not None:
            self.upload.close()
            self.upload = None
        if self.starting is not None:
            self.starting.cancel()
        self.session.close(failure)


class Conversation:
    """One ExplainStream. Every method is called on the event loop."""

    def __init__(self, engine: Engine, limits: StreamLimits, caller: Caller) -> None:
        self._engine = engine
        self._limits = limits
        self._caller = caller
        self._open: dict[str, _Open] = {}
        self._changed = asyncio.Event()
        self._settled = asyncio.Event()
        self._listening = True
        self._broken: VitrailError | None = None

    async def hold(
        self,
        requests: AsyncIterator[pb.ExplainStreamRequest],
        send: Callable[[pb.ExplainStreamResponse], Awaitable[None]],
    ) -> None:
        """Answer until the client has half-closed and every id is answered.

        Raises:
            VitrailError: the stream as a whole cannot go on.

        """
        listener = asyncio.create_task(self._listen(requests))
        try:
            while self._listening or self._open:
                await self._changed.wait()
                self._changed.clear()
                for name, each in list(self._open.items()):
                    for response in self._answers(name, each):
                        await send(response)
                if self._broken is not None:
                    raise self._broken
        finally:
            listener.cancel()

    def close(self, failure: VitrailError) -> None:
        """End every id that is open with `failure`."""
        while self._open:
            _, each = self._open.popitem()
            each.close(failure)

    def _answers(self, name: str, each: _Open) -> Iterator[pb.ExplainStreamResponse]:
        """Yield the messages that are due to one id.

        The id is forgotten before its last message is sent, so that the client may use it again as soon
        as it has read that.
        """
        failure = each.failure
        if failure is None:
            try:
                for message in each.session.messages():
                    if each.session.ended:
                        self._settle(name, each)
                    yield _response(name, message)
            except Exception as error:  # noqa: BLE001 - whatever it is, it ends this id only
                failure = logged(error, "an explanation of a stream")
        if failure is not None:
            self._settle(name, each, failure)
            yield pb.ExplainStreamResponse(id=name, error=status_of(failure))

    def _settle(self, name: str, each: _Open, failure: VitrailError | None = None) -> None:
        del self._open[name]
        each.close(failure)
        self._settled.set()

    async def _listen(self, requests: AsyncIterator[pb.ExplainStreamRequest]) -> None:
        try:
            async for request in requests:
                self._take(request)
                # Refusals that nobody has read must not pile up: who floods the stream has to wait.
                while len(self._open) >= 2 * self._limits.open:
                    self._settled.clear()
                    await self._settled.wait()
        except Exception as error:  # noqa: BLE001 - whatever it is, the client is told
            self._broken = logged(error, "a stream")
        else:
            self._end_uploads()
        self._listening = False
        self._changed.set()

    def _end_uploads(self) -> None:
        """Fail the uploads that are not complete, now that no more pieces will come."""
        for name, each in self._open.items():
            if each.upload is not None:
                self._fail(
                    name,
                    InvalidArgument(
                        f"the stream was closed after {each.upload.received} of {each.upload.size} announced "
                        "bytes",
                        field="start.upload_bytes",
                    ),
                )

    def _take(self, request: pb.ExplainStreamRequest) -> None:
        """Do what one message says; what is wrong with one id is told to that id."""
        name = request.id
        if not 0 < len(name.encode()) <= MAX_ID_BYTES:
            raise InvalidArgument(
                f"id has {len(name.encode())} bytes; it must have 1 to {MAX_ID_BYTES}", field="id"
            )
        match request.WhichOneof("action"):
            case "start":
                self._start(name, request.start)
            case "piece":
                self._piece(name, request.piece.data)
            case "cancel":
                self._fail(name, Cancelled("cancelled by the client"))
            case _:
                raise InvalidArgument("action is unset; set start, piece or cancel", field="action")

    def _start(self, name: str, start: pb.ExplainStreamRequest.Start) -> None:
        if name in self._open:
            raise InvalidArgument(
                f"id {name!r} is open already; an id may be used again once it is answered", field="id"
            )
        each = self._open[name] = _Open(Session(self._engine, self._caller, self._changed.set))
        if len(self._open) > self._limits.open:
            self._fail(
                name,
                ResourceExhausted(
                    f"{self._limits.open} explanations are open on this stream, the most it takes "
                    "(--max-explanations-per-stream): start this one when another is answered",
                    retry_delay=1.0,
                ),
            )
        elif not start.upload_bytes:
            self._begin(each, start.spec)
        else:
            self._expect(name, each, start)

    def _expect(self, name: str, each: _Open, start: pb.ExplainStreamRequest.Start) -> None:
        """Wait for the pieces of an image."""
        try:
            _check_upload(start, self._limits.upload_bytes)
            each.upload = Upload(start.spec, start.upload_bytes, self._engine.admission)
        except VitrailError as error:
            self._fail(name, error)
            return
        each.timer = asyncio.get_running_loop().call_later(
            self._limits.upload_seconds,
            self._fail,
            name,
            DeadlineExceeded(
                f"the upload was not complete after {self._limits.upload_seconds:g} s "
                "(--upload-timeout-secs)",
                field="start.upload_bytes",
            ),
        )

    def _piece(self, name: str, data: bytes) -> None:
        each = self._open.get(name)
        if each is None:
            return  # the id was answered while the piece was on its way
        if each.upload is None:
            if each.failure is None:
                self._fail(
                    name,
                    InvalidArgument(
                        "a piece came for an image that is complete; announce pieces by start.upload_bytes",
                        field="piece",
                    ),
                )
            return
        try:
            each.upload.append(data)
        except VitrailError as error:
            self._fail(name, error)
            return
        if each.upload.complete:
            if each.timer is not None:
                each.timer.cancel()
            spec = each.upload.finished_spec()
            each.upload.close()
            each.upload = None
            self._begin(each, spec)

    def _begin(self, each: _Open, spec: pb.ExplanationSpec) -> None:
        async def start() -> None:
            try:
                await each.session.start(spec)
            except Exception as error:  # noqa: BLE001 - whatever it is, it ends this id only
                each.failure = logged(error, "an explanation of a stream")
                self._changed.set()

        each.starting = asyncio.create_task(start())

    def _fail(self, name: str, failure: VitrailError) -> None:
        each = self._open.get(name)
        if each is not None and each.failure is None:
            each.failure = failure
            self._changed.set()


def _check_upload(start: pb.ExplainStreamRequest.Start, most: int) -> None:
    """Check an announced upload against its own request, before any of it arrives."""
    image = start.spec.image
    field = "start.upload_bytes"
    if start.upload_bytes > most:
        raise ResourceExhausted(
            f"{field} is {start.upload_bytes}; an upload may have {most} bytes (--max-message-bytes)",
            field=field,
        )
    match image.WhichOneof("source"):
        case "tensor":
            _, size = layout(image.tensor, "start.spec.image.tensor")
            if image.tensor.data:
                raise InvalidArgument(
                    "start.spec.image.tensor.data must be empty where start.upload_bytes announces pieces",
                    field="start.spec.image.tensor.data",
                )
            if size != start.upload_bytes:
                raise InvalidArgument(
                    f"{field} is {start.upload_bytes}, but start.spec.image.tensor needs {size} bytes by its "
                    "shape and type",
                    field=field,
                )
        case "encoded":
            if image.encoded:
                raise InvalidArgument(
                    "start.spec.image.encoded must be empty where start.upload_bytes announces pieces",
                    field="start.spec.image.encoded",
                )
        case _:
            raise InvalidArgument(
                "start.spec.image is unset; say whether the pieces are a tensor or an encoded image",
                field="start.spec.image",
            )


def _response(name: str, message: Message) -> pb.ExplainStreamResponse:
    match message:
        case pb.Plan():
            return pb.ExplainStreamResponse(id=name, plan=message)
        case pb.Tile():
            return pb.ExplainStreamResponse(id=name, tile=message)
        case pb.Summary():
            return pb.ExplainStreamResponse(id=name, summary=message)
