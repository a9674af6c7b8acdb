"""Triton's log settings on top of one level and one form."""

import json
import logging
from typing import Any

import pytest

from vitrail.errors import InvalidArgument, Unimplemented, VitrailError
from vitrail_server.kserve.v2 import grpc_service_pb2 as pb
from vitrail_server.logs import current_level
from vitrail_server.rpc.inference.log_settings import change, current

pytestmark = pytest.mark.usefixtures("restored_log")

DEBUG, INFO, WARNING, ERROR = logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR


def settings(**values: Any) -> dict[str, pb.LogSettingsRequest.SettingValue]:
    kinds = {bool: "bool_param", int: "uint32_param", str: "string_param"}
    return {
        name: pb.LogSettingsRequest.SettingValue(**{kinds[type(value)]: value})
        for name, value in values.items()
    }


@pytest.mark.parametrize(
    ("before", "asked", "after"),
    [
        (INFO, {}, INFO),
        (INFO, {"log_verbose_level": 1}, DEBUG),
        (INFO, {"log_verbose_level": 0}, INFO),
        (DEBUG, {"log_verbose_level": 0}, INFO),
        (DEBUG, {"log_info": False}, WARNING),
        (INFO, {"log_info": False}, WARNING),
        (INFO, {"log_info": False, "log_warning": False}, ERROR),
        (INFO, {"log_warning": False}, ERROR),
        (ERROR, {"log_warning": True}, WARNING),
        (ERROR, {"log_info": True}, INFO),
        (ERROR, {"log_info": False, "log_error": True}, ERROR),
        (WARNING, {"log_info": True, "log_warning": True, "log_verbose_level": 0}, INFO),
    ],
)
def test_the_level_follows(before: int, asked: dict[str, Any], after: int) -> None:
    logging.getLogger().setLevel(before)

    answer = change(settings(**asked)).settings

    assert current_level() == after
    assert answer["log_info"].bool_param == (after <= INFO)
    assert answer["log_warning"].bool_param == (after <= WARNING)
    assert answer["log_error"].bool_param
    assert answer["log_verbose_level"].uint32_param == (after <= DEBUG)


@pytest.mark.parametrize(
    ("asked", "kind", "text"),
    [
        ({"log_colour": True}, InvalidArgument, "unknown log setting 'log_colour'; known are log_error, "),
        ({"log_info": 1}, InvalidArgument, "expect bool_param for log setting 'log_info'"),
        ({"log_file": "vitrail.log"}, Unimplemented, "log setting 'log_file': this server logs to standard"),
        ({"log_error": False}, InvalidArgument, "log setting 'log_error': errors are always logged"),
        (
            {"log_format": "ISO8601"},
            InvalidArgument,
            "log_format 'ISO8601' is not one of text, default",
        ),
        ({"log_info": True, "log_warning": False}, InvalidArgument, "the log settings contradict each other"),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(
    asked: dict[str, Any], kind: type[VitrailError], text: str
) -> None:
    before = current()

    with pytest.raises(kind) as refusal:
        change(settings(log_verbose_level=1, **asked))

    assert refusal.value.message.startswith(text)
    assert current() == before


def test_the_form_follows() -> None:
    change(settings(log_format="json", log_file=""))
    handler = logging.getLogger().handlers[0]
    record = logging.LogRecord("n", INFO, "p", 1, "said", None, None)
    assert json.loads(handler.format(record))["message"] == "said"
    assert change(settings(log_format="default")).settings["log_format"].string_param == "text"
