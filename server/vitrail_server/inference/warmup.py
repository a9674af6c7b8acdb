"""Inferences that a version answers before anyone else may ask it something."""

from collections.abc import Callable
from typing import Protocol, TypeVar

from vitrail.errors import FailedPrecondition
from vitrail_server.explainers.run import Nothing
from vitrail_server.inference.run import InferenceRun
from vitrail_server.servable import Servable
from vitrail_server.wording import quoted, reason_of
from vitrail_server.work import PredictRows

T = TypeVar("T")


class Execute(Protocol):
    """Runs a call on the device's thread, and returns what it returns or raises what it raises."""

    def __call__(self, chore: Callable[[], T], /) -> T:
        """Run the call; blocks."""


def warm_up(servable: Servable, name: str, count: int, rows: Callable[[], PredictRows], run: Execute) -> None:
    """Answer one sample, `count` times; blocks.

    Raises:
        FailedPrecondition: it cannot be answered; the message names the sample.

    """
    try:
        sample = rows()
        program = servable.predictor(sample)
        for _ in range(count):
            inference = InferenceRun(sample, program)
            while not isinstance(work := inference.take(program.batch_size), Nothing):
                part = work.rows
                (result,) = run(lambda part=part: program.execute([part]))  # type: ignore[misc]
                inference.absorb(work, result)
            inference.outputs()
    except Exception as error:
        raise FailedPrecondition(f"failed to run warmup sample {quoted(name)}: {reason_of(error)}") from error
