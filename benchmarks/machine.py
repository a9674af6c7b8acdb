"""The machine: its cores, who may use which, and a description for the report without names or paths."""

import os
import platform
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks.figures import Detail, Figure, rounded

PACKAGES = ("vitrail", "tensorflow-cpu", "tensorflow", "keras", "numpy", "grpcio", "protobuf")
"""Packages whose versions are reported, where they are installed."""

VECTOR_EXTENSIONS = ("avx", "avx2", "fma", "avx512f", "avx512_bf16", "amx_tile", "asimd", "sve")
"""What decides how fast a core multiplies matrices; the names of /proc/cpuinfo."""


@dataclass(frozen=True, slots=True)
class Cores:
    """Which core computes and which one asks. None: processes cannot be pinned on this system."""

    model: int | None
    """The server's core, and that of the raw side: never at the same time."""
    client: int | None


def usable_cores() -> frozenset[int]:
    """Return the cores that this process may use; none where processes cannot be pinned."""
    return frozenset(os.sched_getaffinity(0)) if sys.platform == "linux" else frozenset()


def choose_cores(usable: Collection[int]) -> Cores:
    """Return two different cores, or one twice where there is only one."""
    return Cores(model=max(usable, default=None), client=min(usable, default=None))


def pin(process: int, *cores: int | None) -> None:
    """Keep a process, all its threads and all that they will start, on these cores."""
    known = {core for core in cores if core is not None}
    if sys.platform == "linux" and known:
        for thread in Path(f"/proc/{process}/task").iterdir():
            os.sched_setaffinity(int(thread.name), known)


def processor_seconds(process: int) -> float | None:
    """Return the seconds of processor time that a process has used; None where the system does not say."""
    if sys.platform != "linux":
        return None
    # The name, in brackets, may hold spaces; after it the fields are counted from 3 on.
    _, _, fields = Path(f"/proc/{process}/stat").read_text("ascii").rpartition(") ")
    user, system = fields.split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def peak_growth(process: int, work: Callable[[], object]) -> int | None:
    """Return how many bytes the memory of a process grew at most while `work` ran.

    None where the system does not say.
    """
    if sys.platform != "linux":
        return None
    Path(f"/proc/{process}/clear_refs").write_text("5", "ascii")  # the peak is the present from now on
    before = _status_bytes(process, "VmRSS")
    work()
    return _status_bytes(process, "VmHWM") - before


def _status_bytes(process: int, field: str) -> int:
    text = Path(f"/proc/{process}/status").read_text("ascii")
    return next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith(f"{field}:"))


def describe(cores: Cores, detail: Detail) -> Figure:
    """Return the machine as a figure whose value is the number of its processors.

    `detail` is what else is known of it.
    """
    facts = _cpu_facts()
    return Figure(
        suite="machine",
        name="machine",
        model="",
        value=os.cpu_count() or 1,
        unit="processors",
        detail={
            "cpu": facts.get("model name", platform.processor() or "unknown"),
            "vector_extensions": [
                each
                for each in VECTOR_EXTENSIONS
                if each in facts.get("flags", facts.get("Features", "")).split()
            ],
            "threads_per_core": _threads_per_core(),
            "cores": (
                "one for the server and the raw side in turn, another one for the client"
                if cores.model != cores.client
                else "not pinned"
                if cores.model is None
                else "one for everything"
            ),
            "tensorflow_threads": "intra-op 1, inter-op 1",
            "system": f"{platform.system()} {platform.machine()}",
            "python": platform.python_version(),
            "versions": {name: found for name in PACKAGES if (found := _version(name))},
            "load_average_after": load_average(),
            **detail,
        },
    )


def load_average() -> float:
    """Return how many processes of the whole machine wanted to run, over the last minute."""
    return rounded(os.getloadavg()[0]) if hasattr(os, "getloadavg") else 0.0


def _cpu_facts() -> dict[str, str]:
    """Return what /proc/cpuinfo says of the first processor."""
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.partition("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _threads_per_core() -> int | None:
    try:
        siblings = Path("/sys/devices/system/cpu/cpu0/topology/thread_siblings").read_text("ascii")
    except OSError:
        return None
    return int(siblings.replace(",", ""), 16).bit_count()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
