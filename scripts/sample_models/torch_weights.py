"""Reads the weights in a legacy torch.save stream with numpy alone.

The format predates torch 1.6: five pickles (magic number, protocol, system information, the state
dictionary, the storage keys), then for each key an element count and its raw little-endian values.
The state dictionary is unpickled with an allow-list of four names, so a file can hold tensors and
nothing else: any other name in it is an error and no code of the file is ever run.
"""

import pickle
import struct
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import IO, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001


def read_state_dictionary(stream: IO[bytes]) -> Mapping[str, NDArray[Any]]:
    """Return the tensors of a state dictionary by name.

    Raises pickle.UnpicklingError when the stream is not in this format or names anything but tensors.
    """
    if (magic_number := _Reader(stream).load()) != MAGIC_NUMBER:
        raise pickle.UnpicklingError(
            f"the stream starts with {magic_number!r}; a legacy torch.save stream was expected"
        )
    if (protocol := _Reader(stream).load()) != PROTOCOL:
        raise pickle.UnpicklingError(f"the stream has protocol {protocol!r}; only {PROTOCOL} can be read")
    if not _Reader(stream).load()["little_endian"]:
        raise pickle.UnpicklingError("the stream is big-endian; only little-endian values can be read")
    reader = _Reader(stream)
    tensors: Mapping[str, _Tensor] = reader.load()
    for key in _Reader(stream).load():
        reader.storages[key].read(stream)
    return {name: tensor.to_array() for name, tensor in tensors.items()}


class _Storage:
    """The flat values that one or several tensors view; filled after the pickles were read."""

    def __init__(self, dtype: np.dtype[Any], size: int) -> None:
        self.size = size
        self.values = np.empty(0, dtype)

    def read(self, stream: IO[bytes]) -> None:
        (count,) = struct.unpack("<q", stream.read(8))
        if count != self.size:
            raise pickle.UnpicklingError(f"a storage holds {count} values where {self.size} were announced")
        data = stream.read(count * self.values.itemsize)
        self.values = np.frombuffer(data, self.values.dtype, count)


class _Tensor:
    """A view of a storage, as torch._utils._rebuild_tensor_v2 would build it."""

    def __init__(
        self,
        storage: _Storage,
        offset: int,
        shape: Sequence[int],
        stride: Sequence[int],
        *_gradient_state: object,
    ) -> None:
        self.storage, self.offset, self.shape, self.stride = storage, offset, shape, stride

    def to_array(self) -> NDArray[Any]:
        last = self.offset + sum(
            (size - 1) * step for size, step in zip(self.shape, self.stride, strict=True)
        )
        if min((self.offset, *self.stride)) < 0 or last >= self.storage.size:
            raise pickle.UnpicklingError(
                f"a tensor of shape {self.shape}, strides {self.stride}, leaves its storage"
            )
        values = self.storage.values[self.offset :]
        strides = [step * values.itemsize for step in self.stride]
        return np.ascontiguousarray(np.lib.stride_tricks.as_strided(values, self.shape, strides))


class _Reader(pickle.Unpickler):
    """An unpickler that knows tensors and ordered dictionaries, and refuses every other name."""

    ALLOWED: ClassVar[Mapping[tuple[str, str], Any]] = {
        ("collections", "OrderedDict"): OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): _Tensor,
        ("torch", "FloatStorage"): np.dtype("<f4"),
        ("torch", "LongStorage"): np.dtype("<i8"),
    }

    def __init__(self, stream: IO[bytes]) -> None:
        super().__init__(stream)
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self.ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"the file names {module}.{name}; it may hold only tensors"
            ) from None

    def persistent_load(self, identifier: tuple[str, np.dtype[Any], str, str, int, object]) -> _Storage:
        kind, dtype, key, _device, size, view = identifier
        if kind != "storage" or view is not None:
            raise pickle.UnpicklingError(f"the file refers to a {kind!r}; only whole storages can be read")
        return self.storages.setdefault(key, _Storage(dtype, size))
