"""The settings on the command line and in the environment; what is wrong is said in one line."""

import os
from dataclasses import fields
from pathlib import Path
from typing import get_args

import pytest

from vitrail_server.repository import control
from vitrail_server.settings import ControlMode, Settings, flag_of, parse, variable_of

REPOSITORY = ["--model-repository", "models"]


def complaint(capsys: pytest.CaptureFixture[str], arguments: list[str], **environment: str) -> str:
    """Return what `parse` says to settings that are wrong, without the usage line."""
    with pytest.raises(SystemExit) as caught:
        parse(arguments, environment)
    assert caught.value.code == 2
    usage, line = capsys.readouterr().err.splitlines()
    assert usage == "usage: vitrail-server --model-repository PATH [FLAG ...]"
    return line


def test_everything_but_the_repository_has_a_default() -> None:
    assert parse(REPOSITORY, {}) == Settings(model_repository=(Path("models"),))


def test_flags_are_read() -> None:
    settings = parse(
        [
            *REPOSITORY,
            *("--grpc-port", "0"),
            *("--exit-timeout-secs", "2.5"),
            *("--token-file", "tokens"),
            *("--log-level", "debug"),
            "--exit-on-error",
            *("--grpc-use-ssl", "no"),
            "--max-targets=3",
        ],
        {},
    )

    assert settings == Settings(
        model_repository=(Path("models"),),
        grpc_port=0,
        exit_timeout_secs=2.5,
        token_file=Path("tokens"),
        log_level="debug",
        exit_on_error=True,
        grpc_use_ssl=False,
        max_targets=3,
    )


def test_variables_are_read() -> None:
    environment = {
        "VITRAIL_MODEL_REPOSITORY": "models",
        "VITRAIL_GRPC_PORT": "9000",
        "VITRAIL_WRITE_TIMEOUT_SECS": "0.5",
        "VITRAIL_EXIT_ON_ERROR": "1",
        "VITRAIL_LOG_FORMAT": "json",
        "VITRAIL_PORT": "tcp://10.0.0.1:8001",  # what Kubernetes sets for a service of this name
        "GRPC_PORT": "1",
    }

    assert parse([], environment) == Settings(
        model_repository=(Path("models"),),
        grpc_port=9000,
        write_timeout_secs=0.5,
        exit_on_error=True,
        log_format="json",
    )


def test_a_flag_that_may_be_given_several_times_keeps_its_order() -> None:
    settings = parse(
        [
            *("--model-repository", "b", "--model-repository", "a"),
            *("--model-control-mode", "explicit", "--load-model", "m", "--load-model=n"),
        ],
        {"VITRAIL_MODEL_REPOSITORY": "c", "VITRAIL_LOAD_MODEL": "o"},
    )

    assert settings.model_repository == (Path("b"), Path("a"))
    assert settings.load_model == ("m", "n")


def test_a_variable_holds_several_values_as_paths_are_separated() -> None:
    environment = {
        "VITRAIL_MODEL_REPOSITORY": f"a{os.pathsep}b",
        "VITRAIL_MODEL_CONTROL_MODE": "explicit",
        "VITRAIL_LOAD_MODEL": f"m{os.pathsep}n",
    }
    settings = parse([], environment)

    assert settings.model_repository == (Path("a"), Path("b"))
    assert settings.load_model == ("m", "n")


def test_the_control_modes_are_those_of_the_manager() -> None:
    assert get_args(ControlMode) == get_args(control.ControlMode)


@pytest.mark.parametrize("broken", ["9000", "rubbish"])
def test_a_flag_goes_before_its_variable(broken: str) -> None:
    settings = parse([*REPOSITORY, "--grpc-port", "7000"], {"VITRAIL_GRPC_PORT": broken})

    assert settings.grpc_port == 7000


@pytest.mark.parametrize(
    ("word", "value"),
    [("true", True), ("YES", True), ("1", True), ("false", False), ("No", False), ("0", False)],
)
def test_words_for_true_and_false(word: str, value: bool) -> None:
    assert parse([*REPOSITORY, "--exit-on-error", word], {}).exit_on_error is value
    assert parse(REPOSITORY, {"VITRAIL_EXIT_ON_ERROR": word}).exit_on_error is value


@pytest.mark.parametrize(
    ("flag", "given", "said"),
    [
        ("--grpc-port", "many", "'many' is not a whole number"),
        ("--grpc-port", "80.5", "'80.5' is not a whole number"),
        ("--grpc-port", "", "'' is not a whole number"),
        ("--grpc-port", "-1", "-1 is not between 0 and 65535"),
        ("--metrics-port", "65536", "65536 is not between 0 and 65535"),
        ("--max-explanations", "0", "0 is not between 1 and 1000000000"),
        ("--max-targets", "-5", "-5 is not between 1 and 1000000000"),
        ("--max-message-bytes", "2147483648", "2147483648 is not between 1 and 2147483647"),
        ("--max-image-pixels", "1000000000", "1000000000 is not between 1 and 178956970"),
        ("--intra-op-threads", "-1", "-1 is not between 0 and 1024"),
        ("--write-timeout-secs", "0", "0 is not between 0.001 and 1000000000.0"),
        ("--exit-timeout-secs", "-1", "-1 is not between 0 and 1000000000.0"),
        ("--upload-timeout-secs", "nan", "nan is not between"),
        ("--upload-timeout-secs", "inf", "inf is not between"),
        ("--upload-timeout-secs", "1 min", "'1 min' is not a number"),
        ("--exit-on-error", "maybe", "'maybe' is neither true nor false"),
        ("--log-level", "loud", "'loud' is not one of debug, info, warning, error"),
        ("--log-format", "", "'' is not one of text, json"),
        ("--token-file", "", "it is empty; give a value, or leave it out"),
        ("--grpc-address", "", "it is empty; give a value, or leave it out"),
    ],
)
def test_a_wrong_value_is_refused_by_its_flag_or_variable(
    capsys: pytest.CaptureFixture[str], flag: str, given: str, said: str
) -> None:
    variable = "VITRAIL_" + flag.removeprefix("--").replace("-", "_").upper()

    by_flag = complaint(capsys, [*REPOSITORY, f"{flag}={given}"])
    by_variable = complaint(capsys, REPOSITORY, **{variable: given})

    assert by_flag.startswith(f"vitrail-server: error: argument {flag}: {said}")
    assert by_variable.startswith(f"vitrail-server: error: environment variable {variable}: {said}")


def test_the_repository_must_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    said = complaint(capsys, [])

    assert said.endswith("--model-repository is required; VITRAIL_MODEL_REPOSITORY can give it too")


@pytest.mark.parametrize("flag", ["--grpc-prot=1", "--grpc-por=1", "--http-port=8000", "models"])
def test_what_is_not_known_is_refused_by_name(capsys: pytest.CaptureFixture[str], flag: str) -> None:
    """An abbreviation is not known either: it would change its meaning with the next setting."""
    assert complaint(capsys, [*REPOSITORY, flag]).endswith(f"unrecognized arguments: {flag}")


def test_help_lists_every_setting_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(["--help"], {})
    text = " ".join(capsys.readouterr().out.split())

    assert caught.value.code == 0
    assert variable_of("grpc_port") in text
    for each in fields(Settings):
        assert f"{flag_of(each.name)} " in text
    assert "(default: 8001)" in text
    assert "(default: 25000000)" in text
