"""The outputs of an inference as a v2 response: always raw, in the order in which they were asked for."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from vitrail.errors import ResourceExhausted
from vitrail_server.inference.classification import classified
from vitrail_server.inference.tensors import to_raw
from vitrail_server.kserve.v2 import grpc_service_pb2 as pb
from vitrail_server.rpc.inference.request import Inference
from vitrail_server.servable import Description

LARGEST = (1 << 31) - 1
"""The most bytes of a message that gRPC carries."""


def inference_response(
    inference: Inference,
    outputs: Mapping[str, NDArray[np.generic]],
    description: Description,
    request_id: str,
) -> pb.ModelInferResponse:
    """Return the answer to an inference.

    Raises:
        ResourceExhausted: it is larger than gRPC's messages may be.

    """
    tensors: list[tuple[str, str, NDArray[np.generic]]] = []
    for wanted in inference.outputs:
        array, datatype = outputs[wanted.name], description.signature.outputs[wanted.name].datatype
        if wanted.classes:
            labels = description.settings.labels.get(wanted.name, ())
            batched = description.settings.max_request_batch > 0 and array.ndim > 0
            array, datatype = classified(array, wanted.classes, labels, batched=batched), "BYTES"
        tensors.append((wanted.name, datatype, array))
    return response_of(tensors, description, request_id)


def response_of(
    tensors: Sequence[tuple[str, str, NDArray[np.generic]]], description: Description, request_id: str
) -> pb.ModelInferResponse:
    """Return the response that carries some tensors: name, datatype and values."""
    size = sum(array.nbytes for _, _, array in tensors)
    if size > LARGEST:
        raise ResourceExhausted(
            f"Response has byte size {size} which exceeds gRPC's byte size limit {LARGEST}."
        )
    return pb.ModelInferResponse(
        model_name=description.name,
        model_version=str(description.version),
        id=request_id,
        outputs=[
            pb.ModelInferResponse.InferOutputTensor(name=name, datatype=datatype, shape=array.shape)
            for name, datatype, array in tensors
        ],
        raw_output_contents=[to_raw(array) for _, _, array in tensors],
    )
