"""What every method is asked: which answer of which model for which image, and within which limits.

The rpc layer decodes and checks a request into a `Question`; an explainer turns it into a Run.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vitrail.errors import FailedPrecondition, InvalidArgument, ResourceExhausted
from vitrail_server.explainers.run import ResolvedTarget
from vitrail_server.servable import Description
from vitrail_server.work import Objective

DEFAULT_TARGETS = 16
"""The most outputs a regressor may have for all of them to be explained unasked."""


@dataclass(frozen=True, slots=True)
class TopK:
    """The n elements with the highest values, highest first; ties go to the lower index."""

    n: int


@dataclass(frozen=True, slots=True)
class AllTargets:
    """Every element of the output."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one explanation may ask for; each one is a setting of the server."""

    targets: int = 64
    scores: int = 2_000_000
    """Windows times targets."""


@dataclass(frozen=True, slots=True, eq=False)
class Question:
    """Which answer is explained."""

    description: Description
    image: NDArray[np.generic]
    """(height, width, channels), finite, in the model's units and type."""
    output: str
    """The output explained."""
    inputs: Mapping[str, NDArray[np.generic]] = field(default_factory=dict)
    """The model's other inputs, without the batch dimension."""
    targets: tuple[int | str, ...] | TopK | AllTargets | None = None
    """Indices and labels, or a rule. None: the default of the model's task."""
    objective: Objective = Objective.OUTPUT
    values: tuple[float, ...] = ()
    """The true values for SQUARED_ERROR: one per target, or one for all."""
    limits: Limits = field(default_factory=Limits)

    @property
    def elements(self) -> int:
        """How many elements the output has."""
        return self.description.output_elements[self.output]

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the output's elements; empty if they have none."""
        return self.description.settings.labels.get(self.output, ())


@dataclass(frozen=True, slots=True)
class Targets:
    """The targets of one explanation before the model has answered: fixed, or the highest k."""

    count: int
    fixed: tuple[int, ...] | None
    """None: the `count` highest."""

    def rows(self) -> NDArray[np.int32]:
        """Return (count,): what a gradient row differentiates (`GradientRows.targets`)."""
        if self.fixed is None:
            return -1 - np.arange(self.count, dtype=np.int32)
        return np.array(self.fixed, np.int32)

    def resolve(self, outputs: NDArray[np.float32]) -> NDArray[np.int32]:
        """Return (count,): the elements explained, given the outputs (elements,) of the clean image."""
        if self.fixed is None:
            highest = outputs.argmax()
            if self.count == 1 and not np.isnan(outputs[highest]):  # not a tenth of the time of sorting
                return np.array([highest], np.int32)
            return np.argsort(-outputs, kind="stable")[: self.count].astype(np.int32)
        return np.array(self.fixed, np.int32)


def targets_of(question: Question) -> Targets:
    """Return the targets that `question` asks for.

    Raises:
        InvalidArgument: an index, label or count that the output does not have, or none where the
            model has no default.
        ResourceExhausted: more targets than the server allows.

    """
    targets = _chosen(question)
    if targets.count > question.limits.targets:
        raise ResourceExhausted(
            f"{targets.count} targets are asked for; at most {question.limits.targets} are allowed per "
            "explanation: ask for fewer, or in several explanations",
            field="spec.targets",
        )
    _check_objective(question, targets)
    return targets


def values_of(question: Question, count: int) -> NDArray[np.float32]:
    """Return (count,): the true value per target for SQUARED_ERROR, zeros for the other objectives."""
    values = question.values or (0.0,)
    return np.array(values if len(values) == count else values * count, np.float32)


def resolved_targets(
    question: Question,
    indices: NDArray[np.int32],
    outputs: NDArray[np.float32],
    scores: NDArray[np.float64],
) -> tuple[ResolvedTarget, ...]:
    """Name the targets (targets,) with their outputs (elements,) and scores (targets,) of the clean image."""
    return tuple(
        ResolvedTarget(
            index=int(index),
            label=question.labels[index] if question.labels else "",
            output=float(outputs[index]),
            score=float(value),
        )
        for index, value in zip(indices, scores, strict=True)
    )


