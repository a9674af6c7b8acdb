"""Every setting of the server: its flag, its environment variable, its default and what it does.

This is the one list: the command line and its help are made from it, and the documentation is tested
against it. Settings are read once, by the cli; objects receive the values they need.
"""

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

ENVIRONMENT_PREFIX = "VITRAIL_"
"""--grpc-port is read from VITRAIL_GRPC_PORT where the flag is not given."""

ControlMode = Literal["none", "poll", "explicit"]
LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Between:
    """The lowest and the highest value of a number."""

    lowest: float
    highest: float


PORT = Between(0, 65535)
COUNT = Between(1, 10**9)
SECONDS = Between(0.001, 1e9)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings of one server process. Sizes are in bytes, times in seconds."""

    model_repository: Annotated[
        tuple[Path, ...], "directory with one directory per model; may be given several times"
    ]
    model_control_mode: Annotated[
        ControlMode, "who decides what is loaded: the start, the repository's content, or requests"
    ] = "none"
    repository_poll_secs: Annotated[
        float, "how long until the repository is looked at again, in mode poll", SECONDS
    ] = 15.0
    load_model: Annotated[
        tuple[str, ...],
        "model to load at start, in mode explicit; may be given several times, * stands for every model",
    ] = ()
    model_config_name: Annotated[
        str | None, "name of the configuration to read in a model's configs directory, if it has it"
    ] = None
    default_max_batch_size: Annotated[
        int, "largest batch of an inference request, for models that do not say", COUNT
    ] = 64
    grpc_address: Annotated[str, "address on which rpcs are answered"] = "0.0.0.0"  # noqa: S104
    grpc_port: Annotated[int, "port on which rpcs are answered; 0 takes a free one", PORT] = 8001
    grpc_use_ssl: Annotated[bool, "encrypt rpcs with TLS"] = False
    grpc_use_ssl_mutual: Annotated[bool, "let in only clients with a certificate; implies --grpc-use-ssl"] = (
        False
    )
    grpc_server_cert: Annotated[Path | None, "file with the server's certificate chain (PEM)"] = None
    grpc_server_key: Annotated[Path | None, "file with the server's private key (PEM)"] = None
    grpc_root_cert: Annotated[
        Path | None, "file with the authorities that sign clients' certificates (PEM)"
    ] = None
    metrics_address: Annotated[str, "address on which Prometheus scrapes"] = "0.0.0.0"  # noqa: S104
    metrics_port: Annotated[int, "port on which Prometheus scrapes; 0 takes a free one", PORT] = 8002
    token_file: Annotated[
        Path | None, "file with one 'ROLE TOKEN' a line; without it every caller may do everything"
    ] = None
    exit_on_error: Annotated[bool, "exit if a model fails to load at start"] = False
    exit_timeout_secs: Annotated[
        float, "how long explanations may go on once the server is told to stop", Between(0, 1e9)
    ] = 30.0
    time_slice_secs: Annotated[
        float, "the longest batch, which is what a short request waits for", SECONDS
    ] = 0.3
    batch_memory_bytes: Annotated[
        int, "the most memory that one batch may take, by estimate, activations included", Between(1, 1 << 62)
    ] = 1 << 30
    incremental_cache_bytes: Annotated[
        int,
        "the most memory for activations of explanations that are computed incrementally; others run in full",
        Between(0, 1 << 62),
    ] = 1 << 30
    intra_op_threads: Annotated[
        int, "TensorFlow's threads within one operation; 0 lets it choose", Between(0, 1024)
    ] = 0
    inter_op_threads: Annotated[
        int, "TensorFlow's threads across operations; 0 lets it choose", Between(0, 1024)
    ] = 0
    max_message_bytes: Annotated[int, "the largest message that is accepted", Between(1, (1 << 31) - 1)] = (
        64 << 20
    )
    max_image_pixels: Annotated[
        int, "the largest JPEG or PNG that is decoded, in pixels", Between(1, 178_956_970)
    ] = 25_000_000
    max_targets: Annotated[int, "targets of one explanation", COUNT] = 64
    max_scores: Annotated[int, "windows times targets of one explanation", COUNT] = 2_000_000
    max_explanations: Annotated[int, "explanations in flight, over all callers", COUNT] = 64
    max_inferences: Annotated[int, "inferences in flight, over all callers", COUNT] = 1024
    max_explanations_per_stream: Annotated[
        int, "explanations and uploads open on one ExplainStream", COUNT
    ] = 16
    max_upload_bytes: Annotated[
        int, "bytes held of uploads that are not complete, over all callers", Between(1, 1 << 62)
    ] = 256 << 20
    upload_timeout_secs: Annotated[float, "how long an upload may take until it is complete", SECONDS] = 60.0
    write_timeout_secs: Annotated[
        float, "how long one message may wait for a reader that has stopped", SECONDS
    ] = 60.0
    log_format: Annotated[LogFormat, "lines for people or JSON for machines"] = "text"
    log_level: Annotated[LogLevel, "the least severe messages that are logged"] = "info"


def parse(arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> Settings:
    """Return the settings that flags and environment give; a flag goes before its variable.

    Exits with status 2 and a message, as command lines do, where they are wrong.
    """
    parser = argparse.ArgumentParser(
        prog="vitrail-server",
        usage="%(prog)s --model-repository PATH [FLAG ...]",
        description="Serves models and explains their answers over gRPC.",
        epilog=(
            f"Every flag can be given as an environment variable: {ENVIRONMENT_PREFIX}GRPC_PORT=8001. "
            f"Several values of one flag are separated there by {os.pathsep!r}."
        ),
        allow_abbrev=False,
    )
    every = _settings()
    for each in every:
        each.add_flag(parser)
    given = vars(parser.parse_args(arguments)).items()
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in given if value is not None
    }
    for each in every:
        if each.name in values:
            continue
        try:
            values[each.name] = each.from_environment(environment)
        except argparse.ArgumentTypeError as error:
            parser.error(str(error))
    return Settings(**values)


def from_environment(name: str, environment: Mapping[str, str] = os.environ) -> Any:
    """Return what a server started in this environment without flags has for one setting.

    Raises:
        argparse.ArgumentTypeError: the variable is wrong, or is missing and the setting has no default.

    """
    return next(each for each in _settings() if each.name == name).from_environment(environment)


def flag_of(name: str) -> str:
    """Return the flag of a setting."""
    return "--" + name.replace("_", "-")


def variable_of(name: str) -> str:
    """Return the environment variable of a setting."""
    return ENVIRONMENT_PREFIX + name.upper()


@dataclass(frozen=True, slots=True)
class _Setting:
    """How one setting is read."""

    name: str
    kind: Any
    text: str
    bounds: Between | None
    default: Any

    def add_flag(self, parser: argparse.ArgumentParser) -> None:
        shown = "" if self.default in (MISSING, None, ()) else f" (default: {self.default})"
        parser.add_argument(
            flag_of(self.name),
            type=self.read,
            metavar=self.metavar,
            action="append" if self.repeatable else "store",
            nargs="?" if self.kind is bool else None,
            const=True if self.kind is bool else None,
            help=self.text.replace("%", "%%") + shown,
        )

    @property
    def repeatable(self) -> bool:
        """Whether several values may be given."""
        return get_origin(self.kind) is tuple

    @property
    def one(self) -> Any:
        """The type of one value, without the None or the tuple around it."""
        return get_args(self.kind)[0] if get_origin(self.kind) in (tuple, UnionType) else self.kind

    @property
    def choices(self) -> tuple[str, ...]:
        """The words that are possible; empty if the value is not one of a few words."""
        return get_args(self.kind) if get_origin(self.kind) is Literal else ()

    @property
    def metavar(self) -> str:
        names = {bool: "true|false", int: "NUMBER", float: "SECONDS", Path: "PATH"}
        return "|".join(self.choices) or names.get(self.one, "TEXT")

    def from_environment(self, environment: Mapping[str, str]) -> Any:
        """Return the value of the setting's variable, or its default.

        Raises:
            argparse.ArgumentTypeError: it is wrong, or is missing and has no default.

        """
        variable = variable_of(self.name)
        if variable in environment:
            try:
                text = environment[variable]
                if self.repeatable:
                    return tuple(self.read(each) for each in text.split(os.pathsep))
                return self.read(text)
            except argparse.ArgumentTypeError as error:
                raise argparse.ArgumentTypeError(f"environment variable {variable}: {error}") from error
        if self.default is MISSING:
            raise argparse.ArgumentTypeError(f"{flag_of(self.name)} is required; {variable} can give it too")
        return self.default

    def read(self, text: str) -> Any:
        """Return the value that `text` gives.

        Raises:
            argparse.ArgumentTypeError: it gives none that is possible.

        """
        if self.kind is bool:
            return _boolean(text)
        if self.kind in (int, float):
            return self._number(text)
        if self.choices:
            if text not in self.choices:
                raise argparse.ArgumentTypeError(f"{text!r} is not one of {', '.join(self.choices)}")
            return text
        if not text:
            raise argparse.ArgumentTypeError("it is empty; give a value, or leave it out")
        return self.one(text)

    def _number(self, text: str) -> float:
        try:
            number: float = self.kind(text)
        except ValueError:
            what = "a whole number" if self.kind is int else "a number"
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}") from None
        if self.bounds and not self.bounds.lowest <= number <= self.bounds.highest:
            lowest, highest = self.bounds.lowest, self.bounds.highest
            raise argparse.ArgumentTypeError(f"{text} is not between {lowest} and {highest}")
        return number


def _settings() -> list[_Setting]:
    hints = get_type_hints(Settings, include_extras=True)
    result = []
    for each in fields(Settings):
        kind, text, *bounds = get_args(hints[each.name])
        result.append(_Setting(each.name, kind, text, bounds[0] if bounds else None, each.default))
    return result


def _boolean(text: str) -> bool:
    if text.lower() in ("true", "1", "yes"):
        return True
    if text.lower() in ("false", "0", "no"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
