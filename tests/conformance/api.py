"""The API as bytes: its field numbers written out once more, requests made by hand, answers read by hand.

A change of any number here would break every client that exists.
"""

import math
from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

from conformance.wire import Message, content, number, text, varint

EXPLANATIONS = "/vitrail.v1.ExplanationService"
HEALTH = "/grpc.health.v1.Health"

AS_IT_IS = (bytes, bytes)
"""How requests are written and answers are read: bytes of bytes are the same bytes."""

MIB = 1 << 20


class Spec:
    """vitrail.v1.ExplanationSpec."""

    MODEL_NAME, VERSION, VERSION_LABEL, IMAGE, INPUTS, OUTPUT_NAME, TARGETS = 1, 2, 3, 4, 5, 6, 7
    OBJECTIVE, GRADIENT, OCCLUSION, PRIORITY, TIME_BUDGET = 8, 9, 10, 11, 12


class Image:
    """vitrail.v1.Image."""

    TENSOR, ENCODED = 1, 2


class Tensor:
    """vitrail.v1.Tensor."""

    DATA_TYPE, SHAPE, DATA = 1, 2, 3
    FP32 = 11


class Targets:
    """vitrail.v1.Targets and what is in it."""

    LIST, TOP_K, ALL = 1, 2, 3
    LIST_TARGETS = 1
    INDEX, LABEL = 1, 2


class Gradient:
    """vitrail.v1.Gradient."""

    SIGNED, CHANNEL_REDUCTION, TIMES_INPUT = 1, 2, 3
    NONE, MAX_ABS, SUM_ABS, L2, SUM, MEAN = 1, 2, 3, 4, 5, 6


class Occlusion:
    """vitrail.v1.Occlusion and what is in it."""

    PATCH, STRIDE, FILL, EDGE, WINDOW_SCORE, RESOLUTION, ORDER = 1, 2, 3, 4, 5, 6, 7
    ROWS, COLUMNS = 1, 2
    FILL_CONSTANT = 1
    EDGE_CLIP = SIGNED = PIXELS = RASTER = 1
    WINDOWS = PROGRESSIVE = 2


class Tiles:
    """vitrail.v1.ExplainTilesResponse."""

    PLAN, TILE, SUMMARY = 1, 2, 3


class Whole:
    """vitrail.v1.ExplainResponse."""

    PLAN, VALUES, SUMMARY = 1, 2, 3


class Request:
    """vitrail.v1.ExplainStreamRequest and what is in it."""

    ID, START, PIECE, CANCEL = 1, 2, 3, 4
    START_SPEC, START_UPLOAD_BYTES = 1, 2
    PIECE_DATA = 1


class Response:
    """vitrail.v1.ExplainStreamResponse."""

    ID, PLAN, TILE, SUMMARY, ERROR = 1, 2, 3, 4, 5


class Plan:
    """vitrail.v1.Plan and what is in it."""

    MODEL_NAME, MODEL_VERSION, OUTPUT_NAME, TARGETS, OBJECTIVE, GRADIENT, OCCLUSION = 1, 2, 3, 4, 5, 6, 7
    MAP_SHAPE, WINDOW_GRID, EVALUATIONS, EXECUTION, SOURCE_BOX, WARNINGS, PRIORITY = 8, 9, 10, 11, 12, 13, 14
    TARGET_INDEX = 1
    OBJECTIVE_KIND, KIND_OUTPUT = 1, 1
    BOX_HEIGHT, BOX_WIDTH = 3, 4
    GRID_ROWS, GRID_COLUMNS = 1, 2


class Tile:
    """vitrail.v1.Tile."""

    ROW, COLUMN, HEIGHT, WIDTH, FIRST_TARGET, TARGET_COUNT, VALUES, EVALUATIONS_DONE, FINAL = range(1, 10)


class Summary:
    """vitrail.v1.Summary and what is in it."""

    COMPLETION, PARTIAL_REASON, MEASURED_FRACTION, EVALUATED_WINDOWS, EVALUATIONS = 1, 2, 3, 4, 5
    COMPLETE, PARTIAL, TIME_BUDGET = 1, 2, 1
    DONE, SKIPPED, DROPPED = 1, 2, 3


def spec(model: str, image: NDArray[np.float32], *further: bytes) -> bytes:
    """Return the fields of an ExplanationSpec with a tensor image."""
    return (
        text(Spec.MODEL_NAME, model)
        + content(Spec.IMAGE, content(Image.TENSOR, tensor(image)))
        + b"".join(further)
    )


def tensor(array: NDArray[np.float32]) -> bytes:
    """Return the fields of a Tensor."""
    return tensor_without_data(array) + content(Tensor.DATA, array.astype("<f4").tobytes())


