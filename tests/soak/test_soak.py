"""The soak's own sums, and a short one: `scripts/soak` is the long one."""

import subprocess
import sys
from pathlib import Path

import pytest

from soak.__main__ import Cycle, growth, slowdown

TESTS = Path(__file__).parents[1]


def found(*resident: int, seconds: float = 1.0) -> list[Cycle]:
    return [Cycle(1.0, seconds, each) for each in resident]


def test_growth_is_counted_after_the_beginning() -> None:
    assert growth(found(*range(0, 500, 100), *[500] * 95)) == 0
    assert growth(found(*[500] * 50, *[600] * 50)) == 100
    assert growth(found(*range(100))) == pytest.approx(80, abs=1)


def test_slowness_is_counted_after_the_beginning() -> None:
    assert slowdown(found(*[0] * 10, seconds=9) + found(*[0] * 90, seconds=1)) == 1
    assert slowdown(found(*[0] * 50, seconds=1) + found(*[0] * 50, seconds=3)) == 3


def test_a_few_cycles_leave_the_memory_where_it_was() -> None:
    done = subprocess.run(  # a process of its own, in which nothing else comes and goes
        [sys.executable, "-m", "soak", "--cycles", "6"],
        cwd=TESTS,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("6 cycles: resident memory ")
