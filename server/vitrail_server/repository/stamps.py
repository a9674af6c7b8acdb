"""Tells whether files have changed: by their names, sizes and times of change, without reading them.

A stamp is equal to another if nothing was written in between. It is taken before the files are read, so
that a change which comes while they are read shows in the next one.
"""

import hashlib
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from vitrail_server.repository.directory import ModelDirectory


@dataclass(frozen=True, slots=True)
class ModelStamp:
    """The content of a model's directory."""

    versions: Mapping[int, str]
    """A stamp for each version's directory."""
    rest: str
    """One for everything beside them: the configuration, label files, warm-up data."""


def stamp_of(directory: ModelDirectory) -> ModelStamp:
    """Return the stamp of a model's directory; blocks.

    Raises:
        OSError: something in it cannot be looked at.

    """
    versions = {number: _stamp([path]) for number, path in directory.versions.items()}
    others = set(directory.path.iterdir()).difference(directory.versions.values())
    return ModelStamp(versions, _stamp(sorted(others)))


def _stamp(paths: list[Path]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        for entry in _entries(path, set()):
            status = entry.stat()
            # A directory changes whenever a file comes or goes, which the list of files shows already.
            facts = "" if stat.S_ISDIR(status.st_mode) else f"{status.st_size}\0{status.st_mtime_ns}"
            digest.update(f"{entry}\0{facts}\0".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _entries(path: Path, above: set[Path]) -> Iterator[Path]:
    """Yield the path and what is below it, in order, following links; one that leads nowhere is left out."""
    if not path.exists():
        return
    yield path
    if path.is_dir() and (real := path.resolve()) not in above:  # else a link leads back up
        for entry in sorted(path.iterdir()):
            yield from _entries(entry, above | {real})
