"""NumPy arrays to `vitrail.v1.Tensor` messages and back, checked before anything is allocated."""

import math

import numpy as np
from numpy.typing import NDArray

from vitrail.errors import InvalidArgument
from vitrail.v1.tensor_pb2 import DataType, Tensor

DTYPES: dict[DataType.ValueType, np.dtype[np.generic]] = {
    DataType.DATA_TYPE_BOOL: np.dtype("?"),
    DataType.DATA_TYPE_UINT8: np.dtype("<u1"),
    DataType.DATA_TYPE_UINT16: np.dtype("<u2"),
    DataType.DATA_TYPE_UINT32: np.dtype("<u4"),
    DataType.DATA_TYPE_UINT64: np.dtype("<u8"),
    DataType.DATA_TYPE_INT8: np.dtype("<i1"),
    DataType.DATA_TYPE_INT16: np.dtype("<i2"),
    DataType.DATA_TYPE_INT32: np.dtype("<i4"),
    DataType.DATA_TYPE_INT64: np.dtype("<i8"),
    DataType.DATA_TYPE_FP16: np.dtype("<f2"),
    DataType.DATA_TYPE_FP32: np.dtype("<f4"),
    DataType.DATA_TYPE_FP64: np.dtype("<f8"),
}
"""The NumPy type of each data type on the wire; the one list of them."""

MAX_RANK = 8
"""The most dimensions a tensor may have."""


def to_tensor(array: NDArray[np.generic], field: str = "") -> Tensor:
    """Return the message that carries `array`; arguments and errors are those of `write_tensor`."""
    tensor = Tensor()
    write_tensor(tensor, array, field)
    return tensor


def write_tensor(tensor: Tensor, array: NDArray[np.generic], field: str = "") -> None:
    """Let a new message carry `array`, of any shape and any type in `DTYPES`.

    In place, because a message with an image in it is copied whole wherever it becomes part of another.
    `field` is the tensor's path in the request, for messages; empty where there is none.

    Raises:
        InvalidArgument: the array's type has no counterpart on the wire.

    """
    tensor.data = bytes(write_layout(tensor, array, field))


def write_layout(tensor: Tensor, array: NDArray[np.generic], field: str = "") -> memoryview:
    """Let a new message say what `array` is, and return what its data would be: not copied if possible.

    Arguments and errors are those of `write_tensor`.
    """
    wanted = array.dtype.newbyteorder("<")
    for data_type, dtype in DTYPES.items():
        if dtype == wanted:
            tensor.data_type = data_type
            tensor.shape.extend(array.shape)
            return np.ascontiguousarray(array, dtype).reshape(-1).view(np.uint8).data
    raise InvalidArgument(
        f"{field or 'the array'} is of type {array.dtype}, which cannot be sent; use one of {_names()}",
        field=field,
    )


def from_tensor(tensor: Tensor, field: str) -> NDArray[np.generic]:
    """Return a read-only view of the array that `tensor` carries.

    `field` is the tensor's path in the request, for messages.

    Raises:
        InvalidArgument: unknown type, a size below 1, too many dimensions, or data of the wrong length.

    """
    dtype, size = layout(tensor, field)
    data = tensor.data  # once: every look at it copies it
    if len(data) != size:
        raise InvalidArgument(
            f"{field}.data has {len(data)} bytes, but shape {list(tensor.shape)} of {dtype.name} "
            f"needs {size}",
            field=f"{field}.data",
        )
    return np.frombuffer(data, dtype).reshape(tuple(tensor.shape))


def layout(tensor: Tensor, field: str) -> tuple[np.dtype[np.generic], int]:
    """Return the element type of `tensor` and the bytes its shape needs, whatever data it holds.

    Raises:
        InvalidArgument: unknown type, a size below 1, or too many dimensions.

    """
    dtype = DTYPES.get(tensor.data_type)
    if dtype is None:
        raise InvalidArgument(
            f"{field}.data_type is {_name(tensor.data_type)}; use one of {_names()}",
            field=f"{field}.data_type",
        )
    if len(tensor.shape) > MAX_RANK:
        raise InvalidArgument(
            f"{field}.shape has {len(tensor.shape)} dimensions; at most {MAX_RANK} are possible",
            field=f"{field}.shape",
        )
    if any(size < 1 for size in tensor.shape):
        raise InvalidArgument(
            f"{field}.shape is {list(tensor.shape)}; every size must be at least 1", field=f"{field}.shape"
        )
    # Python's integers do not overflow, so a product beyond 2**63 simply never matches the data.
    return dtype, math.prod(tensor.shape) * dtype.itemsize


def _name(data_type: DataType.ValueType) -> str:
    return DataType.Name(data_type) if data_type in DataType.values() else str(data_type)


def _names() -> str:
    return ", ".join(DataType.Name(data_type) for data_type in DTYPES)
