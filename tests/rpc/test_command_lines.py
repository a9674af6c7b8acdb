"""What `vitrail-server` and `vitrail-healthcheck` say when something is wrong: one line, and a status."""

import asyncio
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fakes.serving import ADDRESS, Offer, served
from fakes.wide import Plain
from vitrail_server import cli, healthcheck

LOCAL = ("--grpc-address", ADDRESS, "--metrics-address", ADDRESS, "--grpc-port", "0", "--metrics-port", "0")

Ends = Callable[..., tuple[object, list[str]]]


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Ends:
    """Return a function that runs `vitrail-server` until it ends, and returns its status and what it said."""
    # What it sets for its process must not outlive the test.
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "3")
    monkeypatch.setenv("GRPC_VERBOSITY", "NONE")

    def run(repository: Path, *arguments: str) -> tuple[object, list[str]]:
        monkeypatch.setattr(
            sys, "argv", ["vitrail-server", "--model-repository", str(repository), *LOCAL, *arguments]
        )
        with pytest.raises(SystemExit) as caught:
            cli.main()
        said = capfd.readouterr().err.splitlines()  # the log goes there too
        return caught.value.code, [each for each in said if each.startswith(("vitrail-server", "Traceback"))]

    return run


@pytest.mark.parametrize("which", ["--grpc-port", "--metrics-port"])
def test_a_port_in_use(tmp_path: Path, ends: Ends, which: str) -> None:
    with socket.socket() as taken:
        taken.bind((ADDRESS, 0))
        taken.listen()
        port = taken.getsockname()[1]
        status, (said,) = ends(tmp_path, which, str(port))

    assert status == 1
    assert said.startswith(f"vitrail-server: {which}: {ADDRESS}:{port} cannot be had")
    assert "is another server running on it" in said


@pytest.mark.parametrize("which", ["--grpc-address", "--metrics-address"])
def test_an_address_that_does_not_exist(tmp_path: Path, ends: Ends, which: str) -> None:
    status, (said,) = ends(tmp_path, which, "no such address")

    assert status == 1
    assert "no such address:0 cannot be had" in said


def test_a_repository_that_is_not_there(tmp_path: Path, ends: Ends) -> None:
    missing = tmp_path / "nothing"

    assert ends(missing) == (1, [f"vitrail-server: the model repository '{missing}' is not a directory"])


def test_a_token_file_that_is_not_there(tmp_path: Path, ends: Ends) -> None:
    """A server that should ask for tokens must not run without."""
    missing = tmp_path / "nothing"
    status, (said,) = ends(tmp_path, "--token-file", str(missing))

    assert status == 1
    assert said == f"vitrail-server: --token-file: {missing} cannot be read (No such file or directory)"


def test_a_model_that_fails_to_load_where_all_must(tmp_path: Path, ends: Ends) -> None:
    (tmp_path / "broken").mkdir()

    assert ends(tmp_path, "--exit-on-error") == (
        1,
        ["vitrail-server: a model failed to load (--exit-on-error)"],
    )


def test_a_wrong_setting(tmp_path: Path, ends: Ends) -> None:
    assert ends(tmp_path, "--grpc-port", "http") == (
        2,
        ["vitrail-server: error: argument --grpc-port: 'http' is not a whole number"],
    )


async def check_health(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> object:
    """Run `vitrail-healthcheck` and return its status."""
    monkeypatch.setattr(sys, "argv", ["vitrail-healthcheck", *arguments])
    with pytest.raises(SystemExit) as caught:
        await asyncio.to_thread(healthcheck.main)
    return caught.value.code


async def test_health_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async with served(tmp_path, {"m": Offer(model=Plain((2, 2, 1), 1))}, load=False) as running:
        asked = ("--server", running.target)
        statuses = [await check_health(monkeypatch, *asked)]
        await running.server.load()
        statuses.append(await check_health(monkeypatch, *asked))
        statuses.append(await check_health(monkeypatch, *asked, "--service", "models/m"))
        statuses.append(await check_health(monkeypatch, *asked, "--service", "models/n"))
        monkeypatch.setenv("VITRAIL_GRPC_PORT", str(running.server.grpc_port))
        statuses.append(await check_health(monkeypatch))
    statuses.append(await check_health(monkeypatch, *asked))
    said = capsys.readouterr()

    assert statuses == [1, 0, 0, 1, 0, 1]
    assert said.out.split() == ["NOT_SERVING", "SERVING", "SERVING", "SERVING"]
    not_found, gone = said.err.splitlines()
    assert not_found == (
        "vitrail-healthcheck: NOT_FOUND: nothing is called 'models/n': ask for '', a service or models/NAME"
    )
    assert gone.startswith("vitrail-healthcheck: UNAVAILABLE: ")


async def test_a_port_in_the_environment_that_is_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VITRAIL_GRPC_PORT", "tcp://10.0.0.1:8001")

    assert await check_health(monkeypatch) == 2
    assert capsys.readouterr().err.endswith(
        "environment variable VITRAIL_GRPC_PORT: 'tcp://10.0.0.1:8001' is not a whole number\n"
    )
