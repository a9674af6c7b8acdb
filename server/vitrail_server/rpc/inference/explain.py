"""Explanations for v2 clients: the request's parameters become an ExplanationSpec, the map becomes tensors.

The explanation itself is `rpc/session.py`'s, so a map has the same bits however it was asked for.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import numpy as np
from google.protobuf.json_format import MessageToJson
from google.protobuf.message import Message as ProtobufMessage
from numpy.typing import NDArray

from vitrail.errors import Cancelled, InvalidArgument, VitrailError
from vitrail.tensors import MAX_RANK, to_tensor
from vitrail.v1 import explanation_pb2 as v1
from vitrail_server.inference.statistics import Statistics
from vitrail_server.kserve.v2 import grpc_service_pb2 as pb
from vitrail_server.rpc.context import Context, caller_of
from vitrail_server.rpc.inference.infer import InferenceEngine
from vitrail_server.rpc.inference.lookup import pin
from vitrail_server.rpc.inference.options import read_options, renamed
from vitrail_server.rpc.inference.parameters import FINAL_RESPONSE, PREFIX, RequestParameters
from vitrail_server.rpc.inference.request import read_inputs
from vitrail_server.rpc.inference.response import response_of
from vitrail_server.rpc.refusals import told
from vitrail_server.rpc.session import Engine, Message, Session, WholeMap
from vitrail_server.servable import Description, TensorSpec
from vitrail_server.wording import listed, quoted

Tensor = tuple[str, str, NDArray[np.generic]]
"""Name, datatype, values."""

OUTPUTS = ("map", "targets", "labels", "outputs", "scores", "plan", "summary")
"""The tensors of a whole map."""


@dataclass(frozen=True, slots=True)
class Explanations:
    """Explains for the v2 service. `max_bytes` is the largest map in one response."""

    engine: Engine
    inferences: InferenceEngine
    max_bytes: int

    async def whole(
        self, request: pb.ModelInferRequest, parameters: RequestParameters, context: Context
    ) -> pb.ModelInferResponse:
        """Return a whole map.

        Raises:
            VitrailError: it is refused, or fails.

        """
        wanted = _wanted(request)
        whole = WholeMap()

        async def take(_: _Asked, message: Message) -> None:
            whole.take(message)

        asked = await self._explain(request, parameters, context, take, self.max_bytes)
        tensors = [each for each in _whole_tensors(whole) if each[0] in wanted]
        return response_of(tensors, asked.description, request.id)

    async def tiles(
        self,
        request: pb.ModelInferRequest,
        parameters: RequestParameters,
        context: Context,
        send: Callable[[pb.ModelInferResponse], Awaitable[None]],
    ) -> None:
        """Send the plan, the tiles and the summary, the last of which says that it is the last.

        Raises:
            VitrailError: it is refused, or fails; no more responses follow.

        """
        if request.outputs:
            raise InvalidArgument("a streamed explanation has the outputs of its event; leave outputs out")
        rank, began = 0, time.monotonic()

        async def take(asked: _Asked, message: Message) -> None:
            nonlocal rank, began
            if isinstance(message, v1.Plan):
                rank = len(message.map_shape)
            response = response_of(_tensors_of(message, rank), asked.description, request.id)
            for name, value in _parameters_of(message).items():
                response.parameters[PREFIX + name].CopyFrom(value)
            response.parameters[FINAL_RESPONSE].bool_param = isinstance(message, v1.Summary)
            made = time.monotonic()
            await send(response)
            sent = time.monotonic()
            asked.responded(computed=made - began, written=sent - made)
            began = sent

        await self._explain(request, parameters, context, take, None)

    async def _explain(
        self,
        request: pb.ModelInferRequest,
        parameters: RequestParameters,
        context: Context,
        take: "Callable[[_Asked, Message], Awaitable[None]]",
        max_bytes: int | None,
    ) -> "_Asked":
        """Hand each message to `take` as soon as it is due, and return what was explained."""
        changed = asyncio.Event()
        session = Session(self.engine, caller_of(context), changed.set)
        asked: _Asked | None = None
        try:
            asked = self._asked(request, parameters)
            await session.start(asked.spec, max_bytes)
            while not session.ended:
                await changed.wait()
                changed.clear()
                for message in session.messages():
                    await take(asked, message)
        except BaseException as error:
            failure = told(error, context)
            session.close(failure)
            if asked is not None and max_bytes is None:
                asked.ended(failure)
            if isinstance(error, VitrailError):
                raise renamed(error) from None
            raise
        session.close()
        return asked

    def _asked(self, request: pb.ModelInferRequest, parameters: RequestParameters) -> "_Asked":
        """Return the version that is asked for, and what is asked of it.

        The version is named in the spec: the names of its inputs must be those of the version that answers.
        """
        spec = v1.ExplanationSpec(model_name=request.model_name, priority=parameters.priority)
        if request.model_version:
            with pin(self.inferences.manager, request.model_name, request.model_version) as handle:
                spec.version = handle.servable.description.version
        read_options(parameters.explanation, spec)
        if spec.HasField("version_label"):
            handle = self.inferences.manager.handle(request.model_name, label=spec.version_label)
        else:
            handle = pin(self.inferences.manager, request.model_name, request.model_version)
        with handle:
            description = handle.servable.description
            statistics = self.inferences.statistics_of(handle.servable)
        spec.version = description.version
        if description.settings.image_input is not None:  # else it is refused with the reason
            _read_inputs(request, description, spec)
        return _Asked(description, spec, statistics)


@dataclass(slots=True, eq=False)
class _Asked:
    """The version that is asked for, what is asked of it, and what it has answered so far."""

    description: Description
    spec: v1.ExplanationSpec
    statistics: Statistics
    responses: int = 0

    def responded(self, *, computed: float, written: float) -> None:
        """Count one response of a stream, which took so many seconds."""
        each = self.statistics.responded(self.responses)
        each.compute_infer.add(computed)
        each.compute_output.add(written)
        each.success.add(computed + written)
        self.responses += 1

    def ended(self, failure: VitrailError) -> None:
        """Count the response that did not come."""
        each = self.statistics.responded(self.responses)
        (each.cancel if isinstance(failure, Cancelled) else each.fail).add(0.0)


def _read_inputs(request: pb.ModelInferRequest, description: Description, spec: v1.ExplanationSpec) -> None:
    image, model = description.image, quoted(description.name)
    inputs = {each.name: each for each in request.inputs}
    if len(inputs) != len(request.inputs):
        raise InvalidArgument(f"an input of model {model} is there twice")
    unknown = [name for name in inputs if name not in description.signature.inputs]
    if unknown or image.name not in inputs:
        fault = f"has no input {quoted(unknown[0])}" if unknown else "needs its image"
        others = listed(
            (quoted(each) for each in description.signature.inputs if each != image.name), "nothing"
        )
        raise InvalidArgument(
            f"model {model} {fault}: send the image as {quoted(image.name)}, beside {others}"
        )
    # Datatypes are checked where an explanation's are: integers may stand for floats, and text for a photo.
    given = {name: TensorSpec(name, each.datatype, tuple(each.shape)) for name, each in inputs.items()}
    for name, each in inputs.items():
        if each.datatype not in DATATYPES or len(each.shape) > MAX_RANK or min(each.shape, default=0) < 0:
            raise InvalidArgument(
                f"input {quoted(name)} for model {model} is {quoted(each.datatype)} of shape "
                f"{list(each.shape)[:8]}; an explanation takes {listed(sorted(DATATYPES))}"
            )
    arrays = read_inputs(request, given, model)
    _write_image(arrays.pop(image.name), spec, f"input {quoted(image.name)}")
    for name, array in arrays.items():
        wanted = description.signature.inputs[name]
        alone = wanted.shape is not None and array.shape[:1] == (1,) and array.ndim == len(wanted.shape)
        spec.inputs[name].CopyFrom(to_tensor(array[0] if alone else array, f"input {name!r}"))


def _write_image(array: NDArray[np.generic], spec: v1.ExplanationSpec, what: str) -> None:
    if array.dtype != object:
        spec.image.tensor.CopyFrom(to_tensor(array, what))
    elif array.size == 1:
        spec.image.encoded = array.item()
    else:
        raise InvalidArgument(f"{what} is BYTES with {array.size} elements; send one JPEG or PNG file")


DATATYPES = frozenset(
    (
        "BOOL",
        "BYTES",
        "FP16",
        "FP32",
        "FP64",
        "INT16",
        "INT32",
        "INT64",
        "INT8",
        "UINT16",
        "UINT32",
        "UINT64",
        "UINT8",
    )
)


def _wanted(request: pb.ModelInferRequest) -> Sequence[str]:
    if not request.outputs:
        return OUTPUTS
    wanted: list[str] = []
    for each in request.outputs:
        if each.name not in OUTPUTS:
            raise InvalidArgument(
                f"unexpected output {quoted(each.name)}; an explanation has {listed(OUTPUTS)}"
            )
        if each.parameters:
            raise InvalidArgument(f"output {quoted(each.name)} of an explanation takes no parameters")
        if each.name in wanted:
            raise InvalidArgument(f"output {quoted(each.name)} already exists in request")
        wanted.append(each.name)
    return wanted


def _whole_tensors(whole: WholeMap) -> list[Tensor]:
    return [
        ("map", "FP32", whole.values),
        *_target_tensors(whole.plan),
        ("plan", "BYTES", _json(whole.plan)),
        ("summary", "BYTES", _json(whole.summary)),
    ]


def _tensors_of(message: Message, rank: int) -> list[Tensor]:
    match message:
        case v1.Plan():
            return [
                ("map_shape", "INT64", np.array(message.map_shape, np.int64)),
                *_target_tensors(message),
                ("plan", "BYTES", _json(message)),
            ]
        case v1.Tile():
            shape = (message.target_count, message.height, message.width)
            channels = (-1,) if rank == len(shape) + 1 else ()
            values = np.frombuffer(message.values, "<f4").reshape(*shape, *channels)
            return [
                ("tile", "FP32", values),
                (
                    "rectangle",
                    "INT64",
                    np.array([message.row, message.column, message.height, message.width]),
                ),
            ]
        case v1.Summary():
            return [("summary", "BYTES", _json(message))]


def _parameters_of(message: Message) -> dict[str, pb.InferParameter]:
    match message:
        case v1.Plan():
            return {
                "event": pb.InferParameter(string_param="plan"),
                "evaluations": pb.InferParameter(int64_param=message.evaluations),
            }
        case v1.Tile():
            return {
                "event": pb.InferParameter(string_param="tile"),
                "first_target": pb.InferParameter(int64_param=message.first_target),
                "evaluations_done": pb.InferParameter(int64_param=message.evaluations_done),
                "final": pb.InferParameter(bool_param=message.final),
            }
        case v1.Summary():
            complete = message.completion == v1.Summary.COMPLETION_COMPLETE
            return {
                "event": pb.InferParameter(string_param="summary"),
                "complete": pb.InferParameter(bool_param=complete),
            }


def _target_tensors(plan: v1.Plan) -> list[Tensor]:
    labels = np.array([each.label.encode() for each in plan.targets], object)
    return [
        ("targets", "INT64", np.array([each.index for each in plan.targets], np.int64)),
        ("labels", "BYTES", labels),
        ("outputs", "FP32", np.array([each.output for each in plan.targets], np.float32)),
        ("scores", "FP32", np.array([each.score for each in plan.targets], np.float32)),
    ]


def _json(message: ProtobufMessage) -> NDArray[np.generic]:
    text = MessageToJson(message, preserving_proto_field_name=True, indent=None)
    return np.array([text.encode()], object)
