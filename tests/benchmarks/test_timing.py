"""Costs, and the rounds in which two sides take turns."""

import pytest
from benchmarks.timing import Cost, Stopwatch, alternate, best_batch, processor_ratio, ratios


def test_sides_alternate_and_swap_who_goes_first() -> None:
    order: list[str] = []

    def side(name: str) -> str:
        order.append(name)
        return f"{name}{len(order)}"

    rounds = alternate(3, lambda: side("a"), lambda: side("b"))

    assert order == ["a", "b", "b", "a", "a", "b"]
    assert rounds == [("a1", "b2"), ("a4", "b3"), ("a5", "b6")]


def test_ratios_are_taken_round_by_round() -> None:
    pairs = [(Cost(3.0, None), Cost(2.0, None)), (Cost(1.0, None), Cost(4.0, None))]

    assert ratios(pairs) == [1.5, 0.25]


def test_processor_ratio_is_of_the_sums() -> None:
    pairs = [(Cost(9.0, 1.0), Cost(9.0, 2.0)), (Cost(9.0, 5.0), Cost(9.0, 1.0))]

    assert processor_ratio(pairs) == 2.0


@pytest.mark.parametrize("unknown", [(Cost(1.0, None), Cost(1.0, 1.0)), (Cost(1.0, 1.0), Cost(1.0, 0.0))])
def test_processor_ratio_is_unknown_where_a_side_is_or_was_too_short_to_see(
    unknown: tuple[Cost, Cost],
) -> None:
    assert processor_ratio([unknown]) is None


def test_costs_of_several_units() -> None:
    assert Cost(2.0, 0.5).times(4) == Cost(8.0, 2.0)
    assert Cost(2.0, None).times(4) == Cost(8.0, None)


def test_processor_time_is_preferred_where_it_is_known() -> None:
    assert Cost(2.0, 0.5).known_seconds == 0.5
    assert Cost(2.0, None).known_seconds == 2.0


def test_best_batch_takes_the_cheapest_of_two_tries_by_processor_time() -> None:
    tries = {
        1: [Cost(1.0, 4.0), Cost(1.0, 5.0)],
        4: [Cost(9.0, 9.0), Cost(9.0, 2.0)],
        8: [Cost(1.0, 3.0)] * 2,
    }
    left = {size: iter(costs) for size, costs in tries.items()}

    assert best_batch(lambda size: next(left[size]), list(tries)) == 4


def test_stopwatch_divides_what_the_block_took_by_its_units() -> None:
    used = iter([10.0, 16.0])

    with Stopwatch(lambda: next(used)) as watch:
        inside = watch.seconds

    cost = watch.per(3)
    assert cost.processor == 2.0
    assert 0.0 <= inside <= watch.seconds == pytest.approx(3 * cost.seconds)


def test_stopwatch_without_processor_time() -> None:
    with Stopwatch(lambda: None) as watch:
        pass

    assert watch.per(1).processor is None
