"""`vitrail-healthcheck`: what it asks whom, what it says, and its status."""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from fakes import certificates
from fakes.serving import Offer, served
from fakes.wide import Plain
from vitrail_server import healthcheck

Check = Callable[..., Awaitable[object]]
Files = dict[str, Path]


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch) -> Check:
    """Return a function that runs `vitrail-healthcheck` and returns its status."""
    monkeypatch.setenv("GRPC_VERBOSITY", "NONE")  # what it sets for its process must not outlive the test

    async def run(*arguments: object) -> object:
        monkeypatch.setattr(sys, "argv", ["vitrail-healthcheck", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            await asyncio.to_thread(healthcheck.main)
        return caught.value.code

    return run


@pytest.fixture
def pem(tmp_path: Path) -> Files:
    """Every certificate and every key, in a file."""
    files = {}
    for name in ("AUTHORITY", "SERVER", "SERVER_KEY", "CLIENT", "CLIENT_KEY"):
        files[name] = tmp_path / f"{name.lower()}.pem"
        files[name].write_bytes(getattr(certificates, name))
    return files


def encrypted(pem: Files, how: str) -> dict[str, Any]:
    """Return the settings of a server with TLS."""
    return {
        how: True,
        "grpc_server_cert": pem["SERVER"],
        "grpc_server_key": pem["SERVER_KEY"],
        "grpc_root_cert": pem["AUTHORITY"],
    }


def in_environment(monkeypatch: pytest.MonkeyPatch, **settings: object) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(f"VITRAIL_{name.upper()}", str(value))


async def test_health_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], check: Check
) -> None:
    async with served(tmp_path, {"m": Offer(model=Plain((2, 2, 1), 1))}, load=False) as running:
        asked = ("--server", running.target)
        statuses = [await check(*asked)]
        await running.server.load()
        statuses.append(await check(*asked))
        statuses.append(await check(*asked, "--service", "models/m"))
        statuses.append(await check(*asked, "--service", "models/n"))
        in_environment(monkeypatch, grpc_port=running.server.grpc_port)
        statuses.append(await check())
    statuses.append(await check(*asked))
    said = capsys.readouterr()

    assert statuses == [1, 0, 0, 1, 0, 1]
    assert said.out.split() == ["NOT_SERVING", "SERVING", "SERVING", "SERVING"]
    not_found, gone = said.err.splitlines()
    assert not_found == (
        "vitrail-healthcheck: NOT_FOUND: nothing is called 'models/n': ask for '', a service or models/NAME"
    )
    assert gone.startswith("vitrail-healthcheck: UNAVAILABLE: ")


async def test_a_port_in_the_environment_that_is_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], check: Check
) -> None:
    in_environment(monkeypatch, grpc_port="tcp://10.0.0.1:8001")

    assert await check() == 2
    assert capsys.readouterr().err.endswith(
        "environment variable VITRAIL_GRPC_PORT: 'tcp://10.0.0.1:8001' is not a whole number\n"
    )


async def test_a_server_that_the_environment_encrypts_needs_no_further_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, check: Check, pem: Files
) -> None:
    """As in a container, by the server's own certificate, which has not the name of this machine."""
    settings = encrypted(pem, "grpc_use_ssl")
    async with served(tmp_path, {}, **settings) as running:
        in_environment(monkeypatch, grpc_port=running.server.grpc_port)
        in_the_clear = await check()
        in_environment(monkeypatch, **settings)

        assert (in_the_clear, await check()) == (1, 0)


async def test_an_encrypted_server_is_asked_by_those_who_trust_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    check: Check,
    pem: Files,
) -> None:
    async with served(tmp_path, {}, **encrypted(pem, "grpc_use_ssl")) as running:
        in_environment(monkeypatch, grpc_port=running.server.grpc_port)
        trusting = [await check("--ca", pem[name]) for name in ("SERVER", "AUTHORITY")]
        others = [await check("--ca", pem["CLIENT"]), await check("--tls")]
        named = ("--server", f"localhost:{running.server.grpc_port}", "--ca", pem["AUTHORITY"])
        by_name = [await check(*named), await check(*named, "--tls-name", "maps.example.com")]
    *errors, by_host = capsys.readouterr().err.splitlines()

    assert (trusting, others, by_name) == ([0, 0], [1, 1], [1, 0])
    assert all("CERTIFICATE_VERIFY_FAILED" in each for each in errors)
    assert "Hostname Verification Check failed" in by_host


async def test_mutual_tls_wants_a_certificate_of_who_asks(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    check: Check,
    pem: Files,
) -> None:
    settings = encrypted(pem, "grpc_use_ssl_mutual")
    async with served(tmp_path, {}, **settings) as running:
        in_environment(monkeypatch, grpc_port=running.server.grpc_port, **settings)
        known = await check("--cert", pem["CLIENT"], "--key", pem["CLIENT_KEY"])
        unknown = await check(
            "--server", running.target, "--ca", pem["SERVER"], "--tls-name", "a.example.com"
        )
        capsys.readouterr()
        unheard = await check()

    assert (known, unknown, unheard) == (0, 1, 2)
    assert capsys.readouterr().err.endswith(
        "VITRAIL_GRPC_USE_SSL_MUTUAL is set, so the server wants to see a certificate: give one that it "
        "trusts, and its key, with --cert and --key\n"
    )


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        ((), 2, "VITRAIL_GRPC_SERVER_CERT is not set: name the server's certificate with --ca"),
        (("--cert", "none.pem"), 2, "--cert and --key belong together: give both or neither"),
        (("--ca", "none.pem"), 1, "[Errno 2] No such file or directory: 'none.pem'"),
        (
            ("--ca", __file__),
            1,
            f"{__file__}: not certificates in PEM, or not the key of one (NO_CERTIFICATE_OR_CRL_FOUND)",
        ),
    ],
)
async def test_what_cannot_be_encrypted_is_said(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    check: Check,
    arguments: tuple[str, ...],
    status: int,
    said: str,
) -> None:
    in_environment(monkeypatch, grpc_use_ssl="true")

    assert await check(*arguments) == status
    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith("vitrail-healthcheck: ")
    assert line.endswith(said)
