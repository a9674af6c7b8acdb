"""A mixed load with errors and cancels, and a ledger of what was sent and what came back.

Everything is asked with the generated stubs alone, one message at a time, so that each is counted. The
callers go through their cases again and again until the time is over; each case ends at least once.
"""

import asyncio
import io
import itertools
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import PIL.Image
from google.rpc.code_pb2 import Code

from vitrail.v1 import explanation_pb2 as pb
from vitrail.v1.explanation_pb2_grpc import ExplanationServiceStub
from vitrail.v1.model_pb2 import ListModelsRequest
from vitrail.v1.model_pb2_grpc import ModelServiceStub
from vitrail.v1.tensor_pb2 import DataType, Tensor

if TYPE_CHECKING:
    from vitrail.v1.explanation_pb2_grpc import ExplanationServiceAsyncStub
    from vitrail.v1.model_pb2_grpc import ModelServiceAsyncStub

SIZE = 224
MODEL = "silhouette_regressor"
ABANDONED = "silhouette_abandoned"
"""The same model under another name: what its callers do not read to the end is counted apart."""
BROKEN = "silhouette_broken"
"""A model that fails to load."""

MAX_EXPLANATIONS = 12
"""The server's limit, which the burst exceeds."""

Of = tuple[str, str]
"""Model and method as the metrics have them."""


@dataclass
class Ledger:
    """What the callers saw."""

    outcomes: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    """By model, method and outcome."""
    plans: Counter[Of] = field(default_factory=Counter)
    announced: Counter[Of] = field(default_factory=Counter)
    results: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    """Evaluations by model, method and result, of the explanations that came to a summary."""
    tiles: Counter[Of] = field(default_factory=Counter)
    rpcs: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By method and status code."""
    sent: Counter[str] = field(default_factory=Counter)
    """Messages to the server, by rpc."""
    received: Counter[str] = field(default_factory=Counter)
    """Messages from it."""
    priorities: Counter[str] = field(default_factory=Counter)
    """Plans by class of priority."""

    def take(self, of: Of, event: "pb.Plan | pb.Tile | pb.Summary", priority: int) -> None:
        """Count one message of an explanation; a summary is its end."""
        match event:
            case pb.Plan():
                self.plans[of] += 1
                self.announced[of] += event.evaluations
                named = "default" if priority in (0, 100) else "urgent" if priority < 100 else "background"
                self.priorities[named] += 1
            case pb.Tile():
                self.tiles[of] += 1
            case pb.Summary():
                complete = event.completion == pb.Summary.COMPLETION_COMPLETE
                self.end(of, "complete" if complete else "partial")
                for result in ("done", "skipped", "dropped"):
                    self.results[*of, result] += getattr(event.evaluations, result)

    def end(self, of: Of, outcome: str) -> None:
        """Count the end of an explanation; above the limit it is refused before the server places it."""
        self.outcomes[*(("", "") if outcome == "resource_exhausted" else of), outcome] += 1


def silhouette() -> bytes:
    """Return a standing figure, roughly, as a PNG file."""
    rows, columns = np.ogrid[:SIZE, :SIZE]
    body = (abs(columns - SIZE // 2) < 18 + 8 * np.cos(rows / 20)) & (rows > 30) & (rows < 215)
    buffer = io.BytesIO()
    PIL.Image.fromarray(np.where(body, 255, 0).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


PICTURE = silhouette()
VALUES = Tensor(
    data_type=DataType.DATA_TYPE_FP32,
    shape=(SIZE, SIZE, 1),
    data=np.random.default_rng(1).uniform(0, 1, (SIZE, SIZE, 1)).astype("<f4").tobytes(),
)


def spec(model: str = MODEL, *, patch: int = 0, stride: int = 0, **further: Any) -> pb.ExplanationSpec:
    """Return a gradient, or an occlusion with square windows."""
    message = pb.ExplanationSpec(model_name=model, image=pb.Image(encoded=PICTURE), **further)
    if patch:
        message.occlusion.patch.rows = message.occlusion.patch.columns = patch
        message.occlusion.stride.rows = message.occlusion.stride.columns = stride or patch
    else:
        message.gradient.signed = False
    return message


def event_of(response: Any) -> Any:
    """Return the plan, tile, summary or status that a response holds."""
    return getattr(response, response.WhichOneof("event"))


def within(seconds: float, message: pb.ExplanationSpec) -> pb.ExplanationSpec:
    """Return the request with a time budget."""
    message.time_budget.FromNanoseconds(round(seconds * 1e9))
    return message


def of(message: pb.ExplanationSpec) -> Of:
    """Return the labels under which the server counts a request that it can place."""
    return message.model_name, message.WhichOneof("method") or ""


class Callers:
    """Calls one server and keeps the ledger."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.ledger = Ledger()
        self._explanations: ExplanationServiceAsyncStub = ExplanationServiceStub(channel)
        self._models: ModelServiceAsyncStub = ModelServiceStub(channel)

    async def tiles(self, message: pb.ExplanationSpec, labels: Of | None = None) -> None:
        """Read one map to its end. `labels` are those of a request that is refused before it is placed."""
        ledger, name, labels = self.ledger, "ExplainTiles", labels or of(message)
        ledger.sent[name] += 1
        try:
            async for response in self._explanations.ExplainTiles(pb.ExplainTilesRequest(spec=message)):
                ledger.received[name] += 1
                ledger.take(labels, event_of(response), message.priority)
            ledger.rpcs[name, "OK"] += 1
        except grpc.aio.AioRpcError as error:
            self._failed(name, labels, error)

    async def whole(self, message: pb.ExplanationSpec, labels: Of | None = None) -> None:
        """Ask for one whole map."""
        ledger, name, labels = self.ledger, "Explain", labels or of(message)
        ledger.sent[name] += 1
        try:
            response = await self._explanations.Explain(pb.ExplainRequest(spec=message))
        except grpc.aio.AioRpcError as error:
            self._failed(name, labels, error)
            return
        ledger.received[name] += 1
        ledger.rpcs[name, "OK"] += 1
        ledger.take(labels, response.plan, message.priority)
        ledger.take(labels, response.summary, message.priority)

    async def abandoned(self, message: pb.ExplanationSpec) -> None:
        """Cancel a map after its first tile."""
        ledger, name = self.ledger, "ExplainTiles"
        ledger.sent[name] += 1
        call = self._explanations.ExplainTiles(pb.ExplainTilesRequest(spec=message))
        try:
            async for response in call:
                event = event_of(response)
                ledger.take(of(message), event, message.priority)
                if isinstance(event, pb.Tile):
                    break
        except grpc.aio.AioRpcError as error:  # refused in the burst
            self._failed(name, of(message), error)
            return
        assert call.cancel(), "the map was complete before it could be cancelled"
        ledger.end(of(message), "cancelled")
        ledger.rpcs[name, "CANCELLED"] += 1

    async def conversation(self, messages: dict[str, pb.ExplanationSpec], cancelled: str) -> None:
        """Ask for many maps over one stream, and cancel one of them after its plan."""
        ledger, name = self.ledger, "ExplainStream"
        call = self._explanations.ExplainStream()
        for key, message in messages.items():
            await call.write(
                pb.ExplainStreamRequest(id=key, start=pb.ExplainStreamRequest.Start(spec=message))
            )
            ledger.sent[name] += 1
        open_ids = set(messages)
        while open_ids:
            response = await call.read()
            assert isinstance(response, pb.ExplainStreamResponse), "the stream ended too early"
            ledger.received[name] += 1
            message = messages[response.id]
            event = event_of(response)
            if isinstance(event, pb.Plan | pb.Tile | pb.Summary):
                ledger.take(of(message), event, message.priority)
            else:
                ledger.end(of(message), Code.Name(event.code).lower())
            if not isinstance(event, pb.Plan | pb.Tile):
                open_ids.discard(response.id)
            elif isinstance(event, pb.Plan) and response.id == cancelled:
                cancel = pb.ExplainStreamRequest.Cancel()
                await call.write(pb.ExplainStreamRequest(id=cancelled, cancel=cancel))
                ledger.sent[name] += 1
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        ledger.rpcs[name, "OK"] += 1

    async def models(self) -> None:
        """List the models."""
        self.ledger.sent["ListModels"] += 1
        await self._models.ListModels(ListModelsRequest())
        self.ledger.received["ListModels"] += 1
        self.ledger.rpcs["ListModels", "OK"] += 1

    def _failed(self, name: str, labels: Of, error: grpc.aio.AioRpcError) -> None:
        self.ledger.end(labels, error.code().name.lower())
        self.ledger.rpcs[name, error.code().name] += 1


