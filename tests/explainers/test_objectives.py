import numpy as np
import pytest

from vitrail_server.explainers.objectives import LOSSES, score, window_scores
from vitrail_server.work import Objective

OUTPUTS = np.array([[0.5, 0.25], [2.0, 1e-3]], np.float32)
BOTH = np.array([1, 0], np.int32)
VALUES = np.array([0.25, 1.0], np.float32)


def test_output_is_the_output_of_each_target_in_their_order() -> None:
    assert score(Objective.OUTPUT, OUTPUTS, BOTH, VALUES).tolist() == [
        [0.25, 0.5],
        [float(np.float32(1e-3)), 2.0],
    ]


def test_squared_error_has_a_true_value_per_target() -> None:
    expected = [[0.0, 0.25], [(float(np.float32(1e-3)) - 0.25) ** 2, 1.0]]
    assert score(Objective.SQUARED_ERROR, OUTPUTS, BOTH, VALUES).tolist() == expected


def test_cross_entropy_is_minus_the_logarithm() -> None:
    scores = score(Objective.CROSS_ENTROPY, OUTPUTS, BOTH[1:], VALUES[:1])
    assert scores == pytest.approx(np.array([[np.log(2)], [-np.log(2)]]))


def test_the_cross_entropy_of_an_underflowed_probability_is_large_and_finite() -> None:
    (loss,) = score(Objective.CROSS_ENTROPY, np.zeros((1, 1), np.float32), BOTH[1:], VALUES[:1])[0]
    assert loss == pytest.approx(87.34, abs=0.01)


def test_scores_are_differences_in_float64() -> None:
    """Of nearly equal losses: float32 would lose all of it."""
    outputs = np.array([[1000.0], [np.nextafter(np.float32(1000), np.float32(2000))]], np.float32)
    clean, hidden = score(Objective.SQUARED_ERROR, outputs, BOTH[1:], np.zeros(1, np.float32))
    (change,) = window_scores(Objective.SQUARED_ERROR, clean, hidden[None], absolute=False)[0]
    assert change == pytest.approx(2 * 1000 * (float(outputs[1, 0]) - 1000), rel=1e-6)


def test_cross_entropies_of_nearly_equal_probabilities_differ_in_float64() -> None:
    """Around a loss of 18.4 the numbers of float32 are 2e-6 apart."""
    outputs = np.array([[1e-8], [np.nextafter(np.float32(1e-8), np.float32(1))]], np.float32)
    clean, hidden = score(Objective.CROSS_ENTROPY, outputs, BOTH[1:], np.zeros(1, np.float32))
    step = float(outputs[1, 0]) / float(outputs[0, 0]) - 1
    assert clean - hidden == pytest.approx(step, rel=1e-6)


@pytest.mark.parametrize("objective", Objective)
def test_positive_means_that_hiding_hurts(objective: Objective) -> None:
    """A score that falls from 3 to 1, a loss that rises from 1 to 3."""
    clean, hidden = (1.0, 3.0) if objective in LOSSES else (3.0, 1.0)
    for absolute in (False, True):
        scores = window_scores(objective, np.array([clean]), np.array([[hidden], [clean]]), absolute=absolute)
        assert scores.tolist() == [[2.0], [0.0]]
    helps = window_scores(objective, np.array([hidden]), np.array([[clean]]), absolute=False)
    assert helps.tolist() == [[-2.0]]
    assert window_scores(objective, np.array([hidden]), np.array([[clean]]), absolute=True).tolist() == [
        [2.0]
    ]


def test_the_losses_are_the_objectives_that_grow_when_the_model_does_worse() -> None:
    assert frozenset({Objective.SQUARED_ERROR, Objective.CROSS_ENTROPY}) == LOSSES
