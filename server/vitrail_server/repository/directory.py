"""What a model repository holds, read from disk: facts only, no state, nothing interpreted.

    <repository>/<model>/config.pbtxt                         optional
    <repository>/<model>/configs/<name>.pbtxt                 instead, for servers that ask for the name
    <repository>/<model>/labels.txt                           named by config.pbtxt
    <repository>/<model>/<version>/model.savedmodel/          a SavedModel, or
    <repository>/<model>/<version>/saved_model.pb             the version's directory is the SavedModel

Models and versions are found by listing; a name from a request is looked up in the listing and never
becomes part of a path. Names from a configuration must be plain, and a label file, whose lines go out to
clients, must lie inside the model's directory when its symbolic links are followed. Models, versions and
SavedModels may be symbolic links: whoever may write to the repository decides what it serves.
Everything here blocks and is called on the loading lane.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from vitrail.errors import FailedPrecondition, InvalidArgument
from vitrail_server.wording import quoted

CONFIG_FILENAME = "config.pbtxt"
CONFIGS_DIRECTORY = "configs"
"""Where a model keeps configurations that a server chooses by name."""
WARMUP_DIRECTORY = "warmup"
"""Where a model keeps the data files of its warm-up samples."""
SAVED_MODEL_DIRECTORY = "model.savedmodel"
"""Triton's name of the SavedModel inside a version's directory."""
SAVED_MODEL_FILENAME = "saved_model.pb"
"""The file that makes a directory a SavedModel."""

_VERSION = re.compile(r"[1-9][0-9]*")
_LARGEST_VERSION = 2**63 - 1  # an int64 on the wire
_OTHER_DIRECTORIES = frozenset(
    {CONFIGS_DIRECTORY, "initial_state", WARMUP_DIRECTORY}
)  # Triton's own, beside the versions


@dataclass(frozen=True, slots=True)
class RepositoryDirectory:
    """The models of a repository."""

    models: Mapping[str, Path]
    """The models' directories by name, in the order of the names."""
    ignored: Mapping[str, str]
    """Why a directory is not a model, by name; hidden names and plain files are left out."""


@dataclass(frozen=True, slots=True)
class ModelDirectory:
    """The directory of one model."""

    name: str
    path: Path
    config: Path | None
    """The configuration's file, if there is one."""
    versions: Mapping[int, Path]
    """The versions' directories by number, lowest first."""
    ignored: Mapping[str, str]
    """Why something that could be meant as a version is not one, by name."""


def is_plain(filename: str) -> bool:
    """Say whether a name from a configuration is that of an entry of a directory, and leads nowhere else."""
    return bool(filename) and filename.isprintable() and re.search(r"[/\\]|^\.+$", filename) is None


def list_models(repository: Path) -> RepositoryDirectory:
    """Return the models of a repository.

    Raises:
        FailedPrecondition: the repository is not a directory.

    """
    if not repository.is_dir():
        raise FailedPrecondition(f"the model repository {str(repository)!r} is not a directory")
    models, ignored = {}, {}
    for path in sorted(repository.iterdir()):
        if path.name.startswith(".") or not path.is_dir():
            continue
        if path.name.isprintable():
            models[path.name] = path
        else:
            ignored[ascii(path.name)] = "its name has characters that cannot be printed"
    return RepositoryDirectory(models, ignored)


def read_model_directory(name: str, path: Path, config_name: str = "") -> ModelDirectory:
    """Return what the directory of a model holds.

    If `config_name` is given and `configs/<config_name>.pbtxt` is there, that is the configuration.
    """
    config, versions, ignored = None, {}, {}
    for entry in sorted(path.iterdir()):
        if entry.name == CONFIG_FILENAME:
            config = entry
        elif fault := _version_fault(entry):
            ignored[entry.name] = fault
        elif _VERSION.fullmatch(entry.name):
            versions[int(entry.name)] = entry
    custom = path / CONFIGS_DIRECTORY / f"{config_name}.pbtxt"
    if config_name and custom.is_file():
        config = custom
    return ModelDirectory(name, path, config, dict(sorted(versions.items())), ignored)


def find_saved_model(version: Path, filename: str = "") -> Path:
    """Return the SavedModel in a version's directory.

    `filename` is the configuration's `default_model_filename`, a plain name; if it is empty, both layouts
    are tried.

    Raises:
        FailedPrecondition: there is no SavedModel.

    """
    candidates = [version / filename] if filename else [version / SAVED_MODEL_DIRECTORY, version]
    for candidate in candidates:
        if (candidate / SAVED_MODEL_FILENAME).is_file():
            return candidate
    tried = " nor ".join(
        str((path / SAVED_MODEL_FILENAME).relative_to(version.parent)) for path in candidates
    )
    raise FailedPrecondition(f"no SavedModel: there is no {tried}")


def read_labels(model: ModelDirectory, filename: str) -> tuple[str, ...]:
    """Return the lines of a label file: line i names element i.

    Raises:
        InvalidArgument: the file is not inside the model's directory, or is not UTF-8 text.

    """
    plain = PurePosixPath(filename)
    if plain.is_absolute() or ".." in plain.parts or not filename.isprintable():
        raise InvalidArgument(f"label file {quoted(filename)} must be a path inside the model's directory")
    root = model.path.resolve()
    path = (root / plain).resolve()
    if not path.is_relative_to(root):
        raise InvalidArgument(
            f"label file {quoted(filename)} is a link that leads out of the model's directory"
        )
    if not path.is_file():
        raise InvalidArgument(f"label file {quoted(filename)} is not a file in the model's directory")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidArgument(
            f"label file {quoted(filename)} is not UTF-8 text: byte {error.start} is wrong"
        ) from None
    # Not splitlines(), which also splits at characters that a label may hold.
    return tuple(text.removesuffix("\n").split("\n")) if text else ()


def _version_fault(entry: Path) -> str:
    """Return why an entry of a model's directory is not a version though it may be meant as one."""
    if entry.name.startswith(".") or entry.name in _OTHER_DIRECTORIES:
        return ""
    if not entry.is_dir():
        return "it is not a directory" if _VERSION.fullmatch(entry.name) else ""
    if _VERSION.fullmatch(entry.name):
        return "" if int(entry.name) <= _LARGEST_VERSION else f"its number is above {_LARGEST_VERSION}"
    if re.fullmatch("0[0-9]*", entry.name):
        return "its number starts with 0: versions count from 1, without leading zeros"
    return "its name is not a number"
