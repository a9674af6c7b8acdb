"""Things that stay in order while they come and go: a sorted list, in which everything has its place.

Coming and going take a search by halves and a shift of pointers, which for some thousand things is quicker
than any tree or heap; what is in order can be looked through from anywhere, and nothing stale stays in it.
"""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator
from itertools import islice
from operator import itemgetter
from typing import Any, Generic, TypeVar

T = TypeVar("T")

_value = itemgetter(0)


class Ordered(Generic[T]):
    """Things by a value, the lowest first, and by a tie that no two of them have in common."""

    def __init__(self) -> None:
        self._items: list[tuple[float, Any, T]] = []
        self._places: dict[T, tuple[float, Any, T]] = {}

    def __len__(self) -> int:
        return len(self._items)

    @property
    def lowest(self) -> float | None:
        """The lowest value; None: there is nothing."""
        return self._items[0][0] if self._items else None

    def put(self, thing: T, value: float, tie: Any) -> None:
        """Take a thing in, or give it another place."""
        item = value, tie, thing
        if (before := self._places.get(thing)) != item:
            if before is not None:
                self.drop(thing)
            self._places[thing] = item
            insort(self._items, item)

    def drop(self, thing: T) -> None:
        """Forget a thing; nothing happens if it is not there."""
        if (item := self._places.pop(thing, None)) is not None:
            del self._items[bisect_left(self._items, item)]

    def below(self, value: float) -> int:
        """Return how many have lower values."""
        return bisect_left(self._items, value, key=_value)

    def under(self, value: float) -> list[T]:
        """Return those with lower values."""
        return [thing for _, _, thing in self._items[: self.below(value)]]

    def until(self, value: float) -> list[T]:
        """Return those whose values are not above `value`."""
        return [thing for _, _, thing in self._items[: bisect_right(self._items, value, key=_value)]]

    def after(self, value: float) -> float | None:
        """Return the lowest value above `value`; None: there is none."""
        place = bisect_right(self._items, value, key=_value)
        return self._items[place][0] if place < len(self._items) else None

    def between(self, first: int, last: int | None) -> Iterator[tuple[float, Any, T]]:
        """Yield value, tie and thing from place to place."""
        return islice(self._items, first, last)
