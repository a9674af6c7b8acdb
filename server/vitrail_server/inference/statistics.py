"""What a version has computed for inferences since it was loaded, in Triton's terms.

A request counts once it has ended; a batch when it was executed, with the rows of inferences in it. The
columns are Triton's: queue, compute_input (decoding what came), compute_infer (its batches), compute_output
(encoding the answer).
"""

from dataclasses import dataclass, field

RESPONSES = 64
"""Positions of a stream's responses that are told apart; the later ones are counted with the last."""


@dataclass(slots=True)
class Duration:
    """How often something happened, and how many seconds it took in all."""

    count: int = 0
    seconds: float = 0.0

    def add(self, seconds: float) -> None:
        """Count one more."""
        self.count += 1
        self.seconds += seconds

    @property
    def nanoseconds(self) -> int:
        """The seconds, as Triton reports them."""
        return round(self.seconds * 1e9)


@dataclass(slots=True)
class BatchStatistics:
    """The batches of one size."""

    compute_input: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)


@dataclass(slots=True)
class ResponseStatistics:
    """The responses at one position of a stream."""

    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)
    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    empty_response: Duration = field(default_factory=Duration)
    cancel: Duration = field(default_factory=Duration)


@dataclass(slots=True)
class Statistics:
    """One version's."""

    last_inference: float = 0.0
    """When the latest request ended, in seconds since 1970; 0: there was none."""
    inference_count: int = 0
    """Rows answered."""
    execution_count: int = 0
    """Batches."""
    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    compute_input: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)
    batches: dict[int, BatchStatistics] = field(default_factory=dict)
    """By their rows of inferences."""
    responses: dict[int, ResponseStatistics] = field(default_factory=dict)
    """By position in the stream of a request's answers."""

    def executed(self, rows: int, seconds: float) -> None:
        """Count a batch with so many rows of inferences."""
        self.execution_count += 1
        each = self.batches.setdefault(rows, BatchStatistics())
        each.compute_infer.add(seconds)
        # Rows are put into a batch, and taken out of it, by its program: part of the same seconds.
        each.compute_input.add(0.0)
        each.compute_output.add(0.0)

    def succeeded(
        self,
        rows: int,
        seconds: float,
        *,
        queue: float,
        decode: float,
        infer: float,
        encode: float,
        now: float,
    ) -> None:
        """Count a request that was answered; `seconds` from its arrival, `now` in seconds since 1970."""
        self.last_inference = now
        self.inference_count += rows
        self.success.add(seconds)
        self.queue.add(queue)
        self.compute_input.add(decode)
        self.compute_infer.add(infer)
        self.compute_output.add(encode)

    def failed(self, seconds: float) -> None:
        """Count a request that was not answered."""
        self.fail.add(seconds)

    def responded(self, position: int) -> ResponseStatistics:
        """Return the statistics of the responses at a position of their streams, from 0."""
        return self.responses.setdefault(min(position, RESPONSES - 1), ResponseStatistics())
