"""Arrays to the bytes of the KServe v2 protocol and back: row-major, little-endian, without padding.

BYTES elements are preceded by their length as four bytes. BF16 is the high half of a float32.
"""

import math
import struct
from collections.abc import Iterator

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from vitrail.errors import InvalidArgument
from vitrail_server.servable import DTYPES

WIRE_DTYPES: dict[str, np.dtype[np.generic]] = {
    name: each.newbyteorder("<") for name, each in DTYPES.items()
} | {"BF16": np.dtype(ml_dtypes.bfloat16)}
"""The NumPy type of each datatype on the wire; BYTES has none."""

LENGTH = struct.Struct("<I")


def from_raw(raw: bytes, datatype: str, shape: tuple[int, ...], what: str) -> NDArray[np.generic]:
    """Return the array that the bytes hold, a view of them where that is possible.

    `what` names the input and the model in messages.

    Raises:
        InvalidArgument: more bytes, or fewer, than the shape needs.

    """
    # Python's integers do not overflow, so a product beyond 2**63 simply never matches the data.
    count = math.prod(shape)
    if datatype == "BYTES":
        return _objects(list(_elements(raw, count, what)), shape)
    dtype = WIRE_DTYPES[datatype]
    if len(raw) != count * dtype.itemsize:
        raise InvalidArgument(
            f"input byte size mismatch for {what}. Expected {count * dtype.itemsize}, got {len(raw)}"
        )
    return np.frombuffer(raw, dtype).reshape(shape)


def to_raw(array: NDArray[np.generic]) -> bytes:
    """Return the bytes of an array; one of objects holds bytes or text."""
    if array.dtype == object:
        given: list[str | bytes] = array.ravel().tolist()
        elements = [each.encode() if isinstance(each, str) else each for each in given]
        return b"".join(LENGTH.pack(len(each)) + each for each in elements)
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def from_elements(
    elements: list[bytes] | list[int] | list[float] | list[bool],
    datatype: str,
    shape: tuple[int, ...],
    what: str,
) -> NDArray[np.generic]:
    """Return the array of elements that came one by one.

    Raises:
        InvalidArgument: more elements than the shape has, or fewer, or one that its type cannot hold.

    """
    count = math.prod(shape)
    if len(elements) != count:
        kind = "string elements" if datatype == "BYTES" else "elements"
        raise InvalidArgument(f"expected {count} {kind} for inference {what}, got {len(elements)}")
    if datatype == "BYTES":
        return _objects(elements, shape)
    dtype = WIRE_DTYPES[datatype]
    try:
        return np.array(elements, dtype).reshape(shape)
    except OverflowError:
        raise InvalidArgument(f"{what} has an element that {datatype} cannot hold") from None


def _objects(
    elements: list[object] | list[bytes] | list[int] | list[float] | list[bool], shape: tuple[int, ...]
) -> NDArray[np.generic]:
    array = np.empty(len(elements), object)
    array[:] = elements
    return array.reshape(shape)


def _elements(raw: bytes, count: int, what: str) -> Iterator[bytes]:
    """Yield the elements of a BYTES tensor, of which there must be `count`."""
    found, start = 0, 0
    while start < len(raw):
        if len(raw) - start < LENGTH.size:
            raise InvalidArgument(
                f"incomplete string length indicator for inference {what}, expecting {LENGTH.size} bytes but "
                f"only {len(raw) - start} bytes available"
            )
        (length,) = LENGTH.unpack_from(raw, start)
        start += LENGTH.size
        if len(raw) - start < length:
            raise InvalidArgument(
                f"incomplete string data for inference {what}, expecting string of length {length} but only "
                f"{len(raw) - start} bytes available"
            )
        found += 1
        if found <= count:
            yield raw[start : start + length]
        start += length
    if found != count:
        raise InvalidArgument(f"expected {count} string elements for inference {what}, got {found}")
