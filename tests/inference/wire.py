"""The v2 protocol by raw messages: what no well-meaning client would send."""

from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from fakes.serving import Served
from vitrail_server.kserve.v2 import grpc_service_pb2 as pb

SERVICE = "/inference.GRPCInferenceService/"
Code = grpc.StatusCode


def call(served: Served, rpc: str, request: Any, response: Any, **options: Any) -> Any:
    """Call a unary rpc by its literal name."""
    make = served.channel.unary_unary(
        SERVICE + rpc,
        request_serializer=type(request).SerializeToString,
        response_deserializer=response.FromString,
    )
    return make(request, **options)


async def infer(served: Served, request: pb.ModelInferRequest, **options: Any) -> pb.ModelInferResponse:
    """Call ModelInfer."""
    response: pb.ModelInferResponse = await call(
        served, "ModelInfer", request, pb.ModelInferResponse, **options
    )
    return response


async def refusal(served: Served, request: pb.ModelInferRequest, **options: Any) -> tuple[Any, str]:
    """Return the code and the message with which ModelInfer refuses."""
    try:
        await infer(served, request, **options)
    except grpc.aio.AioRpcError as error:
        return error.code(), error.details() or ""
    raise AssertionError("it was answered")


def tensor(
    name: str, array: NDArray[np.generic], datatype: str | None = None, **fields: Any
) -> pb.ModelInferRequest.InferInputTensor:
    """Return an input without its data."""
    names = {"i4": "INT32", "f4": "FP32", "f8": "FP64", "u1": "UINT8", "i8": "INT64", "b1": "BOOL"}
    return pb.ModelInferRequest.InferInputTensor(
        name=name, datatype=datatype or names[array.dtype.str[1:]], shape=array.shape, **fields
    )


def request(model: str, **inputs: NDArray[np.generic]) -> pb.ModelInferRequest:
    """Return a request with raw inputs."""
    return pb.ModelInferRequest(
        model_name=model,
        inputs=[tensor(name, array) for name, array in inputs.items()],
        raw_input_contents=[array.tobytes() for array in inputs.values()],
    )


def outputs(response: pb.ModelInferResponse) -> dict[str, NDArray[np.generic]]:
    """Return the numeric outputs of a response."""
    dtypes = {"INT32": "<i4", "FP32": "<f4", "INT64": "<i8", "FP64": "<f8", "UINT8": "u1"}
    return {
        each.name: np.frombuffer(raw, dtypes[each.datatype]).reshape(tuple(each.shape))
        for each, raw in zip(response.outputs, response.raw_output_contents, strict=True)
        if each.datatype in dtypes
    }


ONES, THREES = np.ones((2, 16), np.int32), np.full((2, 16), 3, np.int32)


def simple(**fields: Any) -> pb.ModelInferRequest:
    """Return a good request to `simple`; `fields` replace parts of it."""
    message = request("simple", INPUT0=ONES, INPUT1=THREES)
    for name, value in fields.items():
        message.ClearField(name)  # type: ignore[arg-type]  # any of its fields
        message.MergeFrom(pb.ModelInferRequest(**{name: value}))
    return message