def tensor_without_data(array: NDArray[np.float32]) -> bytes:
    """Return the fields of a Tensor whose data follows in pieces."""
    shape = b"".join(map(varint, array.shape))
    return number(Tensor.DATA_TYPE, Tensor.FP32) + content(Tensor.SHAPE, shape)


def gradient(*further: bytes) -> bytes:
    """Return the field of an ExplanationSpec that asks for a gradient."""
    return content(Spec.GRADIENT, *further)


def occlusion(patch: int, stride: int, *further: bytes) -> bytes:
    """Return the field of an ExplanationSpec that asks for an occlusion with square windows."""
    sides = content(Occlusion.PATCH, extent(patch)) + content(Occlusion.STRIDE, extent(stride))
    return content(Spec.OCCLUSION, sides, *further)


def extent(pixels: int) -> bytes:
    """Return the fields of an Extent with equal sides."""
    return number(Occlusion.ROWS, pixels) + number(Occlusion.COLUMNS, pixels)


def targets(*indices: int) -> bytes:
    """Return the field of an ExplanationSpec that names targets."""
    chosen = [content(Targets.LIST_TARGETS, number(Targets.INDEX, index)) for index in indices]
    return content(Spec.TARGETS, content(Targets.LIST, *chosen))


def time_budget(seconds: int, nanos: int = 0) -> bytes:
    """Return the field of an ExplanationSpec that limits its time."""
    return content(Spec.TIME_BUDGET, number(1, seconds), number(2, nanos))


@dataclass(frozen=True)
class Explained:
    """One explanation, as it came."""

    plan: Message
    tiles: list[Message]
    summary: Message

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the map."""
        return tuple(self.plan.repeated(Plan.MAP_SHAPE))

    def area(self, tile: Message) -> tuple[slice, slice, slice]:
        """Return the part of the map that a tile covers."""
        sides = (
            (Tile.FIRST_TARGET, Tile.TARGET_COUNT),
            (Tile.ROW, Tile.HEIGHT),
            (Tile.COLUMN, Tile.WIDTH),
        )
        first, row, column = (
            slice(tile.number(at), tile.number(at) + tile.number(count)) for at, count in sides
        )
        return first, row, column

    def values(self, tile: Message) -> NDArray[np.float32]:
        """Return the values of a tile: (targets, height, width[, channels])."""
        sides = [tile.number(each) for each in (Tile.TARGET_COUNT, Tile.HEIGHT, Tile.WIDTH)]
        return np.frombuffer(tile.bytes(Tile.VALUES), "<f4").reshape(*sides, *self.shape[3:])

    def map(self) -> NDArray[np.float32]:
        """Return the map by the paste rule; NaN where no tile came."""
        values = np.full(self.shape, math.nan, np.float32)
        for tile in self.tiles:
            values[self.area(tile)] = self.values(tile)
        return values


def read_tiles(messages: list[bytes]) -> Explained:
    """Return the explanation that the messages of an ExplainTiles hold: one plan, tiles, one summary."""
    first, *middle, last = map(Message.of, messages)
    assert [Tiles.PLAN in first, Tiles.SUMMARY in last] == [True, True]
    assert all(Tiles.TILE in each for each in middle)
    return Explained(
        first.message(Tiles.PLAN),
        [each.message(Tiles.TILE) for each in middle],
        last.message(Tiles.SUMMARY),
    )


@dataclass(frozen=True)
class Refusal:
    """The status of a call, or of one id, that failed."""

    code: int
    message: str
    reason: str
    """Of google.rpc.ErrorInfo."""
    domain: str
    field: str
    """Of google.rpc.BadRequest; empty where no field is at fault."""
    retry_delay: float | None
    """Of google.rpc.RetryInfo, in seconds; None without one."""

    @property
    def name(self) -> str:
        """The name of the code."""
        return next(each.name for each in grpc.StatusCode if each.value[0] == self.code)


def read_status(status: Message) -> Refusal:
    """Return what a google.rpc.Status says: 1 code, 2 message, 3 details, each an Any."""
    reason = domain = field = ""
    delay = None
    for detail in status.messages(3):
        kind, value = detail.text(1).rpartition("/")[2], detail.message(2)
        match kind:
            case "google.rpc.ErrorInfo":
                reason, domain = value.text(1), value.text(2)
            case "google.rpc.BadRequest":
                field = value.message(1).text(1)
            case "google.rpc.RetryInfo":
                delay = value.message(1).number(1) + value.message(1).number(2) / 1e9
    return Refusal(status.number(1), status.text(2), reason, domain, field, delay)


class Connection:
    """Calls with bytes, over a channel."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel

    def tiles(self, *fields: bytes, **options: Any) -> Any:
        """Start an ExplainTiles with these fields of an ExplanationSpec."""
        call = self._channel.unary_stream(f"{EXPLANATIONS}/ExplainTiles", *AS_IT_IS)
        return call(content(1, *fields), **options)

    def whole(self, *fields: bytes, **options: Any) -> Any:
        """Start an Explain with these fields of an ExplanationSpec."""
        return self.unary(f"{EXPLANATIONS}/Explain", content(1, *fields), **options)

    def stream(self) -> "Stream":
        """Open an ExplainStream."""
        return Stream(self._channel.stream_stream(f"{EXPLANATIONS}/ExplainStream", *AS_IT_IS)())

    def unary(self, path: str, request: bytes = b"", **options: Any) -> Any:
        """Start any unary call."""
        return self._channel.unary_unary(path, *AS_IT_IS)(request, **options)

    async def explained(self, *fields: bytes) -> Explained:
        """Return the explanation that an ExplainTiles streams."""
        return read_tiles([message async for message in self.tiles(*fields)])


