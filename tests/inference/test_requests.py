"""What a request can get wrong, each in Triton's words with its code; and that nothing is left of it."""

import logging
import struct
from typing import Any

import numpy as np
import pytest

from fakes.serving import Served
from vitrail_server.kserve.v2 import grpc_service_pb2 as pb

from .wire import ONES, THREES, Code, infer, outputs, refusal, request, simple, tensor

pytestmark = pytest.mark.asyncio(loop_scope="module")

Output = pb.ModelInferRequest.InferRequestedOutputTensor
Contents = pb.InferTensorContents
A, B = tensor("INPUT0", ONES), tensor("INPUT1", THREES)
RAW = [ONES.tobytes(), THREES.tobytes()]


def parameter(**value: Any) -> pb.InferParameter:
    return pb.InferParameter(**value)


def with_shape(*shape: int) -> pb.ModelInferRequest.InferInputTensor:
    return pb.ModelInferRequest.InferInputTensor(name="INPUT0", datatype="INT32", shape=shape)


REFUSED: dict[str, tuple[dict[str, Any], Any, str]] = {
    "unknown model": (
        {"model_name": "foo"},
        Code.NOT_FOUND,
        "Request for unknown model: 'foo' is not found",
    ),
    "unknown version": (
        {"model_version": "99"},
        Code.NOT_FOUND,
        "Request for unknown model: 'simple' version 99 is not found",
    ),
    "no available version": (
        {"model_name": "broken"},
        Code.NOT_FOUND,
        "Request for unknown model: 'broken' has no available versions: the SavedModel has no signature",
    ),
    "version not ready": (
        {"model_name": "broken", "model_version": "1"},
        Code.UNAVAILABLE,
        "model: 'broken' version 1 is not at ready state: the SavedModel has no signature",
    ),
    "version no number": (
        {"model_version": "latest"},
        Code.INVALID_ARGUMENT,
        "failed to get model version from specified version string 'latest' (details: ",
    ),
    "version zero": (
        {"model_version": "0"},
        Code.INVALID_ARGUMENT,
        "version should be an integral value > 0",
    ),
    "version negative": ({"model_version": "-1"}, Code.INVALID_ARGUMENT, "should be an integral value > 0"),
    "version long": ({"model_version": "9" * 99}, Code.INVALID_ARGUMENT, "should be an integral value > 0"),
    "name with control characters": (
        {"model_name": "a\r\n\x00b" * 1000},
        Code.NOT_FOUND,
        "Request for unknown model: 'a\\r\\n\\x00ba\\r\\n\\x00b",
    ),
    "missing input": (
        {"inputs": [A], "raw_input_contents": RAW[:1]},
        Code.INVALID_ARGUMENT,
        "for model 'simple'. Got input(s) ['INPUT0'], but missing required input(s) ['INPUT1']. ",
    ),
    "no input": (
        {"inputs": [], "raw_input_contents": []},
        Code.INVALID_ARGUMENT,
        "expected 2 inputs but got 0 inputs for model 'simple'. Got input(s) [], but missing",
    ),
    "too many inputs": (
        {"inputs": [A, B, A]},
        Code.INVALID_ARGUMENT,
        "expected 2 inputs but got 3 inputs for model 'simple'",
    ),
    "the same input twice": (
        {"inputs": [A, A]},
        Code.INVALID_ARGUMENT,
        "input 'INPUT0' already exists in request",
    ),
    "unknown input": (
        {"inputs": [A, tensor("x\n", ONES)]},
        Code.INVALID_ARGUMENT,
        "unexpected inference input 'x\\n' for model 'simple'; it has 'INPUT0', 'INPUT1'",
    ),
    "other type": (
        {"inputs": [tensor("INPUT0", ONES, "FP64"), B]},
        Code.INVALID_ARGUMENT,
        "inference input 'INPUT0' data-type is 'FP64', but model 'simple' expects 'INT32'",
    ),
    "unknown type": (
        {"inputs": [tensor("INPUT0", ONES, "COMPLEX"), B]},
        Code.INVALID_ARGUMENT,
        "inference input 'INPUT0' data-type is 'COMPLEX', but model 'simple' expects 'INT32'",
    ),
    "other shape": (
        {"inputs": [with_shape(2, 15), B]},
        Code.INVALID_ARGUMENT,
        "unexpected shape for input 'INPUT0' for model 'simple'. Expected [-1,16], got [2,15].",
    ),
    "other rank": (
        {"inputs": [with_shape(16), B]},
        Code.INVALID_ARGUMENT,
        "Expected [-1,16], got [16]. The first dimension is the batch",
    ),
    "negative shape": (
        {"inputs": [with_shape(-1, 16), B]},
        Code.INVALID_ARGUMENT,
        "Expected [-1,16], got [-1,16].",
    ),
    "shape that overflows": (
        {"model_name": "strings", "inputs": [tensor("IN", ONES, "BYTES")], "raw_input_contents": [b""]},
        Code.INVALID_ARGUMENT,
        "expected 32 string elements for inference input 'IN' for model 'strings', got 0",
    ),
    "no shape": (
        {"inputs": [with_shape(), B]},
        Code.INVALID_ARGUMENT,
        "input 'INPUT0' has no shape but model requires batch dimension for 'simple'",
    ),
    "batch too large": (
        {"inputs": [with_shape(9, 16), tensor("INPUT1", np.zeros((9, 16), np.int32))]},
        Code.INVALID_ARGUMENT,
        "inference request batch-size must be <= 8 for 'simple'",
    ),
    "batch empty": (
        {"inputs": [with_shape(0, 16), tensor("INPUT1", np.zeros((0, 16), np.int32))]},
        Code.INVALID_ARGUMENT,
        "inference request batch-size must be >= 1 for 'simple'",
    ),
    "batches differ": (
        {"inputs": [A, tensor("INPUT1", np.zeros((3, 16), np.int32))]},
        Code.INVALID_ARGUMENT,
        "input 'INPUT1' batch size does not match other inputs for 'simple'",
    ),
    "too many bytes": (
        {"raw_input_contents": [RAW[0] + b"1234", RAW[1]]},
        Code.INVALID_ARGUMENT,
        "input byte size mismatch for input 'INPUT0' for model 'simple'. Expected 128, got 132",
    ),
    "too few bytes": (
        {"raw_input_contents": [RAW[0], RAW[1][:-1]]},
        Code.INVALID_ARGUMENT,
        "input byte size mismatch for input 'INPUT1' for model 'simple'. Expected 128, got 127",
    ),
    "no data": (
        {"raw_input_contents": RAW[:1]},
        Code.INVALID_ARGUMENT,
        "unable to find data for input tensor 'INPUT1' for model 'simple' in request.",
    ),
    "no data at all": (
        {"raw_input_contents": []},
        Code.INVALID_ARGUMENT,
        "unable to find data for input tensor 'INPUT0' for model 'simple' in request.",
    ),
    "more data than inputs": (
        {"raw_input_contents": [*RAW, b""]},
        Code.INVALID_ARGUMENT,
        "3 raw_input_contents came for 2 inputs of model 'simple'",
    ),
    "raw and contents": (
        {"inputs": [tensor("INPUT0", ONES, contents=Contents(int_contents=[1])), B]},
        Code.INVALID_ARGUMENT,
        "contents field must not be specified when using raw_input_contents for 'INPUT0' for model 'simple'",
    ),
    "too few elements": (
        {
            "inputs": [tensor("INPUT0", ONES, contents=Contents(int_contents=[1])), B],
            "raw_input_contents": [],
        },
        Code.INVALID_ARGUMENT,
        "expected 32 elements for inference input 'INPUT0' for model 'simple', got 1",
    ),
    "elements of another type": (
        {
            "inputs": [tensor("INPUT0", ONES, contents=Contents(fp32_contents=[1] * 32)), B],
            "raw_input_contents": [],
        },
        Code.INVALID_ARGUMENT,
        "for model 'simple' is INT32, whose values are in int_contents, but fp32_contents is set",
    ),
    "unknown output": (
        {"outputs": [Output(name="OUTPUT9")]},
        Code.INVALID_ARGUMENT,
        "unexpected inference output 'OUTPUT9' for model 'simple'; it has 'OUTPUT0', 'OUTPUT1'",
    ),
    "the same output twice": (
        {"outputs": [Output(name="OUTPUT0"), Output(name="OUTPUT0")]},
        Code.INVALID_ARGUMENT,
        "output 'OUTPUT0' already exists in request for model 'simple'",
    ),
    "a great many outputs": (
        {"outputs": [Output(name="OUTPUT0")] * 200_000},
        Code.INVALID_ARGUMENT,
        "output 'OUTPUT0' already exists in request for model 'simple'",
    ),
    "its only output twice": (
        {
            "model_name": "anything",
            "inputs": [tensor("IN", ONES)],
            "raw_input_contents": RAW[:1],
            "outputs": [Output(name="OUT_IN"), Output(name="OUT_IN")],
        },
        Code.INVALID_ARGUMENT,
        "output 'OUT_IN' already exists in request for model 'anything'",
    ),
    "a great many dimensions": (
        {
            "model_name": "anything",
            "inputs": [
                pb.ModelInferRequest.InferInputTensor(name="IN", datatype="FP32", shape=[1] * 100_000)
            ],
            "raw_input_contents": [b"1234"],
        },
        Code.INVALID_ARGUMENT,
        "input 'IN' has 100000 dimensions for model 'anything'; at most 32 are possible",
    ),
    "a product beyond 64 bits": (
        {
            "model_name": "anything",
            "inputs": [
                pb.ModelInferRequest.InferInputTensor(name="IN", datatype="FP32", shape=[1, 2**62, 2**62, 16])
            ],
            "raw_input_contents": [b""],
        },
        Code.INVALID_ARGUMENT,
        f"input byte size mismatch for input 'IN' for model 'anything'. Expected {2**130}, got 0",
    ),
    "reserved parameter": (
        {"parameters": {"triton_something": parameter(int64_param=1)}},
        Code.INVALID_ARGUMENT,
        "parameter keys starting with 'triton_' are reserved for Triton usage and should not be specified",
    ),
    "priority as text": (
        {"parameters": {"priority": parameter(string_param="1")}},
        Code.INVALID_ARGUMENT,
        "invalid value type for 'priority' parameter, expected int64_param or uint64_param.",
    ),
    "negative priority": (
        {"parameters": {"priority": parameter(int64_param=-1)}},
        Code.INVALID_ARGUMENT,
        "'priority' parameter is -1; it must not be negative",
    ),
    "timeout as number with a fraction": (
        {"parameters": {"timeout": parameter(double_param=1.5)}},
        Code.INVALID_ARGUMENT,
        "invalid value type for 'timeout' parameter",
    ),
    "classes as text": (
        {"outputs": [Output(name="OUTPUT0", parameters={"classification": parameter(string_param="1")})]},
        Code.INVALID_ARGUMENT,
        "invalid value type for 'classification' parameter",
    ),
    "no classes": (
        {"outputs": [Output(name="OUTPUT0", parameters={"classification": parameter(int64_param=0)})]},
        Code.INVALID_ARGUMENT,
        "'classification' of output 'OUTPUT0' is 0; it must be at least 1",
    ),
    "shared input": (
        {
            "inputs": [
                tensor("INPUT0", ONES, parameters={"shared_memory_region": parameter(string_param="r")}),
                B,
            ]
        },
        Code.UNIMPLEMENTED,
        "tensor 'INPUT0' is in shared memory, which this server does not read: send its bytes",
    ),
    "shared output": (
        {
            "outputs": [
                Output(name="OUTPUT0", parameters={"shared_memory_region": parameter(string_param="r")})
            ]
        },
        Code.UNIMPLEMENTED,
        "tensor 'OUTPUT0' is in shared memory",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_a_wrong_request_is_refused(zoo: Served, case: str) -> None:
    fields, code, text = REFUSED[case]

    found, message = await refusal(zoo, simple(**fields, id="id-7"))

    assert (found, message.startswith("[request id: id-7] ")) == (code, True), message
    assert text in message
    assert len(message) < 1100
    assert message.isprintable()
    assert zoo.server._admission.inferences == 0
    response = await infer(zoo, simple())
    np.testing.assert_array_equal(outputs(response)["OUTPUT0"], ONES + THREES)


async def test_a_request_without_an_id_is_called_unknown(zoo: Served) -> None:
    _, message = await refusal(zoo, simple(model_name="foo"))

    assert message == "[request id: <id_unknown>] Request for unknown model: 'foo' is not found"


async def test_an_id_that_cannot_be_shown_is_made_printable(zoo: Served) -> None:
    _, message = await refusal(zoo, simple(model_name="foo", id="a\n\x07" * 50))

    assert message.startswith("[request id: a\\n\\x07a\\n")
    assert message.isprintable()


async def test_an_id_writes_no_line_of_its_own_into_the_log(
    zoo: Served, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "vitrail_server.inferences")
    asked = simple(id="mine\n2026-01-01 ERROR forged" + "x" * 1000)
    await infer(zoo, asked)
    (line,) = [each for each in caplog.messages if "inference by simple" in each]
    assert line.startswith(r"mine\n2026-01-01 ERROR forgedx")
    assert len(line) < 200


TEXT = "for inference input 'IN' for model 'strings', "


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"\x05", f"incomplete string length indicator {TEXT}expecting 4 bytes but only 1 bytes available"),
        (
            struct.pack("<I", 9) + b"abc",
            f"incomplete string data {TEXT}expecting string of length 9 but only 3 bytes available",
        ),
        (struct.pack("<I", 2**32 - 1), "expecting string of length 4294967295 but only 0 bytes available"),
        (struct.pack("<I", 0), f"expected 2 string elements {TEXT}got 1"),
        (struct.pack("<I", 0) * 3, f"expected 2 string elements {TEXT}got 3"),
    ],
)
async def test_strings_must_be_whole_and_as_many_as_the_shape_says(
    zoo: Served, raw: bytes, text: str
) -> None:
    shape = np.zeros((1, 2), np.uint8)
    wrong = pb.ModelInferRequest(
        model_name="strings", inputs=[tensor("IN", shape, "BYTES")], raw_input_contents=[raw]
    )

    code, message = await refusal(zoo, wrong)

    assert code is Code.INVALID_ARGUMENT
    assert text in message


