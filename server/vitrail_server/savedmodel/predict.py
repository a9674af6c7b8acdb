"""The programs of inferences that no explanation could share: any inputs, in batches as long as they come.

They are not padded to one shape, as the programs that explain are: nobody compares a prediction's last bits
with a map's here, and a padded batch of 64 would cost a single request dearly. The function takes any batch
size, so nothing is traced for a new one.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np

from vitrail_server.savedmodel.programs import NEWEST, ForwardFunction, predicted
from vitrail_server.work import Kind, PredictRows, Result, Rows

MOST_SHAPES = 64
"""Combinations of input shapes whose programs are remembered; one more forgets the oldest."""

Shapes = tuple[bool, tuple[tuple[str, tuple[int, ...]], ...]]


class PredictProgram:
    """Forwards of inputs of one combination of shapes: a `servable.Program`."""

    kind = Kind.PREDICT

    def __init__(
        self,
        forward: ForwardFunction,
        batch_size: int,
        *,
        seconds: float = 0.0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.batch_size = batch_size
        self.seconds = seconds
        self._forward = forward
        self._clock = clock

    def execute(self, parts: Sequence[Rows]) -> list[Result]:
        """Compute the rows, those of several requests one after the other.

        Raises:
            OutOfMemory: the device could not hold the batch.

        """
        began = self._clock()
        results = self._together([_predict_rows(part) for part in parts])
        self.seconds += NEWEST * (self._clock() - began - self.seconds)
        return results

    def halve(self) -> bool:
        """Halve the batch size after running out of memory; False if it is 1 already."""
        if self.batch_size == 1:
            return False
        self.batch_size //= 2
        self.seconds /= 2
        return True

    def _together(self, parts: Sequence[PredictRows]) -> list[Result]:
        if len(parts) == 1:
            (part,) = parts
            return [predicted(self._forward(part.inputs, part.outputs), len(part))]
        inputs = {name: np.concatenate([part.inputs[name] for part in parts]) for name in parts[0].inputs}
        outputs = self._forward(inputs, {name for part in parts for name in part.outputs})
        rows = sum(len(part) for part in parts)
        if any(output.shape[:1] != (rows,) for output in outputs.values()):
            # An output whose rows cannot be told apart, which the signature did not say.
            return [result for part in parts for result in self._together([part])]
        results, start = [], 0
        for part in parts:
            span = slice(start, start + len(part))
            results.append(predicted({name: outputs[name][span] for name in part.outputs}, len(part)))
            start = span.stop
        return results


class Predictors:
    """The predict programs of one version, made when their shapes are first asked for."""

    def __init__(self, forward: ForwardFunction, batch_size: int, *, seconds: float = 0.0) -> None:
        self._forward = forward
        self._batch_size = batch_size
        self._seconds = seconds
        self._programs: OrderedDict[Shapes, PredictProgram] = OrderedDict()

    def program(self, rows: PredictRows) -> PredictProgram:
        """Return the program for these rows; rows of the same shapes get the same one."""
        first = 1 if rows.batched else 0
        shapes = rows.batched, tuple((name, rows.inputs[name].shape[first:]) for name in sorted(rows.inputs))
        if shapes not in self._programs:
            size = self._batch_size if rows.batched else 1
            self._programs[shapes] = PredictProgram(self._forward, size, seconds=self._seconds)
            if len(self._programs) > MOST_SHAPES:
                self._programs.popitem(last=False)
        self._programs.move_to_end(shapes)
        return self._programs[shapes]


def _predict_rows(part: Rows) -> PredictRows:
    if not isinstance(part, PredictRows):
        raise TypeError("a predict program takes PredictRows")
    return part
