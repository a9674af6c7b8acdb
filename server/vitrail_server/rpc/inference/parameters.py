"""The parameters of a v2 request: what Triton's protocol reserves, and those that ask for an explanation.

Parameters of the client's own are for its model, and a SavedModel takes none, so they change nothing. Those
that the protocol reserves for its server are refused where they mean nothing here.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from vitrail.errors import InvalidArgument, Unimplemented
from vitrail_server.kserve.v2 import grpc_service_pb2 as pb
from vitrail_server.wording import quoted

PREFIX = "vitrail_"
"""What the names of our own parameters begin with."""

RESERVED = "triton_"
EMPTY_FINAL_RESPONSE = "triton_enable_empty_final_response"
"""Asks for a last response without content. Here the last response has content and says that it is the last:
this may be asked for, and changes nothing."""
FINAL_RESPONSE = "triton_final_response"

LEAST_URGENT = (1 << 32) - 1
"""The largest priority that is told apart, as in an ExplanationSpec."""

CLASSIFICATION = "classification"
SHARED_MEMORY = "shared_memory_region"

Parameters = Mapping[str, pb.InferParameter]


@dataclass(frozen=True, slots=True)
class RequestParameters:
    """What the parameters of a request say."""

    priority: int
    """1 is the most urgent; 0: not said."""
    timeout: float
    """Seconds that the request may wait; 0: not said."""
    explanation: Parameters
    """Those that ask for an explanation, without the prefix; none: it asks for an inference."""


def read_parameters(parameters: Parameters) -> RequestParameters:
    """Return what the parameters of a request say.

    Raises:
        InvalidArgument: one that the protocol reserves is unknown or of another type.

    """
    for name in parameters:
        if name.startswith(RESERVED) and name != EMPTY_FINAL_RESPONSE:
            raise InvalidArgument(
                f"parameter keys starting with '{RESERVED}' are reserved for Triton usage and should not be "
                f"specified: {quoted(name)}"
            )
    return RequestParameters(
        priority=min(_whole_number(parameters, "priority"), LEAST_URGENT),
        timeout=_whole_number(parameters, "timeout") / 1e6,
        explanation={
            name.removeprefix(PREFIX): each for name, each in parameters.items() if name.startswith(PREFIX)
        },
    )


def classes_wanted(output: pb.ModelInferRequest.InferRequestedOutputTensor) -> int:
    """Return how many classes an output is wanted as; 0: as it is.

    Raises:
        InvalidArgument: the parameter is of another type, or not above 0.

    """
    if CLASSIFICATION not in output.parameters:
        return 0
    count = _whole_number(output.parameters, CLASSIFICATION)
    if count < 1:
        raise InvalidArgument(
            f"'{CLASSIFICATION}' of output {quoted(output.name)} is {count}; it must be at least 1"
        )
    return count


def refuse_shared_memory(name: str, parameters: Parameters) -> None:
    """Refuse a tensor that is to be read from, or written to, memory that the client shares.

    Raises:
        Unimplemented: it is.

    """
    if SHARED_MEMORY in parameters:
        raise Unimplemented(
            f"tensor {quoted(name)} is in shared memory, which this server does not read: send its bytes"
        )


def _whole_number(parameters: Parameters, name: str) -> int:
    """Return a parameter that is a whole number from 0; 0 if it is not there."""
    if name not in parameters:
        return 0
    match parameters[name].WhichOneof("parameter_choice"):
        case "int64_param":
            number = parameters[name].int64_param
        case "uint64_param":
            number = parameters[name].uint64_param
        case _:
            raise InvalidArgument(
                f"invalid value type for '{name}' parameter, expected int64_param or uint64_param."
            )
    if number < 0:
        raise InvalidArgument(f"'{name}' parameter is {number}; it must not be negative")
    return number
