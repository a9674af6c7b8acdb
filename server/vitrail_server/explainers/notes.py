"""The warnings that come with a map: what a reader would otherwise learn the hard way."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vitrail_server.explainers.question import Question
from vitrail_server.explainers.run import Diagnostics, Note, Plan, WarningKind
from vitrail_server.work import Objective

NEAR_ZERO_RESIDUAL = 1e-6
"""A residual below this part of the true value (or of 1) counts as none."""

SATURATION = 1e-6
"""A probability this close to 1 hardly moves, whatever happens to the image."""


def plan_notes(question: Question, scores: NDArray[np.float64]) -> tuple[Note, ...]:
    """Return what is known once the clean image's objectives (targets,) are."""
    notes = []
    if question.description.capabilities.non_deterministic:
        notes.append(
            Note(
                WarningKind.NON_DETERMINISTIC,
                "the model gave two answers for the same image when it was loaded (is dropout left on?), so "
                "the map holds noise: export the model for inference",
            )
        )
    if question.objective is Objective.SQUARED_ERROR:
        scale = np.maximum(1.0, np.abs(np.array(question.values)))
        if (np.sqrt(scores) < NEAR_ZERO_RESIDUAL * scale).any():
            notes.append(
                Note(
                    WarningKind.RESIDUAL_NEAR_ZERO,
                    "the model's output equals the true value given, so the squared error and its gradient "
                    "are 0: use KIND_OUTPUT to see what the output depends on",
                )
            )
    if question.output in question.description.probabilities:
        probabilities = np.exp(-scores) if question.objective is Objective.CROSS_ENTROPY else scores
        if question.objective is not Objective.SQUARED_ERROR and (probabilities >= 1 - SATURATION).any():
            notes.append(
                Note(
                    WarningKind.SATURATED,
                    "the probability of a target is 1 up to rounding, so its changes nearly vanish and the "
                    "map may be mostly rounding: explain a less certain target, or export the logits too",
                )
            )
    return tuple(notes)


def map_notes(
    diagnostics: Sequence[Diagnostics], zero: Sequence[bool], plan: Plan | None
) -> tuple[Note, ...]:
    """Return what the finished maps say; `zero` tells which targets' maps are 0 everywhere."""
    notes = []
    names = [target.label or str(target.index) for target in plan.targets] if plan else []
    flat = [name for name, is_zero in zip(names, zero, strict=False) if is_zero]
    if flat:
        notes.append(
            Note(
                WarningKind.ZERO_MAP,
                f"the map of {', '.join(flat)} is 0 everywhere: nothing that the method tried changes the "
                "objective",
            )
        )
    broken = [name for name, each in zip(names, diagnostics, strict=False) if each.non_finite_values]
    if broken:
        notes.append(
            Note(
                WarningKind.NON_FINITE,
                f"the map of {', '.join(broken)} has values that are not finite, because the model's outputs "
                "or gradients are not",
            )
        )
    return tuple(notes)
