"""One server, one Prometheus and one load for all of these tests; `--picture FILE` draws what was seen."""

import asyncio
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from monitoring.load import ABANDONED, BROKEN, MAX_EXPLANATIONS, MODEL, Ledger, generate
from monitoring.servers import ROOT, Prometheus, Vitrail, prometheus_server, vitrail_server

LOAD_SECONDS = 45.0


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--picture", metavar="FILE", help="draw the main panels of the overview to this PNG file"
    )
    parser.addoption(
        "--model",
        metavar="DIRECTORY",
        default=str(ROOT / "model_repository" / MODEL),
        help="the model that is served, with a version 1; default: the sample",
    )


@dataclass(frozen=True)
class Seen:
    """What the tests look at, after the load."""

    server: Vitrail
    prometheus: Prometheus
    ledger: Ledger
    begin: float
    end: float
    """When the load began and Prometheus had seen the last of it, in seconds since 1970."""


@pytest.fixture(scope="session")
def seen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    directory = tmp_path_factory.mktemp("monitoring")
    repository = write_repository(directory / "models", Path(request.config.getoption("--model")))
    with (
        vitrail_server(repository, "--max-explanations", str(MAX_EXPLANATIONS)) as server,
        prometheus_server(directory, server.metrics) as prometheus,
    ):
        prometheus.wait_until(lambda: bool(prometheus.now("vitrail_build_info")), 10, "the first scrape")
        begin = time.time()
        ledger = asyncio.run(generate(server.target, LOAD_SECONDS))
        sent = sum(ledger.outcomes.values())

        def at_rest() -> bool:
            ended = prometheus.now("sum(vitrail_explanations_total)")[0].values[0][1]
            busy = prometheus.now("vitrail_explanations_in_flight + vitrail_batches_in_flight")[0].values[0][
                1
            ]
            return ended >= sent and not busy

        prometheus.wait_until(at_rest, 30, f"all of {sent} explanations, and none in flight")
        time.sleep(2)  # two more scrapes and evaluations: would the counters go on, this shows it
        yield Seen(server, prometheus, ledger, begin, time.time())


def write_repository(repository: Path, model: Path) -> Path:
    """Write a repository with the sample model under two names, and one that cannot be loaded."""
    for name in (MODEL, ABANDONED, BROKEN):
        saved = repository / name / "1" / "model.savedmodel"
        shutil.copytree(model / "1" / "model.savedmodel", saved)
        configuration = (model / "config.pbtxt").read_text("utf-8")
        (repository / name / "config.pbtxt").write_text(configuration.replace(MODEL, name), "utf-8")
    (repository / BROKEN / "1" / "model.savedmodel" / "saved_model.pb").write_bytes(b"not a model")
    return repository
