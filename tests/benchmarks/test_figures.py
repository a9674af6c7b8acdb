"""What is reported, and when a figure falls short."""

from math import comb

import numpy as np
import pytest
from benchmarks.figures import Figure, Target, lower_bound, measured, upper_bound
from hypothesis import given
from hypothesis import strategies as st

SAMPLES = st.lists(st.floats(0.001, 1000), min_size=5, max_size=60)
AT_MOST_2 = Target(2.0, at_most=True)
AT_LEAST_2 = Target(2.0, at_most=False)


def figure(samples: list[float], target: Target | None = None) -> Figure:
    return measured("suite", "name", "model", samples, how="somehow", target=target)


@pytest.mark.parametrize(
    ("samples", "bound"),
    [
        # All five are above the median with probability 1/32, which is less than 5 %; of four, 1/16.
        ([3.0, 1.0, 2.0, 5.0, 4.0], 1.0),
        ([3.0, 1.0, 2.0, 4.0], None),
        # At most one of eight is below it with probability 9/256 = 3.5 %; at most two: 37/256.
        ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0], 2.0),
        # At most one of seven: 8/128 = 6.25 %, which is too much, so the smallest it is.
        ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], 1.0),
    ],
)
def test_lower_bounds_of_the_median_by_hand(samples: list[float], bound: float | None) -> None:
    assert lower_bound(samples, 0.5) == bound


def test_upper_bound_of_the_median_is_the_mirror_image() -> None:
    assert upper_bound([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0], 0.5) == 7.0


def test_a_high_quantile_has_a_lower_bound_long_before_it_has_an_upper_one() -> None:
    # All of n are below the 95th percentile with probability 0.95^n: 5 % at n = 59.
    assert upper_bound(list(range(58)), 0.95) is None
    assert upper_bound(list(range(59)), 0.95) == 58
    assert lower_bound([7.0], 0.95) == 7.0  # it is below with probability 0.95 exactly


@given(n=st.integers(1, 60), quantile=st.sampled_from([0.05, 0.25, 0.5, 0.9, 0.95]))
def test_lower_bound_is_the_largest_order_statistic_that_the_binomial_tail_allows(
    n: int, quantile: float
) -> None:
    chances = [comb(n, k) * quantile**k * (1 - quantile) ** (n - k) for k in range(n + 1)]
    allowed = [k for k in range(1, n + 1) if sum(chances[:k]) <= 0.05 + 1e-12]

    assert lower_bound([float(each) for each in range(1, n + 1)], quantile) == max(allowed, default=None)


def test_bounds_cover_the_true_median_as_often_as_promised() -> None:
    random = np.random.default_rng(0)
    trials = random.lognormal(size=(4000, 9))  # its median is 1

    covered = np.mean([(lower_bound(list(trial), 0.5) or 0.0) <= 1 for trial in trials])

    assert covered >= 0.95


@given(SAMPLES)
def test_bounds_enclose_the_median(samples: list[float]) -> None:
    low, high = lower_bound(samples, 0.5), upper_bound(samples, 0.5)

    assert low is not None
    assert high is not None
    assert low <= np.median(samples) <= high


@pytest.mark.parametrize(
    ("samples", "target", "holds"),
    [
        ([1.0, 1.0, 1.0, 1.0, 1.0], AT_MOST_2, True),
        ([3.0, 3.0, 3.0, 3.0, 2.0], AT_MOST_2, True),  # one round reached it: not ruled out
        ([3.0, 3.0, 3.0, 3.0, 2.1], AT_MOST_2, False),
        ([1.0, 1.0, 1.0, 1.0, 2.0], AT_LEAST_2, True),
        ([1.0, 1.0, 1.0, 1.0, 1.9], AT_LEAST_2, False),
        ([3.0, 3.0, 3.0, 3.0, 3.0], AT_LEAST_2, True),
        ([9.0, 9.0, 9.0, 9.0, 9.0], None, True),
    ],
)
def test_a_figure_falls_short_only_if_its_bound_misses_the_target(
    samples: list[float], target: Target | None, *, holds: bool
) -> None:
    assert figure(samples, target).holds is holds


def test_value_is_the_quantile_and_the_detail_says_how() -> None:
    found = measured(
        "s", "p95", "m", [float(each) for each in range(101)], how="so", quantile=0.95, detail={"chunk": 8}
    )

    assert found.value == 95.0
    assert found.detail["quantile"] == 0.95
    assert found.detail["median"] == 50.0
    assert found.detail["spread"] == [0.0, 100.0]
    assert found.detail["rounds"] == 101
    assert found.detail["how"] == "so"
    assert found.detail["chunk"] == 8


def test_too_few_rounds_are_refused() -> None:
    with pytest.raises(ValueError, match="name has 4 measurements; it needs at least 5"):
        figure([1.0] * 4)


def test_json_has_the_keys_of_the_report() -> None:
    written = figure([1.0, 1.25, 1.5, 1.75, 2.000049], AT_MOST_2).as_json()

    assert list(written) == ["suite", "figure", "model", "value", "target", "holds", "detail"]
    assert (written["figure"], written["value"], written["target"], written["holds"]) == (
        "name",
        1.5,
        2.0,
        True,
    )
    detail = written["detail"]
    assert isinstance(detail, dict)
    assert detail["bound"] == "at most"
    assert detail["samples"] == [1.0, 1.25, 1.5, 1.75, 2.0]  # four digits


def test_json_of_a_figure_without_a_target() -> None:
    written = figure([1.0] * 5).as_json()

    assert written["target"] is None
    assert written["holds"] is True
