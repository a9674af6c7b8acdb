"""Gives memory back to the operating system after an unload.

TensorFlow's graphs and Python's functions refer to each other in circles, so nothing is freed before the
garbage collector has run; and glibc keeps what was freed until it is told not to.
"""

import ctypes
import gc
import resource
from pathlib import Path


def leave_imports_alone() -> None:
    """Let no later collection look at what exists now: modules, which stay for good.

    TensorFlow's are so many that looking at them takes half a second, in which no other thread runs.
    """
    gc.collect()
    gc.freeze()


def resident_bytes() -> int:
    """Return the memory of this process that is in use; 0 where the system does not tell."""
    try:
        pages = Path("/proc/self/statm").read_text("ascii").split()[1]
    except (OSError, IndexError):
        return 0
    return int(pages) * resource.getpagesize()


def release_memory() -> None:
    """Collect garbage and return free heap pages; the second step does nothing without glibc."""
    gc.collect()
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):  # musl, macOS and Windows have no such function
        return
    trim(0)
