"""What is served: ListModels, GetModel and reflection, the broken models included."""

from collections.abc import AsyncIterator

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest
from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub

from fakes.serving import Served
from vitrail.v1 import model_pb2 as pb
from vitrail.v1.tensor_pb2 import DataType, Precision

from .conftest import LABELS, NO_IMAGE, zoo_offers
from .messages import refused

pytestmark = pytest.mark.asyncio(loop_scope="module")

State = pb.ModelVersion.State


async def get(zoo: Served, name: str) -> pb.Model:
    return (await zoo.models.GetModel(pb.GetModelRequest(name=name))).model


async def test_every_model_is_listed_in_order_without_its_labels(zoo: Served) -> None:
    models = (await zoo.models.ListModels(pb.ListModelsRequest())).models

    assert [model.name for model in models] == sorted(zoo_offers())
    for model in models:
        for version in model.versions:
            assert not any(output.labels for output in version.outputs)
    described = {model.name: model for model in models}
    classifier = await get(zoo, "classifier")
    classifier.versions[0].outputs[0].ClearField("labels")
    assert described["classifier"] == classifier


async def test_a_model_is_described(zoo: Served) -> None:
    model = await get(zoo, "classifier")
    (version,) = model.versions

    assert model.reason == ""
    assert version.version == 1
    assert version.state == State.STATE_AVAILABLE
    assert version.reason == ""
    assert list(version.inputs) == [
        pb.TensorSpec(name="image", data_type=DataType.DATA_TYPE_FP32, shape=[-1, 6, 8, 3])
    ]
    assert list(version.outputs) == [
        pb.TensorSpec(name="scores", data_type=DataType.DATA_TYPE_FP32, shape=[-1, 3], labels=LABELS)
    ]
    assert version.image_input == "image"
    assert version.task == pb.ModelVersion.TASK_CLASSIFICATION
    assert version.capabilities == pb.Capabilities(
        gradient=True, occlusion=True, frozen=True, incremental=True, precision=Precision.PRECISION_FP32
    )


async def test_versions_come_lowest_first_with_their_labels(zoo: Served) -> None:
    model = await get(zoo, "colour")

    assert [(each.version, list(each.version_labels)) for each in model.versions] == [
        (1, ["stable"]),
        (7, ["canary"]),
    ]


async def test_a_model_of_several_inputs_and_outputs(zoo: Served) -> None:
    (version,) = (await get(zoo, "beside")).versions

    assert [each.name for each in version.inputs] == ["image", "age"]
    assert [each.name for each in version.outputs] == ["scores", "mood"]
    assert version.image_input == "image"
    assert version.task == pb.ModelVersion.TASK_REGRESSION


async def test_a_version_says_what_it_cannot_do(zoo: Served) -> None:
    (version,) = (await get(zoo, "incapable")).versions

    assert version.state == State.STATE_AVAILABLE
    assert version.capabilities == pb.Capabilities(
        gradient_reason="no gradient passes ArgMax: export the scores before it",
        occlusion_reason="answers depend on the other images of a batch",
        incremental_reason="a window needs only 1.04 times fewer multiplications",
        frozen=True,
        precision=Precision.PRECISION_FP32,
    )


async def test_a_version_without_an_image_says_so(zoo: Served) -> None:
    (version,) = (await get(zoo, "imageless")).versions

    assert version.state == State.STATE_AVAILABLE
    assert version.image_input == ""
    assert version.capabilities == pb.Capabilities(
        gradient_reason=NO_IMAGE,
        occlusion_reason=NO_IMAGE,
        incremental_reason=NO_IMAGE,
        frozen=True,
        precision=Precision.PRECISION_FP32,
    )


async def test_a_version_that_failed_to_load_says_why(zoo: Served) -> None:
    model = await get(zoo, "unloadable")
    (version,) = model.versions

    assert model.reason == ""
    assert version == pb.ModelVersion(
        version=1,
        state=State.STATE_END,
        reason="the SavedModel has no signature; run scripts/models",
    )


async def test_a_model_that_cannot_be_read_says_why(zoo: Served) -> None:
    model = await get(zoo, "misconfigured")

    assert not model.versions
    assert "config.pbtxt" in model.reason


@pytest.mark.parametrize("name", ["", "nothing", "../grey", "grey/1", "/etc", "x" * 100_000])
async def test_nothing_but_the_models_of_the_repository_is_found(zoo: Served, name: str) -> None:
    refusal = await refused(zoo.models.GetModel(pb.GetModelRequest(name=name)))

    assert refusal.code is grpc.StatusCode.NOT_FOUND
    assert len(refusal.message) < 1000


async def test_reflection_lists_the_services_and_describes_them(zoo: Served) -> None:
    async def requests() -> AsyncIterator[ServerReflectionRequest]:
        yield ServerReflectionRequest(list_services="")
        yield ServerReflectionRequest(file_containing_symbol="vitrail.v1.ExplanationService")
        yield ServerReflectionRequest(file_containing_symbol="inference.GRPCInferenceService")
        yield ServerReflectionRequest(file_containing_symbol="vitrail.v1.Nothing")

    call = ServerReflectionStub(zoo.channel).ServerReflectionInfo(requests())
    services, described, inference, missing = [response async for response in call]

    assert {each.name for each in services.list_services_response.service} == {
        "vitrail.v1.ExplanationService",
        "vitrail.v1.ModelService",
        "inference.GRPCInferenceService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }
    assert described.file_descriptor_response.file_descriptor_proto
    pool = DescriptorPool()
    for file in inference.file_descriptor_response.file_descriptor_proto[::-1]:
        pool.AddSerializedFile(file)
    service = pool.FindServiceByName("inference.GRPCInferenceService")
    infer = service.methods_by_name["ModelInfer"]
    assert infer.input_type.full_name == "inference.ModelInferRequest"
    inputs = infer.input_type.fields_by_name["inputs"].message_type
    assert inputs is pool.FindMessageTypeByName("inference.ModelInferRequest.InferInputTensor")
    config = service.methods_by_name["ModelConfig"].output_type.fields_by_name["config"]
    assert config.message_type is pool.FindMessageTypeByName("inference.ModelConfig")
    assert missing.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]
