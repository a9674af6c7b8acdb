"""The `instance_group` of a config.pbtxt: on which devices a model runs, checked by Triton's rules."""

from vitrail.errors import InvalidArgument
from vitrail_server.kserve.v2 import model_config_pb2 as triton
from vitrail_server.servable import InstanceGroup, InstanceKind

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
        groups.append(_group(message, where))
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
        raise InvalidArgument(f"{where} has count {message.count}", field="instance_group.count")
    if any(gpu < 0 for gpu in message.gpus) or len(set(message.gpus)) < len(message.gpus):
        raise InvalidArgument(
            f"{where} must name each GPU once, by its number, counting from 0", field="instance_group.gpus"
        )
    return InstanceGroup(kind, message.count or 1, tuple(message.gpus))
