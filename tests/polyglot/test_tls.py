"""Every client over TLS: the server's own flags, with a certificate that is its own authority."""

from pathlib import Path
from typing import Any

import pytest

from client.certificate import CERTIFICATE, KEY
from fakes.serving import Offer, served
from fakes.wide import Plain
from polyglot.conftest import PHOTO_SHAPE
from polyglot.programs import Program, every_program


@pytest.fixture
def pem(tmp_path: Path) -> tuple[Path, Path]:
    """The certificate and its key, in files."""
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    certificate.write_bytes(CERTIFICATE)
    key.write_bytes(KEY)
    return certificate, key


def settings(pem: tuple[Path, Path], **further: bool) -> dict[str, Any]:
    certificate, key = pem
    return {
        "grpc_server_cert": certificate,
        "grpc_server_key": key,
        "grpc_root_cert": certificate,
        **further,
    }


@every_program
async def test_an_encrypted_server_answers_those_who_trust_it(
    program: Program, photo: Path, tmp_path: Path, pem: tuple[Path, Path]
) -> None:
    offers = {"net": Offer(model=Plain(PHOTO_SHAPE, 1))}
    async with served(tmp_path, offers, **settings(pem, grpc_use_ssl=True)) as server:
        call = ("--server", f"localhost:{server.server.grpc_port}", "--model", "net", "--timeout", 2)
        trusting = await program.run(*call, "--tls-ca", pem[0], photo)
        in_the_clear = await program.run(*call, photo)

    assert trusting.code == 0, trusting.error
    assert in_the_clear.code == 1
    assert in_the_clear.error.startswith("error: ")


@every_program
async def test_mutual_tls_lets_in_only_those_with_a_certificate(
    program: Program, photo: Path, tmp_path: Path, pem: tuple[Path, Path]
) -> None:
    certificate, key = pem
    offers = {"net": Offer(model=Plain(PHOTO_SHAPE, 1))}
    async with served(tmp_path, offers, **settings(pem, grpc_use_ssl_mutual=True)) as server:
        call = (
            "--server",
            f"localhost:{server.server.grpc_port}",
            "--model",
            "net",
            "--timeout",
            2,
            "--tls-ca",
            certificate,
        )
        known = await program.run(*call, "--tls-cert", certificate, "--tls-key", key, photo)
        unknown = await program.run(*call, photo)

    assert known.code == 0, known.error
    assert unknown.code == 1
    assert unknown.error.startswith("error: ")
