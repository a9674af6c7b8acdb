"""Requests with random damage: each is answered or refused, and none is the server's fault."""

from collections import Counter
from typing import Any

import grpc
import numpy as np
import pytest

from fakes.serving import Served
from vitrail_server.kserve.v2 import grpc_service_pb2 as pb

from .models import SHAPE
from .wire import SERVICE, Code, request, simple, tensor

pytestmark = pytest.mark.asyncio(loop_scope="module")

EXPECTED = {
    Code.OK,
    Code.INVALID_ARGUMENT,
    Code.NOT_FOUND,
    Code.UNIMPLEMENTED,
    Code.FAILED_PRECONDITION,
    Code.RESOURCE_EXHAUSTED,
}


def strings() -> pb.ModelInferRequest:
    shape = np.zeros((1, 2), np.uint8)
    raw = b"\x03\x00\x00\x00abc\x00\x00\x00\x00"
    return pb.ModelInferRequest(
        model_name="strings", inputs=[tensor("IN", shape, "BYTES")], raw_input_contents=[raw]
    )


def contents() -> pb.ModelInferRequest:
    values = pb.InferTensorContents(fp32_contents=[1, 2, 3, 4])
    inputs = [tensor("IN", np.zeros((1, 4), np.float32), contents=values)]
    outputs = [pb.ModelInferRequest.InferRequestedOutputTensor(name="OUT_IN")]
    outputs[0].parameters["classification"].int64_param = 2
    return pb.ModelInferRequest(model_name="logits", inputs=inputs, outputs=outputs)


def explained() -> pb.ModelInferRequest:
    message = request("pictures", image=np.ones((1, *SHAPE), np.float32))
    for name, text in (("method", "occlusion"), ("patch", "3,2"), ("fill", "0.5"), ("targets", "espresso,0")):
        message.parameters[f"vitrail_{name}"].string_param = text
    return message


def damaged(message: bytes, random: np.random.Generator) -> bytes:
    """Return the bytes with a few of them changed, left out, doubled or put in."""
    found = bytearray(message)
    for _ in range(int(random.integers(1, 4))):
        place = int(random.integers(len(found)))
        match random.integers(4):
            case 0:
                found[place] = int(random.integers(256))
            case 1:
                del found[place]
            case 2:
                found[place:place] = found[place : place + int(random.integers(1, 9))]
            case _:
                found[place:place] = random.bytes(int(random.integers(1, 9)))
    return bytes(found)


@pytest.mark.parametrize("make", [simple, strings, contents, explained])
async def test_damage_is_never_the_server_s_fault(zoo: Served, make: Any) -> None:
    random = np.random.default_rng(7)
    good = make().SerializeToString()
    call: Any = zoo.channel.unary_unary(SERVICE + "ModelInfer")
    codes: Counter[Any] = Counter()
    for _ in range(300):
        try:
            await call(damaged(good, random))
            codes[Code.OK] += 1
        except grpc.aio.AioRpcError as error:
            codes[error.code()] += 1
    assert set(codes) <= EXPECTED, codes
    assert codes[Code.INVALID_ARGUMENT] > 50
    await call(good)
    assert zoo.server._admission.inferences == 0
    assert zoo.server._admission.in_flight == 0
