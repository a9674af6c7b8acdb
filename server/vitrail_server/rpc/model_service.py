"""vitrail.v1.ModelService: says what the server serves."""

from vitrail.tensors import DTYPES as WIRE_DTYPES
from vitrail.v1 import model_pb2 as pb
from vitrail.v1.model_pb2_grpc import ModelServiceServicer
from vitrail.v1.tensor_pb2 import DataType, Precision
from vitrail_server.repository.manager import Manager
from vitrail_server.repository.state import ModelStatus, VersionStatus
from vitrail_server.rpc.context import Context
from vitrail_server.servable import DTYPES, Capabilities, Description, TensorSpec


class ModelService(ModelServiceServicer):
    """Answers vitrail.v1.ModelService."""

    def __init__(self, manager: Manager) -> None:
        self._manager = manager

    async def ListModels(  # noqa: N802 - the rpc's name
        self,
        request: pb.ListModelsRequest,  # noqa: ARG002 - it has no fields
        context: Context,  # noqa: ARG002 - the rpc's signature
    ) -> pb.ListModelsResponse:
        """List every model, without class labels."""
        return pb.ListModelsResponse(models=[_model(each, labels=False) for each in self._manager.models()])

    async def GetModel(  # noqa: N802 - the rpc's name
        self,
        request: pb.GetModelRequest,
        context: Context,  # noqa: ARG002 - the rpc's signature
    ) -> pb.GetModelResponse:
        """Describe one model, with class labels."""
        return pb.GetModelResponse(model=_model(self._manager.model(request.name), labels=True))


def _model(status: ModelStatus, *, labels: bool) -> pb.Model:
    return pb.Model(
        name=status.name,
        reason=status.reason,
        versions=[_version(each, labels=labels) for each in status.versions],
    )


def _version(status: VersionStatus, *, labels: bool) -> pb.ModelVersion:
    message = pb.ModelVersion(
        version=status.version,
        state=pb.ModelVersion.State.Value(f"STATE_{status.state.name}"),
        reason=status.reason,
        version_labels=status.labels,
    )
    if status.description is not None:
        _describe(message, status.description, labels=labels)
    return message


def _describe(message: pb.ModelVersion, description: Description, *, labels: bool) -> None:
    signature, settings = description.signature, description.settings
    message.inputs.extend(_tensor(each) for each in signature.inputs.values())
    message.outputs.extend(
        _tensor(each, settings.labels.get(name, ()) if labels else ())
        for name, each in signature.outputs.items()
    )
    message.image_input = settings.image_input or ""
    message.task = pb.ModelVersion.Task.Value(f"TASK_{description.task}")
    message.capabilities.CopyFrom(_capabilities(description.capabilities, settings.precision))


def _tensor(spec: TensorSpec, labels: tuple[str, ...] = ()) -> pb.TensorSpec:
    return pb.TensorSpec(
        name=spec.name, data_type=_data_type(spec.datatype), shape=spec.shape or (), labels=labels
    )


def _data_type(datatype: str) -> DataType.ValueType:
    """Return the wire's type, UNSPECIFIED for the types that cannot be sent (strings, bfloat16)."""
    dtype = DTYPES.get(datatype)
    return next((wire for wire, each in WIRE_DTYPES.items() if each == dtype), DataType.DATA_TYPE_UNSPECIFIED)


def _capabilities(capabilities: Capabilities, precision: str) -> pb.Capabilities:
    return pb.Capabilities(
        gradient=not capabilities.gradient_reason,
        gradient_reason=capabilities.gradient_reason,
        occlusion=not capabilities.occlusion_reason,
        occlusion_reason=capabilities.occlusion_reason,
        batch_dependent=capabilities.batch_dependent,
        non_deterministic=capabilities.non_deterministic,
        fixed_batch_size=capabilities.fixed_batch_size,
        batch_sizes=[
            pb.ChosenBatchSize(
                program=each.kind.value,
                height=each.image_size[0],
                width=each.image_size[1],
                batch_size=each.batch_size,
                seconds=each.seconds,
            )
            for each in capabilities.batch_sizes
        ],
        frozen=not capabilities.frozen_reason,
        frozen_reason=capabilities.frozen_reason,
        incremental=not capabilities.incremental_reason,
        incremental_reason=capabilities.incremental_reason,
        precision=Precision.Value(f"PRECISION_{precision}"),
        precision_difference=capabilities.precision_difference,
    )
