"""A figure that compares what two sides cost, round by round."""

from collections.abc import Sequence
from statistics import median

from benchmarks.figures import Detail, Figure, Target, measured, rounded
from benchmarks.timing import Cost, processor_ratio, ratios


def compared(
    suite: str,
    name: str,
    model: str,
    costs: Sequence[Cost],
    others: Sequence[Cost],
    *,
    how: str,
    target: Target | None,
    detail: Detail | None = None,
) -> Figure:
    """Return the figure whose samples are the costs over the others'."""
    pairs = list(zip(costs, others, strict=True))
    processor = processor_ratio(pairs)
    return measured(
        suite,
        name,
        model,
        ratios(pairs),
        how=how,
        target=target,
        detail={
            **(detail or {}),
            "processor_ratio": None if processor is None else rounded(processor),
            "seconds": rounded(median(each.seconds for each in costs)),
            "seconds_of_the_other": rounded(median(each.seconds for each in others)),
        },
    )
