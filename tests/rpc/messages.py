"""What these tests send and how they read the answers: plain messages, nothing of the client's logic.

The paste rule, the details of a status and the arithmetic of the evaluations are written down once more
here, from the contract, so that the server is not checked by its own code.
"""

import itertools
from collections.abc import AsyncIterable, Awaitable, Iterable
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from numpy.typing import NDArray

from vitrail.v1 import explanation_pb2 as pb
from vitrail.v1.tensor_pb2 import DataType, Tensor

WIRE_TYPES = {
    np.dtype("f4"): DataType.DATA_TYPE_FP32,
    np.dtype("f8"): DataType.DATA_TYPE_FP64,
    np.dtype("u1"): DataType.DATA_TYPE_UINT8,
    np.dtype("i8"): DataType.DATA_TYPE_INT64,
}

MIB = 1 << 20


def tensor(array: NDArray[Any]) -> Tensor:
    """Return the message of an array."""
    return Tensor(data_type=WIRE_TYPES[array.dtype], shape=array.shape, data=array.tobytes())


def extent(rows: int, columns: int) -> pb.Extent:
    return pb.Extent(rows=rows, columns=columns)


def indices(*targets: int) -> pb.Targets:
    return pb.Targets(list=pb.TargetList(targets=[pb.Target(index=each) for each in targets]))


def label(name: str) -> pb.Targets:
    return pb.Targets(list=pb.TargetList(targets=[pb.Target(label=name)]))


def occlusion(patch: int = 2, stride: int | None = None, **further: Any) -> pb.Occlusion:
    """Return an occlusion with square windows."""
    message = pb.Occlusion(patch=extent(patch, patch), **further)
    if stride is not None:
        message.stride.CopyFrom(extent(stride, stride))
    return message


def spec(model: str, image: NDArray[Any] | bytes, **further: Any) -> pb.ExplanationSpec:
    """Return what to explain; an occlusion unless a method is named."""
    given = pb.Image(encoded=image) if isinstance(image, bytes) else pb.Image(tensor=tensor(image))
    if not {"gradient", "occlusion"} & further.keys():
        further["occlusion"] = occlusion()
    return pb.ExplanationSpec(model_name=model, image=given, **further)


def start(name: str, what: pb.ExplanationSpec, upload_bytes: int = 0) -> pb.ExplainStreamRequest:
    return pb.ExplainStreamRequest(
        id=name, start=pb.ExplainStreamRequest.Start(spec=what, upload_bytes=upload_bytes)
    )


def piece(name: str, data: bytes) -> pb.ExplainStreamRequest:
    return pb.ExplainStreamRequest(id=name, piece=pb.ExplainStreamRequest.Piece(data=data))


def cancel(name: str) -> pb.ExplainStreamRequest:
    return pb.ExplainStreamRequest(id=name, cancel=pb.ExplainStreamRequest.Cancel())


@dataclass(frozen=True)
class Refusal:
    """How a call or one id of a stream failed."""

    code: grpc.StatusCode
    message: str
    field: str = ""
    retry_delay: float | None = None
    reason: str = ""


def refusal_of(status: Status) -> Refusal:
    """Return what a status says, all of its details read."""
    field, retry_delay, reason = "", None, ""
    for detail in status.details:
        if detail.Is(BadRequest.DESCRIPTOR):
            (violation,) = BadRequest.FromString(detail.value).field_violations
            field = violation.field
            assert violation.description == status.message
        elif detail.Is(RetryInfo.DESCRIPTOR):
            retry_delay = RetryInfo.FromString(detail.value).retry_delay.ToNanoseconds() / 1e9
        elif detail.Is(ErrorInfo.DESCRIPTOR):
            info = ErrorInfo.FromString(detail.value)
            assert info.domain == "vitrail"
            reason = info.reason
    code = next(each for each in grpc.StatusCode if each.value[0] == status.code)
    return Refusal(code, status.message, field, retry_delay, reason)


async def refused(call: Awaitable[Any]) -> Refusal:
    """Await a call that must fail, and return how it did."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    error = caught.value
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            status = Status.FromString(value)
            assert status.message == error.details()
            refusal = refusal_of(status)
            assert refusal.code is error.code()
            assert refusal.reason == refusal.code.name
            return refusal
    return Refusal(error.code(), error.details() or "")


def send_bytes(channel: grpc.aio.Channel, path: str, data: bytes = b"") -> Any:
    """Call an rpc of one request and one answer by its path, whether it exists or not."""
    rpc: Any = channel.unary_unary(path)
    return rpc(data)


Event = pb.Plan | pb.Tile | pb.Summary


@dataclass(frozen=True)
class Received:
    """One streamed explanation, as it came."""

    plan: pb.Plan
    tiles: list[pb.Tile]
    summary: pb.Summary

    @property
    def values(self) -> NDArray[np.float32]:
        """The map by the paste rule; NaN where no tile was."""
        values = np.full(tuple(self.plan.map_shape), np.nan, np.float32)
        final = np.zeros(values.shape[:3], np.bool_)
        for tile in self.tiles:
            area = (
                slice(tile.first_target, tile.first_target + tile.target_count),
                slice(tile.row, tile.row + tile.height),
                slice(tile.column, tile.column + tile.width),
            )
            assert final[area].shape == (tile.target_count, tile.height, tile.width), "outside the map"
            assert final[area].size > 0
            given = np.frombuffer(tile.values, "<f4").reshape(values[area].shape)
            settled = final[area]
            assert given[settled].tobytes() == values[area][settled].tobytes(), "a final value changed"
            values[area] = given
            final[area] |= tile.final
        if self.summary.completion == pb.Summary.COMPLETION_COMPLETE:
            assert final.all()
        return values


def received(events: Iterable[Any]) -> Received:
    """Hold the events of one explanation to their order, and return them."""
    plan, *tiles, summary = events
    assert isinstance(plan, pb.Plan)
    assert all(isinstance(each, pb.Tile) for each in tiles)
    assert isinstance(summary, pb.Summary)
    done = [each.evaluations_done for each in tiles]
    assert done == sorted(done)
    counts = summary.evaluations
    assert counts.done + counts.skipped + counts.dropped == plan.evaluations
    complete = summary.completion == pb.Summary.COMPLETION_COMPLETE
    assert complete == (counts.dropped == 0) == (summary.measured_fraction == 1)
    assert complete == (summary.partial_reason == pb.Summary.PARTIAL_REASON_UNSPECIFIED)
    return Received(plan, tiles, summary)


def event_of(response: Any) -> Any:
    """Return the plan, tile, summary or error that a response holds."""
    return getattr(response, response.WhichOneof("event"))


async def whole(call: AsyncIterable[pb.ExplainTilesResponse]) -> Received:
    """Read an ExplainTiles call to its end."""
    return received([event_of(response) async for response in call])


async def by_id(call: AsyncIterable[pb.ExplainStreamResponse]) -> dict[str, list[Any]]:
    """Read an ExplainStream call to its end, and return the events of each id."""
    answers: dict[str, list[Any]] = {}
    async for response in call:
        answers.setdefault(response.id, []).append(event_of(response))
    return answers


def bits(packed: bytes, count: int) -> NDArray[np.bool_]:
    """Return the first bits, the lowest of each byte first; the rest must be 0."""
    every = list(itertools.chain.from_iterable([byte >> bit & 1 for bit in range(8)] for byte in packed))
    assert len(every) - 8 < count <= len(every)
    assert not any(every[count:])
    return np.array(every[:count], np.bool_)
