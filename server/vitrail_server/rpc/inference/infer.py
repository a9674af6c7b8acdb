"""One inference as the network sees it: from the request to its response.

It holds a permit and, until its last row is computed, a handle that pins the version which answers. Whatever
ends it early (an error, a deadline, a client that goes) drops the rows that have not begun.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import ParamSpec, TypeVar
from weakref import WeakKeyDictionary

from vitrail_server.events import InferenceEnded, InferenceEvents
from vitrail_server.inference.run import InferenceRun
from vitrail_server.inference.statistics import Statistics
from vitrail_server.kserve.v2 import grpc_service_pb2 as pb
from vitrail_server.repository.manager import Manager
from vitrail_server.rpc.admission import Admission
from vitrail_server.rpc.context import Caller, Context, caller_of
from vitrail_server.rpc.inference.lookup import pin
from vitrail_server.rpc.inference.parameters import RequestParameters
from vitrail_server.rpc.inference.request import Inference, is_plain, read_inference
from vitrail_server.rpc.inference.response import inference_response
from vitrail_server.rpc.inference.turns import Turn, Turns
from vitrail_server.rpc.refusals import told
from vitrail_server.runtime.device import Submission
from vitrail_server.runtime.devices import Devices
from vitrail_server.runtime.entry import DEFAULT_PRIORITY
from vitrail_server.runtime.lane import Lane
from vitrail_server.runtime.queueing import Queueing
from vitrail_server.servable import Description, Servable
from vitrail_server.wording import printable

P = ParamSpec("P")
T = TypeVar("T")

COMPLETE = "complete"
"""The outcome of an inference that was answered."""


@dataclass(frozen=True, slots=True)
class InferenceEngine:
    """What every inference works with; built once, by server.py."""

    manager: Manager
    devices: Devices
    decoding: Lane
    admission: Admission
    events: InferenceEvents
    statistics: WeakKeyDictionary[Servable, Statistics] = field(default_factory=WeakKeyDictionary)
    """What each loaded version has computed; forgotten with it."""
    turns: WeakKeyDictionary[Servable, Turns] = field(default_factory=WeakKeyDictionary)
    """The order of the answers of each version that preserves it."""

    def statistics_of(self, servable: Servable) -> Statistics:
        """Return what a version has computed since it was loaded."""
        return self.statistics.setdefault(servable, Statistics())


@dataclass(slots=True, eq=False)
class _Account:
    """What is known of an inference by its end."""

    arrived: float
    admitted: bool = False
    description: Description | None = None
    statistics: Statistics | None = None
    decoded: float | None = None
    """When its tensors were read and checked."""
    submission: Submission[InferenceRun] | None = None
    computed: float | None = None
    """When its last batch was there."""
    rows: int = 0


async def infer(
    engine: InferenceEngine, request: pb.ModelInferRequest, parameters: RequestParameters, context: Context
) -> pb.ModelInferResponse:
    """Return the answer to an inference.

    Raises:
        VitrailError: it is refused, or fails; nothing is held any more.

    """
    account, caller = _Account(time.monotonic()), caller_of(context)
    request_id = printable(request.id) or caller.request_id
    try:
        response = await _answered(engine, request, parameters, caller, account)
    except BaseException as error:
        _settle(engine, account, request_id, told(error, context).code.name.lower())
        raise
    _settle(engine, account, request_id, COMPLETE)
    return response


async def _answered(
    engine: InferenceEngine,
    request: pb.ModelInferRequest,
    parameters: RequestParameters,
    caller: Caller,
    account: _Account,
) -> pb.ModelInferResponse:
    with ExitStack() as held:
        held.callback(engine.admission.enter_inference().close)
        engine.events.inference_started()
        account.admitted = True
        # What is held until the last row is computed, which may be after the caller has gone.
        pinned = held.enter_context(ExitStack())
        handle = pinned.enter_context(pin(engine.manager, request.model_name, request.model_version))
        servable = handle.servable
        description = account.description = servable.description
        account.statistics = engine.statistics_of(servable)
        turn = _turn(engine, servable)
        if turn is not None:
            held.callback(turn.done)
        inference = await _off_the_loop(
            engine.decoding, not is_plain(request), read_inference, request, description
        )
        account.decoded = time.monotonic()
        device, instance = engine.devices.place(servable)
        program = instance.predictor(inference.rows)
        run = InferenceRun(inference.rows, program)
        priority, queueing = terms(servable, inference, parameters, account.arrived)
        changed = asyncio.Event()
        submission = account.submission = device.submit(
            run,
            program,
            handle,
            changed.set,
            caller=caller.connection,
            arrived=account.arrived,
            priority=priority,
            backlog=None,
            tally=account.statistics,
            queueing=queueing,
        )
        pinned.pop_all()  # the submission closes the handle from now on
        held.callback(submission.cancel)
        while not submission.finished:
            await changed.wait()
            changed.clear()
        if turn is not None:
            await turn.come()
        if submission.error is not None:
            raise submission.error
        account.computed = time.monotonic()
        slow = _is_slow_to_write(inference, description)
        response = await _off_the_loop(
            engine.decoding, slow, inference_response, inference, run.outputs(), description, request.id
        )
        account.rows = inference.batch_size
        return response


def terms(
    servable: Servable, inference: Inference, parameters: RequestParameters, arrived: float
) -> tuple[int, Queueing | None]:
    """Return the priority of an inference at the scheduler, and how it waits.

    A model with priority levels has its own scale: its default level is the server's default priority. To any
    other model a request's priority is what an explanation's is.
    """
    batching = servable.description.settings.batching
    if batching is None or not inference.rows.batched:
        return parameters.priority or DEFAULT_PRIORITY, None
    level = 0
    priority = parameters.priority or DEFAULT_PRIORITY
    if batching.priority_levels:
        asked = parameters.priority
        level = asked if 0 < asked <= batching.priority_levels else batching.default_priority_level
        priority = max(1, DEFAULT_PRIORITY + level - batching.default_priority_level)
    rows = len(inference.rows)
    return priority, Queueing(servable, batching, level, rows, arrived, parameters.timeout)


def _turn(engine: InferenceEngine, servable: Servable) -> Turn | None:
    """Return the place of an answer where the model keeps the order of its requests."""
    batching = servable.description.settings.batching
    if batching is None or not batching.preserve_ordering:
        return None
    return engine.turns.setdefault(servable, Turns()).take()


def _settle(engine: InferenceEngine, account: _Account, request_id: str, outcome: str) -> None:
    """Report the end of an inference, and count it in the statistics of its version."""
    now = time.monotonic()
    submission, decoded, computed = account.submission, account.decoded, account.computed
    began = bool(submission and submission.batch_seconds)
    event = InferenceEnded(
        request_id=request_id,
        model=account.description.name if account.description else "",
        version=account.description.version if account.description else 0,
        outcome=outcome,
        rows=account.rows,
        seconds=now - account.arrived,
        decode_seconds=None if decoded is None else decoded - account.arrived,
        queue_seconds=(
            max(0.0, account.arrived + submission.queue_seconds - decoded)
            if began and submission is not None and decoded is not None
            else None
        ),
        device_seconds=submission.device_seconds if began and submission is not None else None,
        encode_seconds=now - computed if outcome == COMPLETE and computed is not None else None,
    )
    engine.events.inference_ended(event, admitted=account.admitted)
    if account.statistics is None:
        return
    if outcome == COMPLETE and submission is not None:
        account.statistics.succeeded(
            account.rows,
            event.seconds,
            queue=event.queue_seconds or 0.0,
            decode=event.decode_seconds or 0.0,
            infer=submission.batch_seconds,
            encode=event.encode_seconds or 0.0,
            now=time.time(),
        )
    else:
        account.statistics.failed(event.seconds)


def _is_slow_to_write(inference: Inference, description: Description) -> bool:
    specs = description.signature.outputs
    return any(each.classes or specs[each.name].datatype == "BYTES" for each in inference.outputs)


async def _off_the_loop(lane: Lane, slow: bool, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Make a call on the lane if it is slow, else at once."""
    return await lane.run(call, *args, **kwargs) if slow else call(*args, **kwargs)
