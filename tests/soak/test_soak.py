"""The soak's own sums, and a short one: `scripts/soak` is the long one."""

import subprocess
import sys
from pathlib import Path

import pytest

from soak.__main__ import Cycle, growth, slowdowns

TESTS = Path(__file__).parents[1]


def found(*resident: int, seconds: float = 1.0) -> list[Cycle]:
    return [Cycle(1.0, {"refusal": 1.0, "gradient": seconds}, each) for each in resident]


def test_growth_is_counted_after_the_beginning() -> None:
    assert growth(found(*range(0, 500, 100), *[500] * 95)) == 0
    assert growth(found(*[500] * 50, *[600] * 50)) == 100
    assert growth(found(*range(100))) == pytest.approx(80, abs=1)


def test_slowness_is_counted_after_the_beginning() -> None:
    of_beginning = found(*[0] * 10, seconds=9) + found(*[0] * 90, seconds=1)
    assert slowdowns(of_beginning) == {"refusal": 1, "gradient": 1}
    of_end = found(*[0] * 50, seconds=1) + found(*[0] * 50, seconds=3)
    assert slowdowns(of_end) == {"refusal": 1, "gradient": 3}


def test_a_few_cycles_leave_the_memory_where_it_was() -> None:
    done = soak("--cycles", "6", "--slowest", "inf")
    assert done.returncode == 0, done.stdout + done.stderr
    first, *others = done.stdout.splitlines()
    assert first.startswith("6 cycles: resident memory ")
    assert [each.partition(":")[0] for each in others] == ["refusal", "inference", "gradient", "occlusion"]


def test_what_slows_down_is_a_failure() -> None:
    """No request takes none of the time that it took before."""
    assert soak("--cycles", "1", "--slowest", "0").returncode == 1


def soak(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run it in a process of its own, in which nothing else comes and goes."""
    command = [sys.executable, "-m", "soak", *arguments]
    return subprocess.run(command, cwd=TESTS, capture_output=True, text=True, check=False)
