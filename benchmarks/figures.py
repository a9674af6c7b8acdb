"""What is reported: figures with their spread, and whether they hold their targets.

A figure is a quantile, usually the median, of repeated measurements on a machine that others use too. It
falls short only where the measurements rule the target out: where the 95 % confidence bound on the
quantile's better side misses it. The bound is an order statistic, so nothing is assumed about how the
measurements are distributed. Pure.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import exp, log

import numpy as np

CONFIDENCE = 0.95

EXACT = 1e-12
"""Rounding of sums of probabilities, which must not decide where they hit the confidence exactly."""

MEDIAN = 0.5

MOST_SAMPLES = 200
"""Samples that are reported; of more, only what is made of them."""

LEAST_ROUNDS = 5
"""With fewer measurements not even their extremes bound the median with this confidence."""

Value = float | int | str | bool | None
Detail = Mapping[str, "Value | Sequence[Value] | Mapping[str, Value]"]


@dataclass(frozen=True, slots=True)
class Target:
    """What a figure should be."""

    limit: float
    at_most: bool
    """Smaller values are better; otherwise larger ones are."""

    def __str__(self) -> str:
        return f"{'<=' if self.at_most else '>='} {self.limit:g}"


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the report."""

    suite: str
    name: str
    model: str
    """Empty where no model is meant."""
    value: float
    unit: str = ""
    """Empty for a ratio."""
    target: Target | None = None
    holds: bool = True
    """Whether it reaches its target, as far as can be told; True without one."""
    detail: Detail = field(default_factory=dict)

    def as_json(self) -> dict[str, object]:
        """Return the figure as the report's JSON has it."""
        bound = {"bound": "at most" if self.target.at_most else "at least"} if self.target else {}
        return {
            "suite": self.suite,
            "figure": self.name,
            "model": self.model,
            "value": rounded(self.value),
            "target": self.target.limit if self.target else None,
            "holds": self.holds,
            "detail": {"unit": self.unit or "ratio", **bound, **self.detail},
        }


def measured(
    suite: str,
    name: str,
    model: str,
    samples: Sequence[float],
    *,
    how: str,
    target: Target | None = None,
    unit: str = "",
    quantile: float = MEDIAN,
    detail: Detail | None = None,
) -> Figure:
    """Return the figure that `samples` give: their quantile, judged by its confidence bound.

    `how` says in a sentence what was measured. At least `LEAST_ROUNDS` samples.
    """
    if len(samples) < LEAST_ROUNDS:
        raise ValueError(f"{name} has {len(samples)} measurements; it needs at least {LEAST_ROUNDS}")
    low, high = lower_bound(samples, quantile), upper_bound(samples, quantile)
    return Figure(
        suite=suite,
        name=name,
        model=model,
        value=float(np.quantile(samples, quantile)),
        unit=unit,
        target=target,
        holds=target is None or not _ruled_out(target, low, high),
        detail={
            "how": how,
            **({} if quantile == MEDIAN else {"quantile": quantile}),
            "median": rounded(float(np.median(samples))),
            "spread": [rounded(min(samples)), rounded(max(samples))],
            "rounds": len(samples),
            "lower_bound": None if low is None else rounded(low),
            "upper_bound": None if high is None else rounded(high),
            **({"samples": [rounded(each) for each in samples]} if len(samples) <= MOST_SAMPLES else {}),
            **(detail or {}),
        },
    )


def lower_bound(samples: Sequence[float], quantile: float) -> float | None:
    """Return what the quantile is above with 95 % confidence; None if the samples are too few to say.

    The k-th smallest of n samples is above the quantile exactly if fewer than k of them are below it,
    and how many are below is binomial.
    """
    ordered = sorted(samples)
    n, below, tail = len(ordered), 0, 0.0
    chance = n * log(1 - quantile)  # as a logarithm: thousands of samples make it smaller than any float
    while below < n:
        tail += exp(chance)
        if tail > 1 - CONFIDENCE + EXACT:
            break
        chance += log((n - below) / (below + 1) * quantile / (1 - quantile))
        below += 1
    return ordered[below - 1] if below else None


def upper_bound(samples: Sequence[float], quantile: float) -> float | None:
    """Return what the quantile is below with 95 % confidence; None if the samples are too few to say."""
    mirrored = lower_bound([-each for each in samples], 1 - quantile)
    return None if mirrored is None else -mirrored


def rounded(value: float) -> float:
    """Return the value to four digits: more would be noise."""
    return float(f"{value:.4g}")


def _ruled_out(target: Target, low: float | None, high: float | None) -> bool:
    if target.at_most:
        return low is not None and low > target.limit
    return high is not None and high < target.limit
