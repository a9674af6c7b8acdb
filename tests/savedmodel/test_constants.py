"""Constants as tensors: one memory where that is possible, the same numbers everywhere."""

import gc
import io
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray

from vitrail_server.savedmodel.constants import ALIGNMENT, read_block, tensor_of


def block_of(path: Path, size: int) -> NDArray[np.uint8]:
    path.write_bytes(np.random.default_rng(0).bytes(size))
    with path.open("rb") as file:
        return read_block(file)


def memory_of(tensor: Any) -> NDArray[Any]:
    return np.asarray(memoryview(tf.bitcast(tensor, tf.uint16) if tensor.dtype == tf.bfloat16 else tensor))


@pytest.mark.parametrize("dtype", [np.float32, np.int64, np.uint8, np.complex64, tf.bfloat16.as_numpy_dtype])
def test_an_aligned_constant_is_the_memory_of_its_tensor(tmp_path: Path, dtype: Any) -> None:
    value = block_of(tmp_path / "file", 512)[ALIGNMENT : 2 * ALIGNMENT].view(dtype)
    tensor = tensor_of(value)
    assert tensor.dtype == tf.as_dtype(dtype)
    assert tensor.numpy().tobytes() == value.tobytes()
    assert np.shares_memory(memory_of(tensor), value)


def test_what_tensorflow_cannot_compute_with_is_copied(tmp_path: Path) -> None:
    block = block_of(tmp_path / "file", 512)
    read_only = block[:64].view(np.float32)
    read_only.flags.writeable = False
    for value in (
        block[4:68].view(np.float32),
        block[:64].view(np.float32)[::2],
        block[:0].view(np.float32),
        read_only,
    ):
        tensor = tensor_of(value)
        assert tensor.numpy().tobytes() == value.tobytes()
        assert not np.shares_memory(memory_of(tensor), block)
    assert tensor_of(np.array([b"text"], object)).numpy().tolist() == [b"text"]


def test_memory_goes_with_the_last_tensor_that_uses_it(tmp_path: Path) -> None:
    block = block_of(tmp_path / "file", 512)
    one, other = tensor_of(block[:64].view(np.float32)), tensor_of(block[64:128])
    expected = block[64:128].tolist()
    base: Any = block.base
    gone = weakref.ref(base.obj if isinstance(base, memoryview) else base)
    del block, base, one
    gc.collect()
    assert gone() is not None
    assert other.numpy().tolist() == expected
    del other
    gc.collect()
    assert gone() is None


def test_a_file_is_read_whole_from_its_beginning_and_aligned(tmp_path: Path) -> None:
    path = tmp_path / "file"
    content = np.random.default_rng(0).bytes(3_000_001)
    path.write_bytes(content)
    with path.open("rb") as file:
        file.seek(77)
        block = read_block(file)
    assert block.tobytes() == content
    assert block.ctypes.data % ALIGNMENT == 0
    assert read_block(io.BytesIO()).size == 0


def test_a_file_that_is_read_in_pieces_or_ends_early() -> None:
    class Pieces(io.BytesIO):
        def readinto(self, buffer: Any) -> int:
            return super().readinto(buffer[:7])

    class Short(Pieces):
        def seek(self, offset: int, whence: int = 0) -> int:
            return super().seek(offset, whence) + (whence == io.SEEK_END)

    content = bytes(range(100))
    assert read_block(Pieces(content)).tobytes() == content
    with pytest.raises(EOFError, match="a file of 101 bytes ended after 100"):
        read_block(Short(content))


def test_weights_are_in_huge_pages_where_the_system_has_them(tmp_path: Path) -> None:
    block = block_of(tmp_path / "file", 4 << 20)
    assert ("hg" in flags_of(block.ctypes.data)) == Path("/sys/kernel/mm/transparent_hugepage").is_dir()


def flags_of(address: int) -> list[str]:
    """Return what Linux says of the memory at an address; see VmFlags in proc(5)."""
    inside = False
    for line in Path("/proc/self/smaps").read_text("ascii").splitlines():
        head, *rest = line.split()
        if "-" in head:
            first, last = (int(each, 16) for each in head.split("-"))
            inside = first <= address < last
        elif inside and head == "VmFlags:":
            return rest
    raise LookupError(f"nothing is mapped at {address:#x}")
