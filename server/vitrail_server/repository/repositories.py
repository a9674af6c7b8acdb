"""What several model repositories hold together; everything here blocks."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from vitrail.errors import FailedPrecondition
from vitrail_server.repository.directory import (
    ModelDirectory,
    RepositoryDirectory,
    list_models,
    read_model_directory,
)
from vitrail_server.repository.stamps import ModelStamp, stamp_of
from vitrail_server.wording import reason_of

DUPLICATE = "model appears in two or more repositories"


@dataclass(frozen=True, slots=True)
class Found:
    """A model, as it was found at one look."""

    name: str
    directory: ModelDirectory | None = None
    """None: it cannot be read."""
    stamp: ModelStamp | None = None
    """None with the directory."""
    fault: str = ""
    """Why it cannot be read."""

    @property
    def repository(self) -> Path | None:
        """Where it was found; None if it cannot be read."""
        return self.directory.path.parent if self.directory else None

    def readable(self) -> ModelDirectory:
        """Return the directory.

        Raises:
            FailedPrecondition: it cannot be read.

        """
        if self.directory is None:
            raise FailedPrecondition(self.fault)
        return self.directory


@dataclass(frozen=True, slots=True)
class Look:
    """The models of all repositories, as they were found at one look."""

    models: Mapping[str, Found]
    """In the order of their names."""
    ignored: Mapping[str, str]
    """Why a directory is not a model, by name."""
    doubtful: Mapping[Path, str]
    """The repositories that are empty or cannot be listed, and may be themselves again soon."""


class Repositories:
    """The repositories of a server. `config_name` names the configurations in `configs/`; empty: none."""

    def __init__(self, paths: Collection[Path], config_name: str = "") -> None:
        self._paths = tuple(dict.fromkeys(paths))
        self._config_name = config_name

    def names(self) -> dict[str, list[Path]]:
        """Return the directories of every model, by name, in the order of the names.

        Repositories that cannot be listed are left out.
        """
        return _by_name(self._listings()[0].values())

    def look(self, *, strict: bool = False) -> Look:
        """Return every model with its stamp.

        Raises:
            FailedPrecondition: `strict`, and a repository cannot be listed.

        """
        listings, faults = self._listings()
        if strict and faults:
            raise FailedPrecondition(next(iter(faults.values())))
        empty = {
            path: f"the model repository {path} is empty"
            for path, listing in listings.items()
            if not listing.models
        }
        return Look(
            models={name: self._found(name, paths) for name, paths in _by_name(listings.values()).items()},
            ignored={name: fault for listing in listings.values() for name, fault in listing.ignored.items()},
            doubtful={**faults, **empty},
        )

    def find(self, name: str) -> Found | None:
        """Return one model; None if no repository that can be listed has it."""
        paths = self.names().get(name)
        return self._found(name, paths) if paths else None

    def _listings(self) -> tuple[dict[Path, RepositoryDirectory], dict[Path, str]]:
        """Return what each repository holds, and why those that cannot be listed cannot: for the operator."""
        listings, faults = {}, {}
        for path in self._paths:
            try:
                listings[path] = list_models(path)
            except FailedPrecondition as error:
                faults[path] = error.message
            except OSError as error:
                faults[path] = f"the model repository {path} cannot be listed: {error.strerror}"
        return listings, faults

    def _found(self, name: str, paths: list[Path]) -> Found:
        if len(paths) > 1:
            return Found(name, fault=DUPLICATE)
        try:
            directory = read_model_directory(name, paths[0], self._config_name)
            return Found(name, directory, stamp_of(directory))
        except OSError as error:  # it may be gone by now, or not ours to read
            return Found(name, fault=reason_of(error, below=paths[0].parent))


def _by_name(listings: Iterable[RepositoryDirectory]) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for listing in listings:
        for name, path in listing.models.items():
            found.setdefault(name, []).append(path)
    return dict(sorted(found.items()))
