"""Gives memory back to the operating system after an unload.

TensorFlow's graphs and Python's functions refer to each other in circles, so nothing is freed before the
garbage collector has run; and glibc keeps what was freed until it is told not to.
"""

import ctypes
import gc


def release_memory() -> None:
    """Collect garbage and return free heap pages; the second step does nothing without glibc."""
    gc.collect()
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):  # musl, macOS and Windows have no such function
        return
    trim(0)
