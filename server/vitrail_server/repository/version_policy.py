"""Which of the versions on disk a model serves: Triton's three policies as a pure function."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Latest:
    """The `count` versions with the highest numbers; at least 1."""

    count: int = 1


@dataclass(frozen=True, slots=True)
class All:
    """Every version."""


@dataclass(frozen=True, slots=True)
class Specific:
    """The versions named."""

    versions: tuple[int, ...]


VersionPolicy = Latest | All | Specific


@dataclass(frozen=True, slots=True)
class Choice:
    """What a policy chose."""

    versions: tuple[int, ...]
    """The versions to serve, lowest first."""
    absent: tuple[int, ...] = ()
    """The versions that the policy names and that are not there, lowest first."""


def choose(policy: VersionPolicy, present: Iterable[int]) -> Choice:
    """Return the versions that the policy serves out of those present."""
    ordered = sorted(set(present))
    match policy:
        case Latest(count):
            return Choice(tuple(ordered[-count:]))
        case All():
            return Choice(tuple(ordered))
        case Specific(versions):
            wanted = sorted(set(versions))
            return Choice(
                versions=tuple(version for version in wanted if version in ordered),
                absent=tuple(version for version in wanted if version not in ordered),
            )
