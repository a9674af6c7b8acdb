"""A real server with the sample repository, started once for the tests here."""

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import vitrail

ROOT = Path(__file__).resolve().parents[2]
STARTUP_SECONDS = 240


@dataclass(frozen=True)
class Served:
    """Where the server answers."""

    address: str
    metrics_url: str


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Run `vitrail-server` on the sample repository until the session ends."""
    log_path = tmp_path_factory.mktemp("server") / "log"
    command = [
        *(sys.executable, "-m", "vitrail_server"),
        *("--model-repository", str(ROOT / "model_repository")),
        *("--grpc-address", "127.0.0.1", "--grpc-port", "0"),
        *("--metrics-address", "127.0.0.1", "--metrics-port", "0"),
    ]
    with log_path.open("w") as log, subprocess.Popen(command, stderr=log) as process:
        try:
            served = _addresses(log_path, process)
            _wait_until_ready(served, process, log_path)
            yield served
        finally:
            process.terminate()
            assert process.wait(60) == 0, log_path.read_text()


@pytest.fixture
def client(served: Served) -> Iterator[vitrail.Client]:
    """A client of the server."""
    with vitrail.Client(served.address) as client:
        yield client


def _addresses(log_path: Path, process: "subprocess.Popen[bytes]") -> Served:
    """Read the ports that the server took from its log."""
    until = time.monotonic() + 60
    while time.monotonic() < until and process.poll() is None:
        text = log_path.read_text()
        rpcs = re.search(r"rpcs on (\S+)", text)
        metrics = re.search(r"metrics on (\S+)", text)
        if rpcs and metrics:
            return Served(rpcs[1], metrics[1])
        time.sleep(0.05)
    raise AssertionError(log_path.read_text())


def _wait_until_ready(served: Served, process: "subprocess.Popen[bytes]", log_path: Path) -> None:
    until = time.monotonic() + STARTUP_SECONDS
    with vitrail.Client(served.address) as client:
        while time.monotonic() < until and process.poll() is None:
            if client.ready(timeout=5):
                return
            time.sleep(0.2)
    raise AssertionError(log_path.read_text())
