"""From a model's directory to the versions that should be loaded.

Reads everything that can be known of a model without loading it. Blocks; called on the loading lane.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from vitrail.errors import FailedPrecondition
from vitrail_server.kserve.v2 import model_config_pb2 as triton
from vitrail_server.repository.config import ModelConfig, check_config, read_config
from vitrail_server.repository.directory import WARMUP_DIRECTORY, ModelDirectory, find_saved_model
from vitrail_server.repository.version_policy import choose
from vitrail_server.servable import Servable
from vitrail_server.wording import listed, quoted


@dataclass(frozen=True, slots=True)
class VersionSource:
    """What a loader needs to know of a version."""

    name: str
    version: int
    saved_model: Path
    """The directory with saved_model.pb."""
    config: ModelConfig
    warmup: Path
    """The directory with the data files of its warm-up samples."""


class Loader(Protocol):
    """Makes servables; `savedmodel/` has the one that uses TensorFlow."""

    def load(self, source: VersionSource) -> Servable:
        """Load a version and warm it up; it can serve when this returns.

        Blocks, on the loading lane. Whatever it raises becomes the reason why the version is not
        available, so the first line of the message is written for the operator; `Unavailable` says that
        the server stops.
        """


@dataclass(frozen=True, slots=True)
class ModelSource:
    """What a model's directory asks the server to serve."""

    directory: ModelDirectory
    config: ModelConfig
    versions: tuple[int, ...]
    """The versions to load, lowest first; at least one."""
    filenames: Mapping[int, str]
    """The name of each version's SavedModel in its directory; empty: the directory itself, or none."""
    notes: tuple[str, ...]
    """What the operator should know: things ignored, unused or absent."""

    def version(self, number: int) -> VersionSource:
        """Return the source of one of the versions.

        Raises:
            FailedPrecondition: there is no SavedModel in the version's directory.

        """
        directory = self.directory.versions[number]
        saved_model = find_saved_model(directory, self.config.default_model_filename)
        warmup = self.directory.path / WARMUP_DIRECTORY
        return VersionSource(self.directory.name, number, saved_model, self.config, warmup)


def read_model(directory: ModelDirectory, override: triton.ModelConfig | None = None) -> ModelSource:
    """Return what a model's directory asks for, with its own configuration or with one given instead.

    Raises:
        InvalidArgument: the configuration is wrong.
        FailedPrecondition: there is no version to serve, or a label names one that is not served.

    """
    config = read_config(directory) if override is None else check_config(override, directory)
    choice = choose(config.version_policy, directory.versions)
    ignored = [f"ignored {quoted(entry)}: {fault}" for entry, fault in directory.ignored.items()]
    absent = [
        f"version {version} is specified for model '{config.name}', but the version directory is not present"
        for version in choice.absent
    ]
    if not choice.versions:
        raise FailedPrecondition(_no_version(config, [*absent, *ignored]))
    for label, version in config.parameters.version_labels.items():
        if version not in choice.versions:
            raise FailedPrecondition(
                f"version label {quoted(label)} names version {version} of model '{config.name}', which is "
                f"not available; versions served: {listed(choice.versions)}"
            )
    filenames = {number: _filename(directory.versions[number], config) for number in choice.versions}
    return ModelSource(directory, config, choice.versions, filenames, (*config.notes, *ignored, *absent))


def _filename(version: Path, config: ModelConfig) -> str:
    try:
        path = find_saved_model(version, config.default_model_filename)
    except FailedPrecondition:
        return ""  # which is said when the version is to be loaded
    return "" if path == version else path.name


def _no_version(config: ModelConfig, why: list[str]) -> str:
    text = f"at least one version must be available under the version policy of model '{config.name}'"
    if config.parameters.build_command:
        text += f"; run {config.parameters.build_command}"
    return f"{text} ({listed(why)})" if why else text
