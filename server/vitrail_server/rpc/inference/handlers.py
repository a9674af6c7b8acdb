"""Registers the service under the name that v2 clients call it by, and refuses what it has not.

The messages live in a package of our own (protos/vitrail_server/kserve/v2), so that a client's copies of
them can be in the same process; only the service's name is on the wire.
"""

from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message_factory import GetMessageClass

from vitrail.errors import Unimplemented
from vitrail_server.kserve.v2 import grpc_service_pb2 as pb
from vitrail_server.rpc.inference.service import InferenceService

SERVICE = "inference.GRPCInferenceService"

_MEMORY = "this server shares no memory with its clients: send tensors in the request"
REFUSED = {
    "TraceSetting": "this server traces nothing: its metrics and its log say where time goes",
    "SystemSharedMemoryStatus": _MEMORY,
    "SystemSharedMemoryRegister": _MEMORY,
    "SystemSharedMemoryUnregister": _MEMORY,
    "CudaSharedMemoryStatus": _MEMORY,
    "CudaSharedMemoryRegister": _MEMORY,
    "CudaSharedMemoryUnregister": _MEMORY,
}
"""The rpcs of Triton that this server does not have, and why."""


def add_to_server(service: InferenceService, server: grpc.aio.Server) -> None:
    """Let `service` answer the rpcs that this server has."""
    described = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
    for method in described.methods:
        streams = method.client_streaming and method.server_streaming
        make = grpc.stream_stream_rpc_method_handler if streams else grpc.unary_unary_rpc_method_handler
        handlers[method.name] = make(
            _refuse(method.name) if method.name in REFUSED else getattr(service, method.name),
            request_deserializer=GetMessageClass(method.input_type).FromString,
            response_serializer=GetMessageClass(method.output_type).SerializeToString,
        )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))


def _refuse(rpc: str) -> Callable[[Any, Any], Awaitable[Any]]:
    async def refuse(request: Any, context: Any) -> Any:  # noqa: ARG001 - the rpc's signature
        raise Unimplemented(f"{rpc}: {REFUSED[rpc]}")

    return refuse
