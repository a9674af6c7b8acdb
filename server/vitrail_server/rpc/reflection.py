"""What reflection tells: the services under the names that they answer to.

The messages of the v2 protocol live in a package of our own, so their descriptors are told with the package
that clients know, from a pool that nothing else uses.
"""

from collections.abc import Iterable, Iterator

import grpc
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import Default, DescriptorPool
from grpc_reflection.v1alpha import reflection

from vitrail_server.kserve.v2 import grpc_service_pb2, model_config_pb2

INFERENCE_FILES = {
    model_config_pb2.DESCRIPTOR.name: "model_config.proto",
    grpc_service_pb2.DESCRIPTOR.name: "grpc_service.proto",
}
"""The files of the v2 protocol and what they are called in Triton's repository."""


def enable(services: Iterable[str], server: grpc.aio.Server) -> None:
    """Let reflection tell of `services`, by their full names, and of itself."""
    named = (*services, reflection.SERVICE_NAME)
    pool = DescriptorPool()
    for name in named:
        if not name.startswith("inference."):
            _add(Default().FindFileContainingSymbol(name), pool)
    for descriptor in (model_config_pb2.DESCRIPTOR, grpc_service_pb2.DESCRIPTOR):
        pool.Add(_renamed(descriptor))
    reflection.enable_server_reflection(named, server, pool)


def _add(descriptor: FileDescriptor, pool: DescriptorPool) -> None:
    """Copy a file, and first the files that it needs."""
    for each in descriptor.dependencies:
        _add(each, pool)
    copy = FileDescriptorProto()
    descriptor.CopyToProto(copy)
    pool.Add(copy)


def _renamed(descriptor: FileDescriptor) -> FileDescriptorProto:
    """Return a file of the v2 protocol as clients know it."""
    # A package's name is in a file as text only: in its own field, and before the types that it uses.
    copy = FileDescriptorProto()
    descriptor.CopyToProto(copy)
    old, new = f".{copy.package}.", ".inference."
    copy.name, copy.package = INFERENCE_FILES[copy.name], "inference"
    copy.dependency[:] = [INFERENCE_FILES.get(each, each) for each in copy.dependency]
    for message in _messages(copy.message_type):
        for field in message.field:
            if field.type_name.startswith(old):
                field.type_name = new + field.type_name.removeprefix(old)
    for service in copy.service:
        for method in service.method:
            method.input_type = method.input_type.replace(old, new)
            method.output_type = method.output_type.replace(old, new)
    return copy


def _messages(messages: Iterable[DescriptorProto]) -> Iterator[DescriptorProto]:
    for message in messages:
        yield message
        yield from _messages(message.nested_type)