@pytest.mark.parametrize(
    ("model", "datatype", "contents", "values"),
    [
        ("flags", "BOOL", Contents(bool_contents=[True, False, True]), [1, 0, 1]),
        ("bytes", "UINT8", Contents(uint_contents=[0, 7, 255]), [0, 7, 255]),
    ],
)
async def test_elements_may_come_one_by_one(
    zoo: Served, model: str, datatype: str, contents: pb.InferTensorContents, values: list[int]
) -> None:
    message = pb.ModelInferRequest(
        model_name=model, inputs=[tensor("IN", np.zeros((1, 3), np.uint8), datatype, contents=contents)]
    )

    response = await infer(zoo, message)

    assert list(response.raw_output_contents[0]) == values
    assert not response.outputs[0].HasField("contents")


async def test_an_element_that_its_type_cannot_hold_is_refused(zoo: Served) -> None:
    contents = Contents(uint_contents=[0, 7, 256])
    message = pb.ModelInferRequest(
        model_name="bytes", inputs=[tensor("IN", np.zeros((1, 3), np.uint8), contents=contents)]
    )

    code, text = await refusal(zoo, message)

    assert code is Code.INVALID_ARGUMENT
    assert "input 'IN' for model 'bytes' has an element that UINT8 cannot hold" in text


