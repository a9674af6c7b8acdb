"""What the process does with memory that is freed: asked of glibc itself, in processes of their own."""

import subprocess
import sys

FAULTS = """
import ctypes, resource, sys
from vitrail_server.savedmodel.memory import keep_freed_memory, release_memory

if sys.argv[1] == "kept":
    keep_freed_memory()
library = ctypes.CDLL(None)
library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
library.free.argtypes = [ctypes.c_void_p]
library.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]

def batch():
    pieces = [library.malloc(12 << 20) for _ in range(5)]
    for piece in pieces:
        library.memset(piece, 1, 12 << 20)
    for piece in pieces:
        library.free(piece)

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

batch()
batch()
before = faults()
for _ in range(10):
    batch()
print(faults() - before)
release_memory()
before = faults()
batch()
print(faults() - before)
"""
"""Prints the page faults of ten batches that need 60 MiB each, and of one after all memory was released."""


def faults(how: str) -> tuple[int, int]:
    command = [sys.executable, "-c", FAULTS, how]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    repeated, after_release = (int(line) for line in text.splitlines())
    return repeated, after_release


def test_what_one_batch_frees_the_next_one_uses_and_an_unload_gives_it_back() -> None:
    kept, after_release = faults("kept")
    assert kept < 100
    assert after_release > 100
    assert faults("by default")[0] > 100
