"""What happened, told to whoever counts: the core reports events and knows no metric.

`metrics.py` turns them into Prometheus series; tests record them.
"""

from dataclasses import dataclass
from typing import Protocol

from vitrail_server.repository.state import State
from vitrail_server.work import Kind


@dataclass(frozen=True, slots=True)
class BatchExecuted:
    """The device computed one batch."""

    kind: Kind
    rows: int
    """Rows of explanations in it."""
    size: int
    """The batch's size, padding included."""
    seconds: float


@dataclass(frozen=True, slots=True)
class ExplanationEnded:
    """An explanation was answered, refused or given up."""

    request_id: str
    """The caller's own name for the call (metadata `x-request-id`), or one made up for it."""
    model: str
    """Empty if the request named no model of the repository."""
    version: int
    """0 if no version was chosen."""
    method: str
    """gradient or occlusion; empty if the request named none."""
    outcome: str
    """complete, partial, or the name of the status code in lower case."""
    seconds: float
    """From the request's arrival to its last message."""
    first_tile_seconds: float | None
    """From the request's arrival to its first tile. None: it had none."""
    queue_seconds: float
    device_seconds: float
    announced: int
    """Evaluations of the plan; 0 if it never came to one."""
    done: int
    skipped: int
    dropped: int
    tiles: int


class DeviceEvents(Protocol):
    """What the device reports."""

    def batch_executed(self, event: BatchExecuted) -> None:
        """Report one executed batch."""


class ExplanationEvents(Protocol):
    """What the explanation service reports."""

    def explanation_started(self) -> None:
        """Report that one was admitted; `explanation_ended` follows, whatever happens."""

    def explanation_ended(self, event: ExplanationEnded, *, admitted: bool) -> None:
        """Report the end of an explanation, of one that was never admitted too."""


class RepositoryEvents(Protocol):
    """What the manager of the models reports."""

    def model_state(self, name: str, version: int, state: State, reason: str) -> None:
        """Report that a version entered a state; the reason is empty unless the state is END."""

    def model_refused(self, name: str, reason: str) -> None:
        """Report that a model as a whole cannot be served: its configuration or directory is at fault."""

    def load_finished(self, name: str, version: int, seconds: float, *, ok: bool) -> None:
        """Report that loading a version ended, well or not."""