async def test_halves_have_no_contents(zoo: Served) -> None:
    contents = Contents(fp32_contents=[1, 2])
    message = pb.ModelInferRequest(
        model_name="halves", inputs=[tensor("IN", np.zeros((1, 2), np.uint8), "BF16", contents=contents)]
    )

    code, text = await refusal(zoo, message)

    assert code is Code.INVALID_ARGUMENT
    assert "is BF16, which contents cannot carry: send it in raw_input_contents" in text


async def test_what_is_no_request_is_refused(zoo: Served) -> None:
    call: Any = zoo.channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")

    with pytest.raises(Exception, match="is no message of this rpc"):
        await call(b"\xff\xff\xff")


@pytest.mark.parametrize(
    "value", [{"string_param": "x"}, {"double_param": 0.5}, {"bool_param": True}, {"uint64_param": 7}]
)
async def test_parameters_of_the_client_s_own_change_nothing(zoo: Served, value: dict[str, Any]) -> None:
    parameters = {
        "my_own": parameter(**value),
        "sequence_id": parameter(int64_param=4),
        "binary_data_output": parameter(bool_param=True),
        "priority": parameter(uint64_param=2**64 - 1),
        "timeout": parameter(int64_param=10),
        "triton_enable_empty_final_response": parameter(bool_param=True),
    }

    response = await infer(zoo, simple(parameters=parameters))

    np.testing.assert_array_equal(outputs(response)["OUTPUT1"], ONES - THREES)


