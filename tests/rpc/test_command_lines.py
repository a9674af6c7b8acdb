"""What `vitrail-server` says when something is wrong: one line, and a status."""

import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fakes import certificates
from fakes.serving import ADDRESS
from vitrail_server import cli
from vitrail_server.rpc.ports import place

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
@pytest.mark.parametrize("address", ["192.0.2.1", "2001:db8::1", "no such address"])
def test_an_address_of_no_or_another_machine(tmp_path: Path, ends: Ends, which: str, address: str) -> None:
    status, (said,) = ends(tmp_path, which, address)

    assert status == 1
    assert said.startswith(f"vitrail-server: {which}: {address} is no address of this machine (")
    assert said.endswith("); 0.0.0.0 stands for all it has")


@pytest.mark.parametrize("key", ["CLIENT_KEY", "SERVER"])
def test_a_key_that_is_another_ones_or_none(tmp_path: Path, ends: Ends, key: str) -> None:
    cert, file = tmp_path / "cert.pem", tmp_path / "key.pem"
    cert.write_bytes(certificates.SERVER)
    file.write_bytes(getattr(certificates, key))
    flags = ("--grpc-use-ssl", "--grpc-server-cert", str(cert), "--grpc-server-key", str(file))

    assert ends(tmp_path, *flags) == (
        1,
        [f"vitrail-server: --grpc-server-key: {file} is not the key of {cert}, or one of them is not in PEM"],
    )


@pytest.mark.parametrize(
    ("address", "where"),
    [(ADDRESS, f"{ADDRESS}:1"), ("localhost", "localhost:1"), ("::1", "[::1]:1"), ("[::]", "[::]:1")],
)
def test_an_address_of_ipv6_is_told_from_its_port(address: str, where: str) -> None:
    assert place(address, 1) == where


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
