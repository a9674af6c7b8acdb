"""What leaves the server of an error: ours as they are, faults without their text, and nothing too long."""

import logging

import pytest

from vitrail.errors import Internal, InvalidArgument, Unavailable
from vitrail_server.rpc.refusals import logged, status_of, told

from .messages import refusal_of


def test_an_error_of_ours_is_told_as_it_is() -> None:
    error = Unavailable("later", field="spec", retry_delay=2.5)
    refusal = refusal_of(status_of(error))

    assert told(error) is error
    assert (refusal.code.name, refusal.message, refusal.field) == ("UNAVAILABLE", "later", "spec")
    assert refusal.retry_delay == 2.5


def test_a_fault_is_logged_and_told_without_its_text(caplog: pytest.LogCaptureFixture) -> None:
    failure = logged(ZeroDivisionError("secret"), "/vitrail.v1.ModelService/ListModels")

    assert type(failure) is Internal
    assert "secret" not in failure.message
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.getMessage() == "/vitrail.v1.ModelService/ListModels failed"
    assert record.exc_info


def test_an_error_of_ours_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    logged(InvalidArgument("wrong"), "Explain")

    assert not caplog.records


@pytest.mark.parametrize("letter", ["a", "\u00e9", "\u20ac", "\U0001f600"])
def test_a_long_message_is_cut_so_that_it_fits_into_trailers(letter: str) -> None:
    """Percent-encoded in `grpc-message` and twice, in base64, in the details: 8 KiB in all."""
    status = status_of(InvalidArgument(letter * 10_000, field=letter * 10_000))

    assert status.message.startswith(letter * 200)
    assert status.message.endswith("...")
    percent_encoded = sum(1 if 0x20 <= byte < 0x7F else 3 for byte in status.message.encode())
    assert percent_encoded + len(status.SerializeToString()) * 4 / 3 < 7000
