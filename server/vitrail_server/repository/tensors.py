"""Triton's names of datatypes, as in a configuration, and ours, as in a TensorSpec."""

from vitrail.errors import InvalidArgument
from vitrail_server.kserve.v2 import model_config_pb2 as triton


def triton_type(datatype: str) -> str:
    """Return the name in a configuration."""
    return "TYPE_" + ("STRING" if datatype == "BYTES" else datatype)


def datatype_of(value: int, where: str, field: str) -> str:
    """Return the name in a TensorSpec; empty for TYPE_INVALID, which is unset.

    Raises:
        InvalidArgument: there is no such type.

    """
    if value == triton.TYPE_INVALID:
        return ""
    if value not in triton.DataType.values():
        raise InvalidArgument(
            f"{where}: 'data_type' {value} is not one of {', '.join(triton.DataType.keys()[1:])}", field=field
        )
    name = triton.DataType.Name(triton.DataType.ValueType(value)).removeprefix("TYPE_")
    return "BYTES" if name == "STRING" else name
