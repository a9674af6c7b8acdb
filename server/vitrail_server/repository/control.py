"""Who decides what is loaded, and when: Triton's control modes, and the checks of its requests."""

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from google.protobuf import json_format

from vitrail.errors import Internal, InvalidArgument, Unimplemented
from vitrail_server.kserve.v2 import model_config_pb2 as triton
from vitrail_server.repository.lifecycle import Version
from vitrail_server.wording import quoted, shortened

ControlMode = Literal["none", "poll", "explicit"]

EVERY_MODEL = "*"
NOT_EXPLICIT = "explicit model load / unload is not allowed if polling is enabled"
OUTDATED = "Newer operation has been applied to the model lifecycle, current load operation is out-dated."
FILE_PREFIX = "file:"
"""How the name of a file begins that comes with a request to load."""


@dataclass(frozen=True, slots=True)
class Control:
    """Who decides what is loaded.

    none: everything, once, at start. poll: the repository's content, looked at again and again.
    explicit: requests; at start, `load_models`.
    """

    mode: ControlMode = "none"
    load_models: tuple[str, ...] = ()
    """The models to load at start in explicit mode; "*" alone stands for every model."""

    def __post_init__(self) -> None:
        """Check that the values go together.

        Raises:
            InvalidArgument: they do not.

        """
        if self.load_models and self.mode != "explicit":
            raise InvalidArgument("--load-model needs --model-control-mode explicit")
        if EVERY_MODEL in self.load_models and len(self.load_models) > 1:
            raise InvalidArgument(
                "Wildcard model name '*' must be the ONLY startup model if specified at all."
            )

    def at_start(self, found: Collection[str]) -> list[str]:
        """Return the models to load at start, out of those found; one that is named need not be there."""
        if self.mode != "explicit" or EVERY_MODEL in self.load_models:
            return list(found)
        return sorted(set(self.load_models))


def check_model_name(name: str) -> None:
    """Refuse a name that cannot be that of a model.

    Raises:
        InvalidArgument: it cannot.

    """
    if not name.strip():
        raise InvalidArgument(
            "Model name cannot be empty. Please enter a valid name to deploy.", field="model_name"
        )
    if ".." in name or "/" in name:
        raise InvalidArgument(
            f"invalid model name {quoted(name)}, model name must not contain path traversal characters",
            field="model_name",
        )


def check_files(files: Collection[str], config: str | None) -> None:
    """Refuse files that come with a request to load.

    Raises:
        InvalidArgument: they come without a configuration.
        Unimplemented: they come with one.

    """
    if files and config is None:
        raise InvalidArgument("Load parameter 'config' must be specified for model file override")
    if files:
        raise Unimplemented(
            f"load parameter {quoted(min(files))} is not supported: put the files into the model repository"
        )


def parse_override(config: str) -> triton.ModelConfig:
    """Return the configuration that comes with a request to load: a ModelConfig in JSON, with Triton's names.

    Raises:
        InvalidArgument: it is not one.

    """
    try:
        values = json.loads(config)
        if not isinstance(values, dict):
            raise ValueError("it is not an object")  # noqa: TRY301, TRY004 - said below
        return json_format.ParseDict(values, triton.ModelConfig())
    except (ValueError, json_format.ParseError, RecursionError) as error:
        fault = shortened(str(error).replace(triton.DESCRIPTOR.package + ".", ""), 400)
        raise InvalidArgument(
            f"load parameter 'config' is not a model configuration in JSON: {fault}",
            field='parameters["config"]',
        ) from None


def not_polled(name: str, reason: str) -> Internal:
    """Return the error of a load that came to no version: Triton's text, and why."""
    return Internal(f"failed to load '{name}', failed to poll from model repository: {reason}")


def not_loaded(name: str, version: Version) -> Internal:
    """Return the error of a load whose version failed: Triton's text."""
    code = version.code.name.replace("_", " ").capitalize()
    return Internal(
        f"load failed for model '{name}': version {version.number} is at UNAVAILABLE state: "
        f"{code}: {version.reason};"
    )
