"""Gives memory back to the operating system after an unload, and tells how much is in use.

TensorFlow's graphs and Python's functions refer to each other in circles, so nothing is freed before the
garbage collector has run; and glibc keeps what was freed until it is told not to.
"""

import ctypes
import gc
import resource
from pathlib import Path

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""What glibc's malloc.h calls the two options."""

KEPT_BYTES = 256 << 20
"""Free memory at the end of the heap that is kept; an unload gives all of it back."""

LARGEST_KEPT = 32 << 20
"""The largest piece that can be kept: glibc allows no more."""


def leave_imports_alone() -> None:
    """Let no later collection look at what exists now: modules, which stay for good.

    TensorFlow's are so many that looking at them takes half a second, in which no other thread runs.
    """
    gc.collect()
    gc.freeze()


def keep_freed_memory() -> None:
    """Let glibc keep what is freed for the next batch or message, up to `KEPT_BYTES`; elsewhere do nothing.

    It would give memory back and ask for it again in every batch and for every image, and the system hands
    out each page of it with a fault: up to 1 ms for an image of 600 KB.
    """
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    set_option(M_TRIM_THRESHOLD, KEPT_BYTES)
    set_option(M_MMAP_THRESHOLD, LARGEST_KEPT)


def resident_bytes() -> int:
    """Return the memory of this process that is in use; 0 where the system does not tell."""
    try:
        pages = Path("/proc/self/statm").read_text("ascii").split()[1]
    except (OSError, IndexError):
        return 0
    return int(pages) * resource.getpagesize()


def settled_bytes() -> int:
    """Return the memory in use after what is not needed was released; 0 where the system does not tell."""
    release_memory()
    return resident_bytes()


def release_memory() -> None:
    """Collect garbage and return free heap pages; the second step does nothing without glibc."""
    gc.collect()
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):  # musl, macOS and Windows have no such function
        return
    trim(0)
