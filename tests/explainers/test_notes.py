import numpy as np
import pytest

from fakes.models import Linear, picture, weights
from fakes.questions import ask
from vitrail_server.explainers.notes import map_notes, plan_notes
from vitrail_server.explainers.run import Diagnostics, Plan, ResolvedTarget, WarningKind
from vitrail_server.servable import Capabilities
from vitrail_server.work import Objective

MODEL = Linear(weights(0, 2, (2, 2, 1)))
IMAGE = picture(0, (2, 2, 1))


def kinds(
    scores: list[float], objective: Objective, values: tuple[float, ...] = (), **facts: bool
) -> list[WarningKind]:
    question = ask(
        MODEL,
        IMAGE,
        objective=objective,
        values=values,
        probabilities=facts.get("probabilities", False),
        capabilities=Capabilities(non_deterministic=facts.get("non_deterministic", False)),
    )
    return [note.kind for note in plan_notes(question, np.array(scores))]


def test_an_ordinary_question_has_no_warnings() -> None:
    assert kinds([0.4, 0.6], Objective.OUTPUT, probabilities=True) == []


def test_a_model_that_contradicts_itself() -> None:
    assert kinds([0.4], Objective.OUTPUT, non_deterministic=True) == [WarningKind.NON_DETERMINISTIC]


@pytest.mark.parametrize(
    ("residual", "value", "near"),
    [
        (0.0, 5.0, True),
        (0.9e-6, 0.0, True),
        (1.1e-6, 0.0, False),
        (0.9e-3, 1000.0, True),
        (1.1e-3, -1000.0, False),
        (np.nan, 0.0, False),
    ],
)
def test_a_residual_near_zero_is_measured_against_the_true_value(
    residual: float, value: float, *, near: bool
) -> None:
    expected = [WarningKind.RESIDUAL_NEAR_ZERO] if near else []
    assert kinds([residual**2], Objective.SQUARED_ERROR, (value,)) == expected


def test_one_residual_near_zero_is_enough() -> None:
    assert kinds([1.0, 0.0], Objective.SQUARED_ERROR, (1.0, 2.0)) == [WarningKind.RESIDUAL_NEAR_ZERO]


@pytest.mark.parametrize(
    ("probability", "saturated"), [(1.0, True), (1 - 1e-7, True), (0.999, False), (0.0, False)]
)
def test_a_probability_of_one_is_saturated(probability: float, *, saturated: bool) -> None:
    expected = [WarningKind.SATURATED] if saturated else []
    assert kinds([0.1, probability], Objective.OUTPUT, probabilities=True) == expected
    assert kinds([0.1, probability], Objective.OUTPUT) == []
    loss = 100.0 if probability == 0 else float(-np.log(probability))
    assert kinds([loss], Objective.CROSS_ENTROPY, probabilities=True) == expected


def test_the_square_of_an_error_is_no_probability() -> None:
    assert kinds([1.0], Objective.SQUARED_ERROR, (3.0,), probabilities=True) == []


PLAN = Plan(
    output="scores",
    targets=(ResolvedTarget(3, "cat", 0.5, 0.5), ResolvedTarget(7, "", 0.5, 0.5)),
    objective=Objective.OUTPUT,
    values=(),
    map_shape=(2, 1, 1),
    evaluations=2,
    warnings=(),
)


def test_maps_that_say_something_need_no_words() -> None:
    assert map_notes([Diagnostics(0), Diagnostics(0)], [False, False], PLAN) == ()


def test_maps_of_zeros_and_maps_that_are_not_finite_are_named_by_their_targets() -> None:
    zero, broken = map_notes([Diagnostics(3), Diagnostics(1)], [True, True], PLAN)
    assert zero.kind is WarningKind.ZERO_MAP
    assert zero.message.startswith("the map of cat, 7 is 0 everywhere")
    assert broken.kind is WarningKind.NON_FINITE
    assert broken.message.startswith("the map of cat, 7 has values that are not finite")


def test_nothing_is_said_of_a_map_that_was_never_begun() -> None:
    assert map_notes([Diagnostics(0)], [], None) == ()