def _chosen(question: Question) -> Targets:
    chosen, elements = question.targets, question.elements
    match chosen:
        case None:
            return _default(question)
        case AllTargets():
            return Targets(elements, tuple(range(elements)))
        case TopK(n=n):
            if not 1 <= n <= elements:
                raise InvalidArgument(
                    f"spec.targets.top_k is {n}; output {question.output!r} has {elements} elements, so "
                    f"1 to {elements} are possible",
                    field="spec.targets.top_k",
                )
            return Targets(n, None)
        case _:
            if not chosen:
                raise InvalidArgument(
                    "spec.targets.list is empty; name at least one target, or leave targets unset",
                    field="spec.targets.list",
                )
            return Targets(len(chosen), tuple(_index(question, i, one) for i, one in enumerate(chosen)))


def _default(question: Question) -> Targets:
    if question.description.task == "CLASSIFICATION":
        return Targets(1, None)
    if question.elements <= DEFAULT_TARGETS:
        return Targets(question.elements, tuple(range(question.elements)))
    raise InvalidArgument(
        f"spec.targets is unset, and output {question.output!r} of this regressor has {question.elements} "
        f"elements, more than the {DEFAULT_TARGETS} that are explained unasked: name the targets",
        field="spec.targets",
    )


def _index(question: Question, position: int, target: int | str) -> int:
    where = f"spec.targets.list.targets[{position}]"
    if isinstance(target, int):
        if not 0 <= target < question.elements:
            raise InvalidArgument(
                f"{where}.index is {target}; output {question.output!r} has the elements 0 to "
                f"{question.elements - 1}",
                field=f"{where}.index",
            )
        return target
    if not question.labels:
        raise InvalidArgument(
            f"{where}.label is {target!r}, but output {question.output!r} has no label file: use an index",
            field=f"{where}.label",
        )
    if target not in question.labels:
        near = difflib.get_close_matches(target, question.labels, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else "GetModel lists the labels"
        raise InvalidArgument(
            f"{where}.label is {target!r}, which output {question.output!r} does not have; {hint}",
            field=f"{where}.label",
        )
    places = [place for place, label in enumerate(question.labels) if label == target]
    if len(places) > 1:
        raise InvalidArgument(
            f"{where}.label is {target!r}, the name of the elements {' and '.join(map(str, places))} of "
            f"output {question.output!r}: use an index",
            field=f"{where}.label",
        )
    return places[0]


def _check_objective(question: Question, targets: Targets) -> None:
    match question.objective:
        case Objective.SQUARED_ERROR:
            if len(question.values) not in (1, targets.count):
                raise InvalidArgument(
                    f"spec.objective.values has {len(question.values)} values; KIND_SQUARED_ERROR needs one "
                    f"for all targets, or one for each of the {targets.count}",
                    field="spec.objective.values",
                )
            with np.errstate(over="ignore"):  # too large becomes infinite
                values = np.array(question.values, np.float32)
            if not np.isfinite(values).all():
                raise InvalidArgument(
                    "spec.objective.values holds a value that is not finite in float32, the type of the "
                    "outputs",
                    field="spec.objective.values",
                )
        case Objective.CROSS_ENTROPY:
            if targets.count != 1 or targets.fixed is None:
                raise InvalidArgument(
                    "KIND_CROSS_ENTROPY is the loss against one known class: name exactly one target, the "
                    "true class",
                    field="spec.targets",
                )
            if question.output not in question.description.probabilities:
                raise FailedPrecondition(
                    f"KIND_CROSS_ENTROPY needs probabilities, but output {question.output!r} does not end in "
                    "a softmax or sigmoid: use KIND_OUTPUT, or export the model with its softmax",
                    field="spec.objective.kind",
                )
        case Objective.OUTPUT:
            pass
    if question.values and question.objective is not Objective.SQUARED_ERROR:
        raise InvalidArgument(
            "spec.objective.values is set, but only KIND_SQUARED_ERROR has values",
            field="spec.objective.values",
        )
