"""Finds out at load what a model can do, by running it on a few random images.

Every execution goes through `run`, one batch at a time; tracing happens on the calling thread. What is
found is told to callers before they pay for it, so a reason says what is missing and what would work.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from vitrail.errors import FailedPrecondition
from vitrail_server.savedmodel.functions import FLOATS, Disconnected, Forward, Gradient, trace_gradient
from vitrail_server.savedmodel.programs import Differentiate, ForwardFunction, example_rows
from vitrail_server.savedmodel.rows import NOTHING_HIDDEN, RowBuffer, RowLayout
from vitrail_server.savedmodel.signature import Exported, NotExplainable
from vitrail_server.servable import Signature
from vitrail_server.wording import listed, quoted, reason_of
from vitrail_server.work import Kind, Subject

T = TypeVar("T")
Answers = Mapping[str, NDArray[np.generic]]

SAME = 1e-4
"""Answers that differ by less than this part of the largest one are the same up to rounding."""


class Run(Protocol):
    """Executes something on the device's thread when nobody else needs it, and returns its result."""

    def __call__(self, execute: Callable[[], T], /) -> T:
        """Run `execute` and return what it returns, or raise what it raises."""


@dataclass(frozen=True, slots=True)
class Behaviour:
    """What running a model showed."""

    elements: Mapping[str, int]
    """How many elements each output has per image; outputs without a row per image are left out."""
    fixed_batch_size: int | None
    """The only batch size that works, by the signature or by trial."""
    batch_dependent: bool
    non_deterministic: bool
    trial: tuple[int, ...]
    """The batch that was run: positions in the sample."""

    @property
    def only_batch_size(self) -> int | None:
        """The batch size that programs must have; None: any.

        A dependent image is run alone, where its answer is its own. So is that of a model that never
        answers twice alike: noise would hide that it depends on its batch.
        """
        alone = self.batch_dependent or self.non_deterministic
        return self.fixed_batch_size or (1 if alone else None)

    @property
    def company_reason(self) -> str:
        """Why no map of one image is possible; empty if it is."""
        if not self.batch_dependent or self.fixed_batch_size in (None, 1):
            return ""
        return (
            f"the signature takes batches of {self.fixed_batch_size} only, and the answer for an image "
            "depends on the others in its batch; export it for inference (training=False), or with a free "
            "batch size"
        )


class Sample:
    """Random images of one size, with random further inputs; the same ones every time."""

    def __init__(self, layout: RowLayout, image_range: tuple[float, float], count: int) -> None:
        random = np.random.default_rng(0)
        low, high = image_range
        self.layout = layout
        self.subjects = [
            Subject(
                image=(low + (high - low) * random.random(layout.image.shape)).astype(layout.image.dtype),
                # Fractions; as integers 0, which is valid for an index and a flag alike.
                inputs={
                    name: random.random(each.shape).astype(each.dtype) for name, each in layout.others.items()
                },
                fill=np.zeros(layout.image.shape, layout.image.dtype),
            )
            for _ in range(count)
        ]

    def batch(self, *which: int) -> Mapping[str, NDArray[np.generic]]:
        """Return the inputs for the images at these positions."""
        rows = [(self.subjects[position], NOTHING_HIDDEN) for position in which]
        return RowBuffer(self.layout, len(rows)).fill(rows)


def observe(forward: Forward, fixed: int | None, sample: Sample, run: Run) -> Behaviour:
    """Run the model on a batch of different images, twice, and on one that repeats the first image.

    `fixed` is the batch size that the signature fixes; None: the whole sample is tried in one batch, and
    one image if that fails.

    Raises:
        FailedPrecondition: the model does not run.
        NotExplainable: no output has a row of numbers per image.

    """
    trial = tuple(position % len(sample.subjects) for position in range(fixed or len(sample.subjects)))
    try:
        first = answers(forward, forward.outputs, sample, trial, run)
    except tf.errors.OpError as error:
        if len(trial) > 1 and not fixed:
            return observe(forward, 1, sample, run)
        raise _refusal(sample, error) from error
    elements = elements_of(first, len(trial))
    if not elements:
        raise NotExplainable(
            "no output has a row of numbers per image; export one of a numeric type and the shape (None, ...)"
        )
    non_deterministic = not same(first, answers(forward, elements, sample, trial, run))
    batch_dependent = False
    if len(trial) > 1 and not non_deterministic:
        repeated = answers(forward, elements, sample, (0,) * len(trial), run)
        batch_dependent = not same(_first_rows(first), _first_rows(repeated))
    return Behaviour(elements, fixed, batch_dependent, non_deterministic, trial)