@dataclass(frozen=True)
class Answer:
    """One message of an ExplainStream."""

    id: str
    kind: int
    """The field of its event, in `Response`."""
    event: Message


class Stream:
    """An open ExplainStream."""

    def __init__(self, call: Any) -> None:
        self._call = call

    async def start(self, name: str, *fields: bytes, upload_bytes: int = 0) -> None:
        """Open an explanation with these fields of an ExplanationSpec."""
        announced = number(Request.START_UPLOAD_BYTES, upload_bytes)
        started = content(Request.START_SPEC, *fields) + announced
        await self.send(name, content(Request.START, started))

    async def piece(self, name: str, data: bytes) -> None:
        """Send the next bytes of an upload."""
        await self.send(name, content(Request.PIECE, content(Request.PIECE_DATA, data)))

    async def cancel(self, name: str) -> None:
        """End an explanation."""
        await self.send(name, content(Request.CANCEL))

    async def send(self, name: str, *fields: bytes) -> None:
        """Send one message."""
        await self._call.write(text(Request.ID, name) + b"".join(fields))

    async def close(self) -> None:
        """Half-close: no more messages follow."""
        await self._call.done_writing()

    def cancel_all(self) -> None:
        """Cancel the call."""
        self._call.cancel()

    def messages(self) -> AsyncIterator[bytes]:
        """Return what comes until the server ends the stream, as it comes."""
        messages: AsyncIterator[bytes] = aiter(self._call)
        return messages

    async def answers(self) -> AsyncIterator[Answer]:
        """Yield what comes until the server ends the stream."""
        async for data in self.messages():
            yield _answer(data)

    async def answer(self) -> Answer:
        """Return the next message."""
        return await anext(self.answers())

    async def answer_of(self, name: str) -> Explained | Refusal:
        """Read up to the last message of an id and return its explanation; no other id may answer."""
        answers = []
        async for answer in self.answers():
            assert answer.id == name
            answers.append(answer)
            if answer.kind in (Response.SUMMARY, Response.ERROR):
                break
        return settled(answers)


def _answer(data: bytes) -> Answer:
    message = Message.of(data)
    [kind] = [each for each in range(Response.PLAN, Response.ERROR + 1) if each in message]
    return Answer(message.text(Response.ID), kind, message.message(kind))


def settled(answers: list[Answer]) -> Explained | Refusal:
    """Return what the answers to one id come to: one plan, tiles, one summary, or an error at any point."""
    [*earlier, last] = answers
    kinds = [answer.kind for answer in earlier]
    assert kinds == [Response.PLAN, *[Response.TILE] * (len(kinds) - 1)][: len(kinds)]
    if last.kind == Response.ERROR:
        return read_status(last.event)
    assert last.kind == Response.SUMMARY
    return Explained(earlier[0].event, [each.event for each in earlier[1:]], last.event)


async def by_id(answers: AsyncIterable[Answer]) -> dict[str, list[Answer]]:
    """Read a stream to its end and return the answers of each id."""
    found: dict[str, list[Answer]] = {}
    async for answer in answers:
        found.setdefault(answer.id, []).append(answer)
    return found


async def refused(call: Any, received: list[Message] | None = None) -> Refusal:
    """Read a call that must fail to its end, and return how it did; `received` takes what came before."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await _read(call, [] if received is None else received)
    error = caught.value
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            assert isinstance(value, bytes)
            refusal = read_status(Message.of(value))
            assert (refusal.code, refusal.message) == (error.code().value[0], error.details())
            return refusal
    return Refusal(error.code().value[0], error.details() or "", "", "", "", None)


async def _read(call: Any, received: list[Message]) -> None:
    if not hasattr(call, "__aiter__"):
        await call
        return
    async for message in call:
        received.append(Message.of(message))  # noqa: PERF401 - what came before an error counts
