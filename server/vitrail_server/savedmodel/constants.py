"""Constants of a graph as tensors, without a second copy of them.

What TensorFlow's own allocator is given it keeps for good, and making a tensor of an array copies it into
that. An array that begins where TensorFlow wants it can be the tensor's memory itself; it goes when both do.
"""

import mmap
import os
import sys
from contextlib import suppress
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

Tensor: TypeAlias = Any
"""A tf.Tensor; TensorFlow carries no types."""

ALIGNMENT = 64
"""Bytes. TensorFlow computes with memory that begins at a multiple of it."""

SHARED_KINDS = frozenset("biufc")
"""NumPy's kinds of numbers whose memory it can hand on."""


def tensor_of(value: NDArray[Any]) -> Tensor:
    """Return a constant as a tensor on the device of the calling thread; the array must never change.

    On the CPU it is the array's own memory, if that may be written to and is aligned.
    """
    if value.dtype == tf.bfloat16.as_numpy_dtype:
        return tf.bitcast(tensor_of(value.view(np.uint16)), tf.bfloat16)
    flags = value.flags
    fits = flags.c_contiguous and flags.writeable and value.size and not value.ctypes.data % ALIGNMENT
    if not fits or value.dtype.kind not in SHARED_KINDS or not tf.constant(0).device.endswith("CPU:0"):
        return tf.constant(value)
    return tf.experimental.dlpack.from_dlpack(value.__dlpack__())


def read_block(file: BinaryIO) -> NDArray[np.uint8]:
    """Return all bytes of a file, aligned, as memory that the system gets back as soon as nobody uses it."""
    size = file.seek(0, os.SEEK_END)
    if not size:
        return np.empty(0, np.uint8)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if sys.platform == "linux":
        with suppress(OSError):  # a system without huge pages
            # A batch reads all weights, and in pages of 4 KiB it looks up every one of them.
            memory.madvise(mmap.MADV_HUGEPAGE)
    block = np.frombuffer(memory, np.uint8)
    file.seek(0)
    read = 0
    while read < size:
        more = file.readinto(block.data[read:])  # type: ignore[attr-defined]  # files that are read have it
        if not more:
            raise EOFError(f"a file of {size} bytes ended after {read}")
        read += more
    return block
