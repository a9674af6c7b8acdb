"""The `instance_group` of a config.pbtxt: on which devices a model runs, checked by Triton's rules."""

from collections.abc import Sequence
from dataclasses import replace

from vitrail.errors import InvalidArgument
from vitrail_server.kserve.v2 import model_config_pb2 as triton
from vitrail_server.servable import InstanceGroup, InstanceKind

CPU = "CPU:0"

_KINDS: dict[int, InstanceKind] = {
    triton.ModelInstanceGroup.KIND_AUTO: "AUTO",
    triton.ModelInstanceGroup.KIND_CPU: "CPU",
    triton.ModelInstanceGroup.KIND_GPU: "GPU",
}


def read_instances(config: triton.ModelConfig, model: str) -> tuple[InstanceGroup, ...]:
    """Return the instance groups; none: the server chooses.

    Raises:
        InvalidArgument: a group contradicts itself, or asks for what is not supported.

    """
    names: set[str] = set()
    groups = []
    for index, message in enumerate(config.instance_group):
        name = message.name or f"{model}_{index}"
        where = f"instance group {name} of model {model}"
        if name in names:
            raise InvalidArgument(f"{where} is there twice", field="instance_group.name")
        names.add(name)
        groups.append(replace(_group(message, where), name=name))
    return tuple(groups)


def _group(message: triton.ModelInstanceGroup, where: str) -> InstanceGroup:
    if message.kind == triton.ModelInstanceGroup.KIND_MODEL and message.gpus:
        raise InvalidArgument(
            f"{where} has kind KIND_MODEL but specifies one or more GPUs", field="instance_group.gpus"
        )
    kind = _KINDS.get(message.kind)
    if kind is None:
        raise InvalidArgument(
            f"{where} has a kind that is not supported; give KIND_AUTO, KIND_CPU or KIND_GPU",
            field="instance_group.kind",
        )
    if kind == "CPU" and message.gpus:
        raise InvalidArgument(
            f"{where} has kind KIND_CPU but specifies one or more GPUs", field="instance_group.gpus"
        )
    if message.count < 0:
        raise InvalidArgument(
            f"{where} has count {message.count}; it must not be negative", field="instance_group.count"
        )
    if any(gpu < 0 for gpu in message.gpus) or len(set(message.gpus)) < len(message.gpus):
        raise InvalidArgument(
            f"{where} must name each GPU once, by its number, counting from 0", field="instance_group.gpus"
        )
    return InstanceGroup(kind, tuple(message.gpus))


def devices_of(groups: Sequence[InstanceGroup], model: str, gpus: int) -> tuple[str, ...]:
    """Return the devices on which a model runs, by TensorFlow's names, on a machine with so many GPUs.

    Raises:
        InvalidArgument: a group wants a GPU that is not there.

    """
    names: list[str] = []
    for group in groups or (InstanceGroup(),):
        names += _devices_of(group, f"instance group {group.name} of model {model}", gpus)
    return tuple(dict.fromkeys(names))


def _devices_of(group: InstanceGroup, where: str, gpus: int) -> list[str]:
    if group.kind == "CPU" or (group.kind == "AUTO" and not gpus):
        return [CPU]
    if not gpus:
        raise InvalidArgument(
            f"{where} has kind KIND_GPU but no GPUs are available; KIND_AUTO takes the CPU then",
            field="instance_group.kind",
        )
    absent = [gpu for gpu in group.gpus if gpu >= gpus]
    if absent:
        raise InvalidArgument(
            f"{where} specifies GPU {absent[0]}, but the GPUs available are 0 to {gpus - 1}",
            field="instance_group.gpus",
        )
    return [f"GPU:{gpu}" for gpu in group.gpus or range(gpus)]
