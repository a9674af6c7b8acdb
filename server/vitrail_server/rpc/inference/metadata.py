"""What the server and its models are, as v2 clients ask for it."""

from collections.abc import Iterable
from importlib.metadata import version

from vitrail_server.inference.statistics import BatchStatistics, Duration, ResponseStatistics, Statistics
from vitrail_server.kserve.v2 import grpc_service_pb2 as pb
from vitrail_server.repository.config import PLATFORM
from vitrail_server.servable import Description, TensorSpec

NAME = "vitrail"
EXTENSIONS = (
    "classification",
    "model_repository",
    "model_repository(unload_dependents)",
    "schedule_policy",
    "model_configuration",
    "binary_tensor_data",
    "parameters",
    "statistics",
    "logging",
    "vitrail_explanations",
)
"""What of the protocol's extensions exists here, in Triton's words; the last one is our own."""

Metadata = pb.ModelMetadataResponse.TensorMetadata


def server_metadata() -> pb.ServerMetadataResponse:
    """Return what the server is."""
    return pb.ServerMetadataResponse(name=NAME, version=version("vitrail"), extensions=EXTENSIONS)


def model_metadata(description: Description, versions: Iterable[int]) -> pb.ModelMetadataResponse:
    """Return what a model expects and gives; `versions` are those that are ready."""
    signature = description.signature
    return pb.ModelMetadataResponse(
        name=description.name,
        versions=[str(number) for number in versions],
        platform=PLATFORM,
        inputs=[_tensor(spec) for spec in signature.inputs.values()],
        outputs=[_tensor(spec) for spec in signature.outputs.values()],
    )


def model_statistics(description: Description, statistics: Statistics) -> pb.ModelStatistics:
    """Return what a version has computed."""
    return pb.ModelStatistics(
        name=description.name,
        version=str(description.version),
        last_inference=round(statistics.last_inference * 1000),
        inference_count=statistics.inference_count,
        execution_count=statistics.execution_count,
        inference_stats=pb.InferStatistics(
            success=_duration(statistics.success),
            fail=_duration(statistics.fail),
            queue=_duration(statistics.queue),
            compute_input=_duration(statistics.compute_input),
            compute_infer=_duration(statistics.compute_infer),
            compute_output=_duration(statistics.compute_output),
            cache_hit=pb.StatisticDuration(),
            cache_miss=pb.StatisticDuration(),
        ),
        batch_stats=[_batches(size, each) for size, each in sorted(statistics.batches.items())],
        response_stats={str(place): _responses(each) for place, each in statistics.responses.items()},
    )


def _tensor(spec: TensorSpec) -> Metadata:
    return Metadata(name=spec.name, datatype=spec.datatype, shape=(-1,) if spec.shape is None else spec.shape)


def _duration(duration: Duration) -> pb.StatisticDuration:
    return pb.StatisticDuration(count=duration.count, ns=duration.nanoseconds)


def _batches(size: int, batches: BatchStatistics) -> pb.InferBatchStatistics:
    return pb.InferBatchStatistics(
        batch_size=size,
        compute_input=_duration(batches.compute_input),
        compute_infer=_duration(batches.compute_infer),
        compute_output=_duration(batches.compute_output),
    )


def _responses(responses: ResponseStatistics) -> pb.InferResponseStatistics:
    return pb.InferResponseStatistics(
        compute_infer=_duration(responses.compute_infer),
        compute_output=_duration(responses.compute_output),
        success=_duration(responses.success),
        fail=_duration(responses.fail),
        empty_response=_duration(responses.empty_response),
        cancel=_duration(responses.cancel),
    )
