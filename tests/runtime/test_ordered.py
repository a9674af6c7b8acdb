from hypothesis import given
from hypothesis import strategies as st

from fakes.properties import examples
from vitrail_server.runtime.ordered import Ordered

VALUES = st.sampled_from([0.0, 0.5, 1.0, 1.5, 2.0])


@given(
    st.lists(st.tuples(st.integers(0, 9), st.none() | VALUES), max_size=40),
    VALUES,
    st.integers(0, 5),
)
@examples(100)
def test_it_is_a_list_that_is_sorted_after_every_change(
    changes: list[tuple[int, float | None]], bound: float, first: int
) -> None:
    ordered: Ordered[str] = Ordered()
    values: dict[int, float] = {}
    for thing, value in changes:
        if value is None:
            values.pop(thing, None)
            ordered.drop(str(thing))
        else:
            values[thing] = value
            ordered.put(str(thing), value, -thing)
        assert len(ordered) == len(values)

    expected = sorted((value, -thing, str(thing)) for thing, value in values.items())
    assert list(ordered.between(0, None)) == expected
    assert list(ordered.between(0, first)) == expected[:first]
    assert list(ordered.between(first, None)) == expected[first:]
    assert ordered.under(bound) == [thing for value, _, thing in expected if value < bound]
    assert ordered.below(bound) == len(ordered.under(bound))
    assert ordered.until(bound) == [thing for value, _, thing in expected if value <= bound]
    assert ordered.after(bound) == min((value for value in values.values() if value > bound), default=None)
