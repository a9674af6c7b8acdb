import io
import pickle
import struct
import sys
from collections import OrderedDict
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest

from sample_models.torch_weights import MAGIC_NUMBER, PROTOCOL, read_state_dictionary


class Storage(NamedTuple):
    """A storage as torch pickles it: by reference, its values after the pickles."""

    kind: object
    key: str
    values: np.ndarray


class Tensor(NamedTuple):
    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        rebuild = sys.modules["torch._utils"]._rebuild_tensor_v2
        return rebuild, (self.storage, self.offset, self.shape, self.stride, False, OrderedDict())


class Pickler(pickle.Pickler):
    def persistent_id(self, value: object) -> object:
        if isinstance(value, Storage):
            return ("storage", value.kind, value.key, "cpu", value.values.size, None)
        return None


@pytest.fixture(autouse=True)
def torch(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Names for the writer below to refer to; the reader must not import them."""
    torch, utils = ModuleType("torch"), ModuleType("torch._utils")
    for module, name in ((torch, "FloatStorage"), (torch, "LongStorage"), (utils, "_rebuild_tensor_v2")):
        setattr(module, name, type(name, (), {"__module__": module.__name__}))
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return torch


def written(
    tensors: object,
    storages: list[Storage],
    *,
    magic_number: int = MAGIC_NUMBER,
    protocol: int = PROTOCOL,
    little_endian: bool = True,
) -> io.BytesIO:
    """Write a stream as torch.save did before 1.6."""
    stream = io.BytesIO()
    keys = [storage.key for storage in storages]
    for value in (magic_number, protocol, {"little_endian": little_endian}, tensors, keys):
        Pickler(stream, 2).dump(value)
    for storage in storages:
        stream.write(struct.pack("<q", storage.values.size) + storage.values.tobytes())
    stream.seek(0)
    return stream


@pytest.fixture
def floats(torch: ModuleType) -> Storage:
    return Storage(torch.FloatStorage, "7", np.arange(6, dtype="<f4"))


def test_reads_tensors_that_view_storages(torch: ModuleType, floats: Storage) -> None:
    counts = Storage(torch.LongStorage, "8", np.array([5], "<i8"))
    tensors = {
        "rows": Tensor(floats, 0, (2, 3), (3, 1)),
        "columns": Tensor(floats, 0, (2, 3), (1, 2)),
        "tail": Tensor(floats, 4, (2,), (1,)),
        "count": Tensor(counts, 0, (), ()),
    }

    state = read_state_dictionary(written(OrderedDict(tensors), [floats, counts]))

    assert list(state) == ["rows", "columns", "tail", "count"]
    np.testing.assert_array_equal(state["rows"], [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(state["columns"], [[0, 2, 4], [1, 3, 5]])
    np.testing.assert_array_equal(state["tail"], [4, 5])
    assert state["count"] == 5
    assert state["count"].dtype == np.int64


def test_runs_no_code_of_the_file(floats: Storage) -> None:
    class Attack:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return exec, ("raise SystemExit('code of the file ran')",)

    with pytest.raises(pickle.UnpicklingError, match=r"builtin\w*\.exec; it may hold only tensors"):
        read_state_dictionary(written(OrderedDict(weights=Attack()), [floats]))


@pytest.mark.parametrize(
    ("offset", "shape", "stride"),
    [(0, (7,), (1,)), (5, (2,), (1,)), (-1, (2,), (1,)), (0, (2, 3), (4, 1)), (5, (3,), (-1,))],
)
def test_refuses_a_tensor_that_leaves_its_storage(
    floats: Storage, offset: int, shape: tuple[int, ...], stride: tuple[int, ...]
) -> None:
    stream = written(OrderedDict(weights=Tensor(floats, offset, shape, stride)), [floats])

    with pytest.raises(pickle.UnpicklingError, match="leaves its storage"):
        read_state_dictionary(stream)


def test_refuses_a_storage_of_another_size(floats: Storage) -> None:
    stream = written(
        OrderedDict(weights=Tensor(floats, 0, (6,), (1,))), [floats._replace(values=floats.values[:5])]
    )

    with pytest.raises(pickle.UnpicklingError, match="holds 5 values where 6 were announced"):
        read_state_dictionary(stream)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"magic_number": 1}, "starts with 1"),
        ({"protocol": 1002}, "protocol 1002; only 1001"),
        ({"little_endian": False}, "big-endian"),
    ],
)
def test_refuses_other_formats(header: dict[str, Any], message: str) -> None:
    with pytest.raises(pickle.UnpicklingError, match=message):
        read_state_dictionary(written(OrderedDict(), [], **header))
