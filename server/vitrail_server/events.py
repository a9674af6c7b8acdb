"""What happened, told to whoever counts: the core reports events and knows no metric.

`metrics.py` turns them into Prometheus series; tests record them.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

from vitrail_server.repository.state import State
from vitrail_server.work import Kind

Urgency = Literal["urgent", "default", "background"]
"""A priority beside that of a request which names none: before it, the same, or behind it."""


@dataclass(frozen=True, slots=True)
class BatchExecuted:
    """The device computed one batch."""

    kind: Kind
    rows: int
    """Rows of explanations in it."""
    size: int
    """The batch's size, padding included."""
    seconds: float
    device: str = "CPU:0"
    """TensorFlow's name of the device that computed it."""


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
    urgency: Urgency | None
    """None: it was refused before its priority was known."""
    seconds: float
    """From the request's arrival to its last message."""
    first_tile_seconds: float | None
    """From the request's arrival to its first tile. None: it had none."""
    decode_seconds: float | None
    """Until its image was decoded and checked, waiting for that included. None: it never was."""
    queue_seconds: float | None
    """From then until its first batch began, or it was given up. None: it never came to the queue."""
    device_seconds: float | None
    """Its share, by rows, of the seconds of its batches. None: it was in none."""
    write_seconds: float | None
    """Spent by its messages on their way into the connection. None: it had none."""
    execution: str
    """How its plan says that the evaluations are computed, for example full; empty if it had none."""
    announced: int
    """Evaluations of the plan; 0 if it never came to one."""
    done: int
    skipped: int
    dropped: int
    tiles: int


@dataclass(frozen=True, slots=True)
class InferenceEnded:
    """An inference was answered, refused or given up."""

    request_id: str
    """The request's own id, made printable and short, else the caller's name for the call (metadata
    `x-request-id`), or one made up."""
    model: str
    """Empty if the request named no model of the repository."""
    version: int
    """0 if no version was chosen."""
    outcome: str
    """complete, or the name of the status code in lower case."""
    rows: int
    """Rows answered; 0 if it was not."""
    seconds: float
    """From the request's arrival to its answer."""
    decode_seconds: float | None
    """Until its tensors were read and checked. None: they never were."""
    queue_seconds: float | None
    """From then until its first batch began. None: none did."""
    device_seconds: float | None
    """Its share, by rows, of the seconds of its batches. None: it was in none."""
    encode_seconds: float | None
    """From the end of its last batch until its answer was made. None: there was no answer."""


class DeviceEvents(Protocol):
    """What the device reports."""

    def device_added(self, name: str) -> None:
        """Report that a device will be used from now on, by TensorFlow's name."""

    def batch_executed(self, event: BatchExecuted) -> None:
        """Report one executed batch."""

    def batch_failed(self, kind: Kind, *, out_of_memory: bool) -> None:
        """Report that a batch failed; its rows are tried again in smaller batches, or not at all."""

    def rows_dropped(self, kind: Kind, rows: int) -> None:
        """Report rows that were left out of their batch, because nobody wanted them any more."""

    def queue_changed(self, waiting: int, batches: int) -> None:
        """Report how many Runs have rows that wait, and how many batches the device has before it."""


class CacheEvents(Protocol):
    """What is reported of the activations that are kept of clean images."""

    def incremental_caches(self, size: int) -> None:
        """Report how many bytes are set aside for them."""


class ExplanationEvents(Protocol):
    """What the explanation service reports."""

    def explanation_started(self) -> None:
        """Report that one was admitted; `explanation_ended` follows, whatever happens."""

    def explanation_ended(self, event: ExplanationEnded, *, admitted: bool) -> None:
        """Report the end of an explanation, of one that was never admitted too."""


class InferenceEvents(Protocol):
    """What the inference service reports."""

    def inference_started(self) -> None:
        """Report that one was admitted; `inference_ended` follows, whatever happens."""

    def inference_ended(self, event: InferenceEnded, *, admitted: bool) -> None:
        """Report the end of an inference, of one that was never admitted too."""


class RepositoryEvents(Protocol):
    """What the manager of the models reports.

    A version has one state towards everyone, also while its old content serves and its new is loaded.
    """

    def model_state(self, name: str, version: int, state: State, reason: str) -> None:
        """Report that a version entered a state, or that there is another reason.

        The reason says why it is at END, or why an AVAILABLE one could not be replaced.
        """

    def version_forgotten(self, name: str, version: int) -> None:
        """Report that a version that had ended is not spoken of any more."""

    def model_refused(self, name: str, reason: str) -> None:
        """Report that a model as a whole cannot be served: its configuration or directory is at fault."""

    def model_removed(self, name: str) -> None:
        """Report that a model is not in the repository any more, and that all of it has ended."""

    def load_finished(self, name: str, version: int, seconds: float, *, ok: bool) -> None:
        """Report that loading a version ended, well or not."""

    def reload_finished(self, name: str, *, ok: bool) -> None:
        """Report that what a model serves was replaced, or could not be and still serves."""
