"""Where a version is in its life, and snapshots of what the manager serves.

The words are TensorFlow Serving's. A state is published relative to the act: AVAILABLE after the version
can serve, UNLOADING before it cannot. States only move forward; loading again is a new life.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from vitrail_server.servable import Description


class State(StrEnum):
    """Where a version is in its life, in order."""

    START = "START"
    """Known, not touched yet."""
    LOADING = "LOADING"
    """Being loaded and warmed up."""
    AVAILABLE = "AVAILABLE"
    """Answers requests."""
    UNLOADING = "UNLOADING"
    """Takes no new requests and finishes the old ones."""
    END = "END"
    """Gone, or failed to load; the reason says which."""


@dataclass(frozen=True, slots=True)
class VersionStatus:
    """One version of a model, as it was when asked for."""

    version: int
    state: State
    reason: str
    """Why the version is at END; of an AVAILABLE one, why its replacement failed to load. Else empty."""
    labels: tuple[str, ...]
    """The version labels that the configuration gives to it."""
    description: Description | None
    """None unless the version is AVAILABLE."""


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """One model of the repository, as it was when asked for."""

    name: str
    versions: tuple[VersionStatus, ...]
    """Lowest first; none if the model was never loaded, or cannot be as a whole."""
    reason: str
    """Why the model as a whole cannot be served, or not as its directory asks; empty if it can."""


class IndexEntry(NamedTuple):
    """One line of the repository's index, in Triton's words."""

    name: str
    version: str
    """Empty: the model as a whole."""
    state: str
    """READY, LOADING, UNLOADING or UNAVAILABLE; empty if the model was never loaded."""
    reason: str


TRITON_STATES = {
    State.START: "LOADING",
    State.LOADING: "LOADING",
    State.AVAILABLE: "READY",
    State.UNLOADING: "UNLOADING",
    State.END: "UNAVAILABLE",
}
"""What Triton calls each state."""
