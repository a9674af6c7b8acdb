import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitrail_server.repository.version_policy import All, Choice, Latest, Specific, VersionPolicy, choose


@pytest.mark.parametrize(
    ("policy", "present", "expected"),
    [
        (Latest(), [1, 10, 9], Choice((10,))),
        (Latest(2), [1, 10, 9], Choice((9, 10))),
        (Latest(5), [3, 1], Choice((1, 3))),
        (Latest(), [], Choice(())),
        (All(), [10, 9, 1], Choice((1, 9, 10))),
        (All(), [], Choice(())),
        (Specific((3, 1)), [1, 2, 3], Choice((1, 3))),
        (Specific((7, 3, 4)), [1, 3], Choice((3,), absent=(4, 7))),
        (Specific((2, 2)), [2], Choice((2,))),
        (Specific((5,)), [1], Choice((), absent=(5,))),
    ],
)
def test_choice(policy: VersionPolicy, present: list[int], expected: Choice) -> None:
    assert choose(policy, present) == expected


VERSIONS = st.lists(st.integers(1, 20), unique=True)


@given(VERSIONS, st.integers(1, 25))
def test_latest_serves_the_highest_numbers(present: list[int], count: int) -> None:
    chosen = choose(Latest(count), present).versions
    assert len(chosen) == min(count, len(present))
    assert all(version > other for version in chosen for other in set(present) - set(chosen))


@given(VERSIONS, VERSIONS)
def test_specific_serves_or_reports_every_version_that_it_names(present: list[int], named: list[int]) -> None:
    choice = choose(Specific(tuple(named)), present)
    assert set(choice.versions) | set(choice.absent) == set(named)
    assert set(choice.versions) <= set(present)
    assert not set(choice.absent) & set(present)
