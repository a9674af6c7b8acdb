"""One explanation as the network sees it: from the request to its last message.

A session is started once, read until it has `ended`, and closed once, whatever happened in between. It
holds a permit and, until its last row is computed, a handle that pins the version which answers. Its
reader asks for the messages that are due (`messages`) and writes them itself, so a session never waits
for a reader, and what a slow reader misses is merged.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vitrail.errors import Cancelled, DeadlineExceeded, ResourceExhausted, VitrailError
from vitrail.v1 import explanation_pb2 as pb
from vitrail_server.events import ExplanationEnded, ExplanationEvents, Urgency
from vitrail_server.explainers.question import Limits
from vitrail_server.explainers.run import Explanation, Summary, Tile
from vitrail_server.repository.manager import Manager
from vitrail_server.rpc import codec
from vitrail_server.rpc.admission import Admission, Permit
from vitrail_server.rpc.context import Caller
from vitrail_server.rpc.images import SourceBox
from vitrail_server.runtime.device import Submission
from vitrail_server.runtime.devices import Devices
from vitrail_server.runtime.entry import DEFAULT_PRIORITY
from vitrail_server.runtime.lane import Lane
from vitrail_server.servable import Description

Message = pb.Plan | pb.Tile | pb.Summary


@dataclass(frozen=True, slots=True)
class Engine:
    """What every session works with; built once, by server.py."""

    manager: Manager
    devices: Devices
    decoding: Lane
    admission: Admission
    events: ExplanationEvents
    limits: Limits
    max_image_pixels: int


@dataclass(frozen=True, slots=True, eq=False)
class _Started:
    """What a session has once its Run is with the device."""

    run: Explanation
    box: SourceBox
    description: Description
    priority: int
    execution: codec.Execution
    submission: Submission[Explanation]


class Session:
    """One explanation. Every method is called on the event loop."""

    def __init__(self, engine: Engine, caller: Caller, on_change: Callable[[], None]) -> None:
        self._engine = engine
        self._caller = caller
        self._on_change = on_change
        self._arrived = time.monotonic()
        self._permit: Permit | None = None
        self._started: _Started | None = None
        self._description: Description | None = None
        self._method = ""
        self._urgency: Urgency | None = None
        self._decode_seconds: float | None = None
        self._submitted: float | None = None
        self._write_began: float | None = None
        self._write_seconds: float | None = None
        self._plan: pb.Plan | None = None
        self._summary: Summary | None = None
        self._first_tile: float | None = None
        self._tiles = 0
        self._closed = False
        self.ended = False
        """The summary was handed out."""

    async def start(self, spec: pb.ExplanationSpec, max_map_bytes: int | None = None) -> None:
        """Admit the request, pin its version, decode its image and hand its Run to the device.

        `max_map_bytes` is the largest map wanted; None: any.

        Raises:
            VitrailError: it is refused; nothing is held any more once the session is closed.

        """
        engine = self._engine
        self._permit = engine.admission.enter()
        engine.events.explanation_started()
        handle = engine.manager.handle(
            spec.model_name,
            spec.version if spec.HasField("version") else None,
            spec.version_label if spec.HasField("version_label") else None,
        )
        held = ExitStack()
        held.callback(handle.close)
        try:
            description = self._description = handle.servable.description
            self._method = codec.method_of(spec)
            priority = spec.priority or DEFAULT_PRIORITY
            self._urgency = _urgency_of(priority)
            budget = codec.seconds_of(spec.time_budget) if spec.HasField("time_budget") else None
            began = time.monotonic()
            details = spec, description, engine.limits, engine.max_image_pixels
            if codec.is_light(spec):
                run, box = codec.prepare(*details)
            else:
                run, box = await engine.decoding.run(codec.prepare, *details)
            _check_map_size(run, max_map_bytes)
            self._submitted = time.monotonic()
            self._decode_seconds = self._submitted - began
            device, instance = engine.devices.place(handle.servable)
            own = instance.incremental(run.image_size, run.grid) if run.grid is not None else None
            if own is not None:
                held.callback(own.close)
            submission = device.submit(
                run,
                own or instance.program(run.kind, run.image_size),
                held,
                self._on_change,
                caller=self._caller.connection,
                arrived=self._arrived,
                priority=priority,
                time_budget=budget,
            )
        except BaseException:
            held.close()
            raise
        execution: codec.Execution = "FULL" if own is None else "INCREMENTAL"
        self._started = _Started(run, box, description, priority, execution, submission)
        self._on_change()

    def messages(self) -> Iterator[Message]:
        """Yield the messages that are due: the plan, tiles, at last the summary.

        The reader writes each before it asks for the next, so that the time between is the writing's.

        Raises:
            VitrailError: the explanation failed; no more messages follow.

        """
        for message in self._due():
            self._tiles += isinstance(message, pb.Tile)
            self._write_began = time.monotonic()
            yield message
            self._write_ended()

    def _due(self) -> Iterator[Message]:
        if self._started is None or self.ended:
            return
        submission = self._started.submission
        # Asked before the tiles are taken: what ends while they are written is seen the next time.
        finished = submission.finished
        if submission.error is not None:
            raise submission.error
        if submission.plan is not None and self._plan is None:
            self._plan = codec.plan_message(
                submission.plan,
                self._started.run,
                self._started.description,
                self._started.box,
                self._started.priority,
                self._started.execution,
            )
            yield self._plan
        for tile in submission.tiles():
            yield from self._tile_messages(tile)
        if finished:
            summary = self._summary_message(submission)
            self.ended = True
            yield summary

    def close(self, failure: VitrailError | None = None) -> None:
        """Drop what is not done and report the end; a second time does nothing.

        `failure` is what the client is told instead of the rest. None: it got everything, or went away.
        """
        if self._closed:
            return
        self._closed = True
        if self._started is not None:
            self._started.submission.cancel()
        if failure is None and not self.ended:
            failure = Cancelled("the caller went away")
        self._engine.events.explanation_ended(self._account(failure), admitted=self._permit is not None)
        if self._permit is not None:
            self._permit.close()

    def _tile_messages(self, tile: Tile) -> Iterator[pb.Tile]:
        for message in codec.tile_messages(tile):
            if self._first_tile is None:
                self._first_tile = time.monotonic() - self._arrived
            yield message

    def _summary_message(self, submission: Submission[Explanation]) -> pb.Summary:
        if self._plan is None:
            raise DeadlineExceeded(
                "spec.time_budget was over before the model had evaluated one batch: allow more time",
                field="spec.time_budget",
            )
        self._summary = submission.summary()
        return codec.summary_message(
            self._summary,
            queue_seconds=submission.queue_seconds,
            device_seconds=submission.device_seconds,
            total_seconds=time.monotonic() - self._arrived,
        )

    def _write_ended(self) -> None:
        if self._write_began is not None:
            self._write_seconds = (self._write_seconds or 0.0) + time.monotonic() - self._write_began
            self._write_began = None

    def _queue_seconds(self) -> float | None:
        """Return how long its rows waited for their first batch, in vain or not."""
        if self._started is None or self._submitted is None:
            return None
        submission = self._started.submission
        if not submission.device_seconds:
            return time.monotonic() - self._submitted
        return self._arrived + submission.queue_seconds - self._submitted

    def _account(self, failure: VitrailError | None) -> ExplanationEnded:
        """Return what the metrics learn of this explanation."""
        self._write_ended()  # of a message that could not be written
        submission = self._started.submission if self._started else None
        summary = self._summary
        if summary is None and self._plan is not None and submission is not None:
            summary = submission.summary()
        partial = summary is not None and summary.partial is not None
        return ExplanationEnded(
            request_id=self._caller.request_id,
            model=self._description.name if self._description else "",
            version=self._description.version if self._description else 0,
            method=self._method,
            urgency=self._urgency,
            outcome=failure.code.name.lower() if failure else "partial" if partial else "complete",
            seconds=time.monotonic() - self._arrived,
            first_tile_seconds=self._first_tile,
            decode_seconds=self._decode_seconds,
            queue_seconds=self._queue_seconds(),
            device_seconds=(submission.device_seconds or None) if submission else None,
            write_seconds=self._write_seconds,
            execution=_execution_of(self._plan) if self._plan else "",
            announced=self._plan.evaluations if self._plan else 0,
            done=summary.done if summary else 0,
            skipped=summary.skipped if summary else 0,
            dropped=summary.dropped if summary else 0,
            tiles=self._tiles,
        )


class WholeMap:
    """A map put together from its messages, for the unary rpc."""

    def __init__(self) -> None:
        self.plan = pb.Plan()
        self.summary = pb.Summary()
        self.values: NDArray[np.float32] = np.zeros(0, np.float32)

    def take(self, message: Message) -> None:
        """Take in the next message: the paste rule, as every client has it."""
        match message:
            case pb.Plan():
                self.plan = message
                self.values = np.full(tuple(message.map_shape), np.nan, np.float32)
            case pb.Tile():
                target = slice(message.first_target, message.first_target + message.target_count)
                rows = slice(message.row, message.row + message.height)
                columns = slice(message.column, message.column + message.width)
                into = self.values[target, rows, columns]
                into[...] = np.frombuffer(message.values, "<f4").reshape(into.shape)
            case pb.Summary():
                self.summary = message

    def response(self) -> pb.ExplainResponse:
        """Return the reply that holds the map."""
        return pb.ExplainResponse(
            plan=self.plan, values=self.values.astype("<f4", copy=False).tobytes(), summary=self.summary
        )


def _urgency_of(priority: int) -> Urgency:
    if priority == DEFAULT_PRIORITY:
        return "default"
    return "urgent" if priority < DEFAULT_PRIORITY else "background"


def _execution_of(plan: pb.Plan) -> str:
    """Return how a plan's evaluations are computed, in lower case."""
    return pb.Plan.Execution.Name(plan.execution).removeprefix("EXECUTION_").lower()


def _check_map_size(run: Explanation, max_map_bytes: int | None) -> None:
    size = int(np.prod(run.map_shape)) * 4
    if max_map_bytes is not None and size > max_map_bytes:
        raise ResourceExhausted(
            f"the map has {size} bytes, and one reply holds at most {max_map_bytes}: stream it "
            "(ExplainTiles, ModelStreamInfer), or ask for fewer targets or WINDOWS resolution",
            field="spec",
        )
