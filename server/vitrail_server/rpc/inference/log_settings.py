"""Triton's log settings on top of the one level and the one form that this server's log has."""

import logging
from collections.abc import Mapping

from vitrail.errors import InvalidArgument, Unimplemented
from vitrail_server.kserve.v2 import grpc_service_pb2 as pb
from vitrail_server.logs import current_form, current_level, set_form, set_level
from vitrail_server.settings import LogFormat
from vitrail_server.wording import quoted

LEVELS = (logging.ERROR, logging.WARNING, logging.INFO, logging.DEBUG)
FORMS: Mapping[str, LogFormat] = {"text": "text", "default": "text", "json": "json"}
"""The names of the forms; Triton's default is ours for people."""

KINDS = {
    "log_file": "string_param",
    "log_info": "bool_param",
    "log_warning": "bool_param",
    "log_error": "bool_param",
    "log_verbose_level": "uint32_param",
    "log_format": "string_param",
}
"""Triton's settings and the type of each."""


def change(settings: Mapping[str, pb.LogSettingsRequest.SettingValue]) -> pb.LogSettingsResponse:
    """Change what is named, all of it or nothing, and return all settings as they are then.

    Raises:
        InvalidArgument: a setting is unknown, of another type, or contradicts another.
        Unimplemented: a setting that Triton has and this server does not.

    """
    for name, value in settings.items():
        if name not in KINDS:
            raise InvalidArgument(f"unknown log setting {quoted(name)}; known are {', '.join(sorted(KINDS))}")
        if value.WhichOneof("parameter_choice") != KINDS[name]:
            raise InvalidArgument(f"expect {KINDS[name]} for log setting '{name}'")
    if "log_file" in settings and settings["log_file"].string_param:
        raise Unimplemented(
            "log setting 'log_file': this server logs to standard error; send that where you want it"
        )
    form = _form(settings["log_format"].string_param) if "log_format" in settings else current_form()
    level = _level(settings)
    set_level(level)
    set_form(form)
    return current()


def current() -> pb.LogSettingsResponse:
    """Return the settings as they are."""
    value = pb.LogSettingsResponse.SettingValue
    level = current_level()
    return pb.LogSettingsResponse(
        settings={
            "log_file": value(string_param=""),
            "log_info": value(bool_param=level <= logging.INFO),
            "log_warning": value(bool_param=level <= logging.WARNING),
            "log_error": value(bool_param=level <= logging.ERROR),
            "log_verbose_level": value(uint32_param=int(level <= logging.DEBUG)),
            "log_format": value(string_param=current_form()),
        }
    )


def _form(name: str) -> LogFormat:
    if name not in FORMS:
        raise InvalidArgument(f"log_format {quoted(name)} is not one of {', '.join(FORMS)}")
    return FORMS[name]


def _level(settings: Mapping[str, pb.LogSettingsRequest.SettingValue]) -> int:
    """Return the least severe level that is logged: what is not named stays as it is.

    Triton switches each severity on and off alone; here whoever logs one logs all that are worse. So one
    that is switched on brings the worse ones with it, unless the same request switches those off.
    """
    level = current_level()
    wanted = {
        logging.ERROR: _flag(settings, "log_error"),
        logging.WARNING: _flag(settings, "log_warning"),
        logging.INFO: _flag(settings, "log_info"),
        logging.DEBUG: (
            settings["log_verbose_level"].uint32_param > 0 if "log_verbose_level" in settings else None
        ),
    }
    if wanted[logging.ERROR] is False:
        raise InvalidArgument("log setting 'log_error': errors are always logged")
    on = min((each for each, flag in wanted.items() if flag), default=level)
    off = max((each for each, flag in wanted.items() if flag is False), default=0)
    if off > on and any(flag and each < off for each, flag in wanted.items()):
        raise InvalidArgument(
            "the log settings contradict each other: a severity is logged together with all that are worse"
        )
    level = min(level, on)
    return level if off < level else min(each for each in LEVELS if each > off)


def _flag(settings: Mapping[str, pb.LogSettingsRequest.SettingValue], name: str) -> bool | None:
    return settings[name].bool_param if name in settings else None
