"""The processes of these tests: a real `vitrail-server` and a real Prometheus that scrapes it.

Both are stopped by their process when the block ends, and killed if they do not stop.
"""

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import vitrail

ROOT = Path(__file__).parents[2]
DEPLOYED = ROOT / "deploy" / "prometheus"
HOST = "127.0.0.1"
STARTUP_SECONDS = 90.0
"""How long a process may take until it answers, the loading of two small models included."""


@dataclass(frozen=True)
class Vitrail:
    """A running server."""

    target: str
    metrics: str
    """HOST:PORT where it is scraped."""


@dataclass(frozen=True)
class Series:
    """One series of a query's answer."""

    labels: dict[str, str]
    values: list[tuple[float, float]]
    """(time, value), in the order of time."""


class Prometheus:
    """A running Prometheus, asked over its API."""

    def __init__(self, address: str) -> None:
        self._url = f"http://{address}/api/v1"

    def range(self, expression: str, begin: float, end: float, step: float = 1.0) -> list[Series]:
        """Return what an expression was at each step."""
        data = self._get("query_range", query=expression, start=begin, end=end, step=step)
        return [
            Series(each["metric"], [(float(at), float(value)) for at, value in each["values"]])
            for each in data["result"]
        ]

    def now(self, expression: str) -> list[Series]:
        """Return what an expression is."""
        data = self._get("query", query=expression)
        return [
            Series(each["metric"], [(float(each["value"][0]), float(each["value"][1]))])
            for each in data["result"]
        ]

    def rules(self) -> list[dict[str, Any]]:
        """Return every rule that is loaded, with its health and, for an alert, its state."""
        return [rule for group in self._get("rules")["groups"] for rule in group["rules"]]

    def wait_until(self, holds: Callable[[], bool], seconds: float, what: str) -> None:
        """Return when `holds` is true, which is asked as often as Prometheus scrapes."""
        end = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < end, f"Prometheus did not show within {seconds:g} s: {what}"
            time.sleep(0.5)

    def _get(self, path: str, **parameters: object) -> Any:
        with urlopen(f"{self._url}/{path}?{urlencode(parameters)}", timeout=30) as answer:
            answered = json.load(answer)
        assert answered["status"] == "success", answered
        return answered["data"]


@contextmanager
def vitrail_server(repository: Path, *options: str) -> Iterator[Vitrail]:
    """Run a server whose models are loaded, well or not."""
    grpc_port, metrics_port = free_port(), free_port()
    command = [
        *(sys.executable, "-m", "vitrail_server", "--model-repository", str(repository)),
        *("--grpc-address", HOST, "--grpc-port", str(grpc_port)),
        *("--metrics-address", HOST, "--metrics-port", str(metrics_port)),
        *options,
    ]
    with process(command, repository.parent / "server.log") as running:
        with vitrail.Client(f"{HOST}:{grpc_port}") as client:

            def ready() -> bool:
                try:
                    return client.ready(timeout=1)
                except vitrail.VitrailError:
                    return False  # its port is not open yet

            wait_for(ready, running)
        yield Vitrail(f"{HOST}:{grpc_port}", f"{HOST}:{metrics_port}")


@contextmanager
def prometheus_server(directory: Path, target: str) -> Iterator[Prometheus]:
    """Run Prometheus with the configuration and rules of deploy/, at one target and once a second."""
    configuration = shutil.copytree(DEPLOYED, directory / "prometheus") / "prometheus.yml"
    text = configuration.read_text("utf-8")
    for shipped, here in (("localhost:8002", target), ("15s", "1s")):
        assert shipped in text
        text = text.replace(shipped, here)
    configuration.write_text(text, "utf-8")
    address = f"{HOST}:{free_port()}"
    command = [
        *("prometheus", f"--config.file={configuration}", f"--storage.tsdb.path={directory / 'series'}"),
        *(f"--web.listen-address={address}", "--log.level=warn"),
    ]
    with process(command, directory / "prometheus.log") as running:

        def ready() -> bool:
            try:
                urlopen(f"http://{address}/-/ready", timeout=5).close()
            except URLError:
                return False
            return True

        wait_for(ready, running)
        yield Prometheus(address)


@contextmanager
def process(command: Sequence[str], log: Path) -> "Iterator[subprocess.Popen[bytes]]":
    """Run a process until the block ends."""
    with log.open("w") as output, subprocess.Popen(command, stdout=output, stderr=output) as running:
        try:
            yield running
        finally:
            running.terminate()
            try:
                running.wait(timeout=30)
            except subprocess.TimeoutExpired:
                running.kill()


def wait_for(ready: Callable[[], bool], running: "subprocess.Popen[bytes]") -> None:
    """Return when a process answers."""
    end = time.monotonic() + STARTUP_SECONDS
    while not ready():
        assert running.poll() is None, f"{running.args!r} ended with {running.returncode}"
        assert time.monotonic() < end, f"{running.args!r} did not answer within {STARTUP_SECONDS:g} s"
        time.sleep(0.2)


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