async def test_outputs_come_as_and_in_the_order_asked_for(zoo: Served) -> None:
    every = await infer(zoo, simple(id="x"))
    assert [each.name for each in every.outputs] == ["OUTPUT0", "OUTPUT1"]
    assert (every.model_name, every.model_version, every.id) == ("simple", "1", "x")
    swapped = await infer(zoo, simple(outputs=[Output(name="OUTPUT1"), Output(name="OUTPUT0")]))
    assert [each.name for each in swapped.outputs] == ["OUTPUT1", "OUTPUT0"]
    one = await infer(zoo, simple(outputs=[Output(name="OUTPUT1")]))
    assert [each.name for each in one.outputs] == ["OUTPUT1"]
    assert one.raw_output_contents == every.raw_output_contents[1:]


async def test_the_version_asked_for_answers_and_the_highest_if_none_is(zoo: Served) -> None:
    for given, answers in (("", "3"), ("1", "1"), ("3", "3"), ("0003", "3")):
        response = await infer(zoo, simple(model_name="versions", model_version=given))
        assert response.model_version == answers


async def test_a_number_for_the_whole_batch_has_no_shape(zoo: Served) -> None:
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    found = outputs(await infer(zoo, request("loss", IN=x)))

    np.testing.assert_array_equal(found["OUT_IN"], x)
    assert found["loss"].shape == ()
    assert found["loss"] == x.mean()


async def test_tensors_without_a_batch_dimension_are_whole(zoo: Served) -> None:
    x = np.array(1.5, np.float32)
    assert outputs(await infer(zoo, request("scalar", IN=x)))["OUT_IN"] == x
    fixed = np.ones((2, 3), np.float32)
    np.testing.assert_array_equal(outputs(await infer(zoo, request("fixed", IN=fixed)))["OUT_IN"], fixed)
    code, message = await refusal(zoo, request("fixed", IN=fixed[:1]))
    assert code is Code.INVALID_ARGUMENT
    assert message.endswith("Expected [2,3], got [1,3].")


async def test_empty_tensors_are_tensors(zoo: Served) -> None:
    x = np.zeros((1, 0, 5), np.float32)
    assert outputs(await infer(zoo, request("anything", IN=x)))["OUT_IN"].shape == (1, 0, 5)
    bare = pb.ModelInferRequest(model_name="anything", inputs=[tensor("IN", x)])
    assert outputs(await infer(zoo, bare))["OUT_IN"].shape == (1, 0, 5)
