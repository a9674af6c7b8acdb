"""The examples of docs/clients/triton.md run as they are, but for the server's address."""

import re
import subprocess
import sys

import pytest

from integration.conftest import ROOT, Served

PAGE = (ROOT / "docs" / "clients" / "triton.md").read_text("utf-8")
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(
    ("example", "prints"),
    [(0, r"0\.\d{6}:\d+:[\w ]+"), (1, r"\[b'espresso'\] \[0\.9\d+\] \(1, 224, 224\)")],
)
def test_an_example_runs(served: Served, example: int, prints: str) -> None:
    code = EXAMPLES[example].replace("localhost:8001", served.address)
    assert code != EXAMPLES[example]
    assert len(code.splitlines()) <= 11

    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)

    assert done.returncode == 0, done.stderr
    assert re.search(prints, done.stdout), done.stdout


def test_there_are_no_other_examples() -> None:
    assert len(EXAMPLES) == 2
