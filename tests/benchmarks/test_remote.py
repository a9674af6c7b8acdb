"""An object in a process of its own."""

import os
from collections.abc import Iterator

import pytest
from benchmarks.process import Remote


class Counter:
    """Counts in the other process."""

    def __init__(self) -> None:
        self.total = 0

    def add(self, number: int, *, times: int = 1) -> int:
        """Return the sum so far."""
        self.total += number * times
        return self.total

    def process(self) -> int:
        """Return the process."""
        return os.getpid()

    def stumble(self) -> None:
        """Fail."""
        raise KeyError("missing")

    def vanish(self) -> None:
        """End the process."""
        os._exit(1)


@pytest.fixture
def remote() -> Iterator[Remote[Counter]]:
    with Remote(Counter) as running:
        yield running


def test_the_object_lives_in_another_process_and_keeps_its_state(remote: Remote[Counter]) -> None:
    assert remote.call(Counter.process) != os.getpid()
    assert remote.call(Counter.add, 2) == 2
    assert remote.call(Counter.add, 3, times=10) == 32


def test_a_failure_there_is_raised_here_and_ends_nothing(remote: Remote[Counter]) -> None:
    with pytest.raises(RuntimeError, match=r"Counter\.stumble failed: KeyError: 'missing'"):
        remote.call(Counter.stumble)

    assert remote.call(Counter.add, 1) == 1


def test_a_process_that_ends_is_noticed(remote: Remote[Counter]) -> None:
    with pytest.raises(RuntimeError, match=r"the process ended while it ran Counter\.vanish"):
        remote.call(Counter.vanish)
