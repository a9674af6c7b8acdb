"""What threads do in turn: with a switch that the whole process has one of, or one after the other."""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager


class Turns:
    """Lets in at a time only threads that want a switch alike; the others wait, and nobody overtakes them."""

    def __init__(self, change: Callable[[bool], None]) -> None:
        """Take over a switch, which `change` sets; how it is now does not matter."""
        self._change = change
        self._first = threading.Lock()
        self._changed = threading.Condition()
        self._on: bool | None = None
        self._inside = 0

    @contextmanager
    def turn(self, *, on: bool) -> Iterator[None]:
        """Keep the switch as it is wanted within the block."""
        with self._first, self._changed:  # who waits here keeps the first place, and lets those inside leave
            while self._inside and self._on != on:
                self._changed.wait()
            if self._on != on:
                self._change(on)
                self._on = on
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()


def one_at_a_time() -> AbstractContextManager[object]:
    """Return what lets one thread at a time into its blocks; that one, into one within another too."""
    return threading.RLock()