def common_elements(
    forward: Forward, behaviour: Behaviour, others: Iterable[Sample], run: Run
) -> Mapping[str, int]:
    """Return the elements per image of the outputs that have as many for images of the other sizes.

    Raises:
        FailedPrecondition: the model does not run on one of the sizes, or no output is left.

    """
    common = behaviour.elements
    for sample in others:
        try:
            found = answers(forward, list(common), sample, behaviour.trial, run)
        except tf.errors.OpError as error:
            raise _refusal(sample, error) from error
        there = elements_of(found, len(behaviour.trial))
        common = {name: count for name, count in common.items() if there.get(name) == count}
    if not common:
        raise FailedPrecondition(
            "every output has another number of elements for another image size; serve one size only: list "
            "it alone in vitrail.image_sizes"
        )
    return common


def answers(
    forward: ForwardFunction, outputs: Collection[str], sample: Sample, which: Sequence[int], run: Run
) -> Answers:
    """Return the outputs for one batch of the sample's images."""
    return run(lambda: forward(sample.batch(*which), outputs))


def elements_of(answers: Answers, rows: int) -> dict[str, int]:
    """Return how many elements per image each output has that has a row for each of `rows` images."""
    return {
        name: answer.size // rows
        for name, answer in answers.items()
        if answer.shape[:1] == (rows,) and answer.size
    }


def same(some: Answers, others: Answers) -> bool:
    """Return whether `others` agree with `some` up to rounding, where both have an output.

    Values that are not finite must be the same.
    """
    return all(_close(some[name], others[name]) for name in some.keys() & others.keys())


def find_gradient(
    exported: Exported, outputs: tuple[str, ...], behaviour: Behaviour, sample: Sample, run: Run
) -> tuple[Gradient | None, str]:
    """Return the gradient function, tried on one batch; or None and why there is none.

    `outputs` are those with a row per image.
    """
    image_input = sample.layout.image_input
    reason = behaviour.company_reason or _integer_reason(exported.signature, image_input, outputs)
    if reason:
        return None, reason
    try:
        gradient = trace_gradient(exported, image_input, outputs)
    except Disconnected:
        floats = listed(name for name in outputs if exported.signature.outputs[name].datatype in FLOATS)
        return None, (
            f"no gradient of {floats} reaches the image input {quoted(image_input)}: a rounding, an argmax, "
            "a stop_gradient or Python code stands between them; export a signature without it"
        )
    except LookupError as error:
        return None, (
            "an operation has no gradient, as happens where the custom gradients of an activation (swish, "
            "for example) were not saved; export again with "
            "tf.saved_model.SaveOptions(experimental_custom_gradients=True). "
            f"TensorFlow says: {reason_of(error).partition('. ')[0]}"
        )
    except Exception as error:  # noqa: BLE001 - whatever it is, the model can still be occluded
        return None, f"TensorFlow cannot differentiate the signature: {reason_of(error)}"
    rows = example_rows(Kind.GRADIENT, sample.subjects[0], min(gradient.differentiable), 1)
    buffer = RowBuffer(sample.layout, behaviour.only_batch_size or 1)
    try:
        run(lambda: Differentiate(gradient)(buffer, [rows]))
    except tf.errors.OpError as error:
        return None, f"TensorFlow cannot compute the gradient: {reason_of(error)}"
    return gradient, ""


def _integer_reason(signature: Signature, image_input: str, outputs: Sequence[str]) -> str:
    image = signature.inputs[image_input]
    if image.datatype not in FLOATS:
        return (
            f"the image input {quoted(image_input)} is {image.datatype}, and integers have no gradient; "
            "export a signature that takes FP32 pixels"
        )
    if not any(signature.outputs[name].datatype in FLOATS for name in outputs):
        kinds = listed(f"{name} ({signature.outputs[name].datatype})" for name in outputs)
        return (
            f"no output holds floating point numbers, only {kinds}, and integers have no gradient; export "
            "the scores as well"
        )
    return ""


def _refusal(sample: Sample, error: tf.errors.OpError) -> FailedPrecondition:
    height, width, _ = sample.layout.image.shape
    return FailedPrecondition(f"the model fails on a random image of {height}x{width}: {reason_of(error)}")


def _first_rows(answers: Answers) -> Answers:
    return {name: answer[:1] for name, answer in answers.items()}


def _close(some: NDArray[np.generic], others: NDArray[np.generic]) -> bool:
    one, other = some.astype(np.float64), others.astype(np.float64)
    scale = np.abs(one[np.isfinite(one)]).max(initial=0.0)
    return one.shape == other.shape and np.allclose(one, other, rtol=0, atol=SAME * scale, equal_nan=True)