Case = Callable[[], Awaitable[None]]


def cases(callers: Callers) -> Sequence[Sequence[Case]]:
    """Return what each caller does in turn: three that want maps, one that errs, one that gives up."""
    long = partial(spec, patch=16, stride=1)  # tens of thousands of windows: over in no time budget
    tensor = spec(patch=56, stride=28, priority=500)
    tensor.image.tensor.CopyFrom(VALUES)
    nothing = pb.ExplanationSpec(model_name=MODEL, image=pb.Image(encoded=PICTURE))
    return (
        (
            lambda: callers.tiles(spec()),
            lambda: callers.tiles(spec(patch=56, stride=28)),
            lambda: callers.whole(spec()),
        ),
        (
            lambda: callers.tiles(spec(priority=1)),
            lambda: callers.tiles(tensor),
            lambda: callers.tiles(within(1.5, long())),
        ),
        (
            lambda: callers.conversation(
                {
                    "gradient": spec(),
                    "occlusion": spec(patch=56),
                    "cancelled": long(ABANDONED),
                    "wrong": spec(patch=SIZE + 1),
                },
                cancelled="cancelled",
            ),
            lambda: callers.whole(spec(patch=56)),
        ),
        (
            lambda: callers.tiles(spec(patch=SIZE + 1)),
            lambda: callers.whole(nothing),
            lambda: callers.tiles(spec("nobody"), labels=("", "")),
            lambda: callers.tiles(spec(BROKEN), labels=("", "")),
            lambda: callers.tiles(within(0.001, spec(patch=56))),
            callers.models,
        ),
        (lambda: callers.abandoned(long(ABANDONED)),),
    )


async def generate(target: str, seconds: float) -> Ledger:
    """Call the server for about this long, with a burst above its limit in the middle."""
    async with grpc.aio.insecure_channel(target) as channel:
        callers = Callers(channel)
        end = time.monotonic() + seconds

        async def call(caller: Sequence[Case], pause: float) -> None:
            for number, case in enumerate(itertools.cycle(caller)):
                if number >= len(caller) and time.monotonic() > end:
                    return
                await case()
                await asyncio.sleep(pause)

        async def burst() -> None:
            await asyncio.sleep(seconds / 2)
            await asyncio.gather(
                *(callers.tiles(spec(patch=32, stride=16)) for _ in range(2 * MAX_EXPLANATIONS))
            )

        callers_of_cases = [call(each, 0.2) for each in cases(callers)]
        await asyncio.gather(*callers_of_cases, burst())
        return callers.ledger
