"""The machine's description and its cores."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.machine import Cores, choose_cores, describe, pin, processor_seconds, usable_cores


@pytest.mark.parametrize(
    ("usable", "cores"),
    [({0, 1, 2}, Cores(model=2, client=0)), ({3}, Cores(model=3, client=3)), ((), Cores(None, None))],
)
def test_the_client_has_a_core_of_its_own_where_there_are_two(usable: set[int], cores: Cores) -> None:
    assert choose_cores(usable) == cores


def test_the_description_names_neither_the_host_nor_a_path() -> None:
    text = str(describe(Cores(1, 0), {"quick": True}).as_json())

    assert socket.gethostname() not in text
    assert "/home" not in text
    assert str(Path.cwd()) not in text


def test_the_description_is_the_figure_machine() -> None:
    written = describe(Cores(0, 0), {"load_average_before": 0.5}).as_json()

    assert (written["suite"], written["figure"], written["target"]) == ("machine", "machine", None)
    assert written["value"] == os.cpu_count()
    detail = written["detail"]
    assert isinstance(detail, dict)
    assert detail["cores"] == "one for everything"
    assert detail["load_average_before"] == 0.5
    assert detail["versions"]["numpy"]


def test_processor_time_of_a_process_grows_as_it_computes() -> None:
    before = processor_seconds(os.getpid())

    # Unknown on some systems.
    while before is not None and (processor_seconds(os.getpid()) or 0.0) < before + 0.02:
        sum(range(10_000))


def test_a_process_and_its_threads_are_kept_on_cores() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        usable = sorted(usable_cores())
        for cores in (usable, usable[-1:]):
            pin(process.pid, *cores)
            for thread in Path(f"/proc/{process.pid}/task").iterdir():
                assert os.sched_getaffinity(int(thread.name)) == set(cores)
        pin(process.pid, None)
        assert os.sched_getaffinity(process.pid) == {usable[-1]}
        process.communicate(b"\n")
