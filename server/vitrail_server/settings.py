"""Every setting of the server: its flag, its environment variable, its default and what it does.

This is the one list: the command line and its help are made from it, and the documentation is tested
against it. Settings are read once, by the cli; objects receive the values they need.
"""

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

ENVIRONMENT_PREFIX = "VITRAIL_"
"""--grpc-port is read from VITRAIL_GRPC_PORT where the flag is not given."""

LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings of one server process. Sizes are in bytes, times in seconds."""

    model_repository: Annotated[Path, "directory with one directory per model"]
    grpc_address: Annotated[str, "address on which rpcs are answered"] = "0.0.0.0"  # noqa: S104
    grpc_port: Annotated[int, "port on which rpcs are answered; 0 takes a free one"] = 8001
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
    metrics_port: Annotated[int, "port on which Prometheus scrapes; 0 takes a free one"] = 8002
    token_file: Annotated[
        Path | None, "file with one 'ROLE TOKEN' a line; without it every caller may do everything"
    ] = None
    exit_on_error: Annotated[bool, "exit if a model fails to load at start"] = False
    exit_timeout_secs: Annotated[float, "how long explanations may go on once the server is told to stop"] = (
        30.0
    )
    time_slice_secs: Annotated[float, "the longest batch, which is what a short request waits for"] = 0.3
    batch_memory_bytes: Annotated[int, "the most memory that one batch may take, by estimate, activations included"] = 1 << 30
    intra_op_threads: Annotated[int, "TensorFlow's threads within one operation; 0 lets it choose"] = 0
    inter_op_threads: Annotated[int, "TensorFlow's threads across operations; 0 lets it choose"] = 0
    max_message_bytes: Annotated[int, "the largest message that is accepted"] = 64 << 20
    max_image_pixels: Annotated[int, "the largest JPEG or PNG that is decoded, in pixels"] = 25_000_000
    max_targets: Annotated[int, "targets of one explanation"] = 64
    max_scores: Annotated[int, "windows times targets of one explanation"] = 2_000_000
    max_explanations: Annotated[int, "explanations in flight, over all callers"] = 64
    max_explanations_per_stream: Annotated[int, "explanations and uploads open on one ExplainStream"] = 16
    max_upload_bytes: Annotated[int, "bytes held of uploads that are not complete, over all callers"] = (
        256 << 20
    )
    upload_timeout_secs: Annotated[float, "how long an upload may take until it is complete"] = 60.0
    write_timeout_secs: Annotated[float, "how long one message may wait for a reader that has stopped"] = 60.0
    log_format: Annotated[LogFormat, "lines for people or JSON for machines"] = "text"
    log_level: Annotated[LogLevel, "the least severe messages that are logged"] = "info"


def parse(arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> Settings:
    """Return the settings that flags and environment give; a flag goes before its variable.

    Exits with status 2 and a message, as command lines do, where they are wrong.
    """
    parser = argparse.ArgumentParser(
        prog="vitrail-server",
        description="Serves models and explains their answers over gRPC.",
        epilog=f"Every flag can be given as an environment variable: {ENVIRONMENT_PREFIX}GRPC_PORT=8001.",
        allow_abbrev=False,
    )
    hints = get_type_hints(Settings, include_extras=True)
    for each in fields(Settings):
        _add_flag(parser, each, hints[each.name], environment)
    return Settings(**vars(parser.parse_args(arguments)))


def flag_of(name: str) -> str:
    """Return the flag of a setting."""
    return "--" + name.replace("_", "-")


def variable_of(name: str) -> str:
    """Return the environment variable of a setting."""
    return ENVIRONMENT_PREFIX + name.upper()


def _add_flag(
    parser: argparse.ArgumentParser, each: "Field[Any]", hint: Any, environment: Mapping[str, str]
) -> None:
    kind, text = get_args(hint)
    given = environment.get(variable_of(each.name))
    choices = get_args(kind) if get_origin(kind) is Literal else None
    convert = _boolean if kind is bool else str if choices else Path if kind in (Path, Path | None) else kind
    shown = "" if each.default in (MISSING, None) else f" (default: {each.default})"
    parser.add_argument(
        flag_of(each.name),
        type=convert,
        choices=choices,
        metavar=None if choices else convert.__name__.strip("_").upper(),
        nargs="?" if kind is bool else None,
        const=True if kind is bool else None,
        default=given if given is not None else None if each.default is MISSING else each.default,
        required=each.default is MISSING and given is None,
        help=text.replace("%", "%%") + shown,
    )


def _boolean(text: str) -> bool:
    if text.lower() in ("true", "1", "yes"):
        return True
    if text.lower() in ("false", "0", "no"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
