"""From a model's directory to the versions that should be loaded.

Reads everything that can be known of a model without loading it. Blocks; called on the loading lane.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from vitrail.errors import FailedPrecondition
from vitrail_server.repository.config import ModelConfig, read_config
from vitrail_server.repository.directory import ModelDirectory, find_saved_model, read_model_directory
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


class Loader(Protocol):
    """Makes servables; `savedmodel/` has the one that uses TensorFlow."""

    def load(self, source: VersionSource) -> Servable:
        """Load a version and warm it up; it can serve when this returns.

        Blocks, on the loading lane. Whatever it raises becomes the reason why the version is not
        available, so the first line of the message is written for the operator.
        """


@dataclass(frozen=True, slots=True)
class ModelSource:
    """What a model's directory asks the server to serve."""

    directory: ModelDirectory
    config: ModelConfig
    versions: tuple[int, ...]
    """The versions to load, lowest first; at least one."""
    notes: tuple[str, ...]
    """What the operator should know: things ignored, unused or absent."""

    def version(self, number: int) -> VersionSource:
        """Return the source of one of the versions.

        Raises:
            FailedPrecondition: there is no SavedModel in the version's directory.

        """
        directory = self.directory.versions[number]
        saved_model = find_saved_model(directory, self.config.default_model_filename)
        return VersionSource(self.directory.name, number, saved_model, self.config)


def read_model(name: str, path: Path) -> ModelSource:
    """Return what the directory of a model asks for.

    Raises:
        InvalidArgument: the configuration is wrong.
        FailedPrecondition: there is no version to serve.

    """
    directory = read_model_directory(name, path)
    config = read_config(directory)
    choice = choose(config.version_policy, directory.versions)
    ignored = [f"ignored {quoted(entry)}: {fault}" for entry, fault in directory.ignored.items()]
    absent = [
        f"version {version} is specified for model '{name}', but the version directory is not present"
        for version in choice.absent
    ]
    if not choice.versions:
        raise FailedPrecondition(_no_version(config, [*absent, *ignored]))
    unserved = [
        f"version label {quoted(label)} names version {version}, which is not served"
        for label, version in config.parameters.version_labels.items()
        if version not in choice.versions
    ]
    return ModelSource(directory, config, choice.versions, (*config.notes, *ignored, *absent, *unserved))


def _no_version(config: ModelConfig, why: list[str]) -> str:
    text = f"at least one version must be available under the version policy of model '{config.name}'"
    if config.parameters.build_command:
        text += f"; run {config.parameters.build_command}"
    return f"{text} ({listed(why)})" if why else text
