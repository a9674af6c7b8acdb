"""The memory that the activations of clean images may take, over all explanations of the server."""

from collections.abc import Callable

from vitrail_server.events import CacheEvents


class CacheBudget:
    """Bytes for activation caches: taken when an explanation begins, given back when it is over.

    Used on the event loop only.
    """

    def __init__(self, limit: int, events: CacheEvents) -> None:
        self.limit = limit
        self._taken = 0
        self._events = events

    def take(self, size: int) -> Callable[[], None] | None:
        """Take `size` bytes and return how they are given back; None if they are not there."""
        if self._taken + size > self.limit:
            return None
        self._change(size)
        left = [size]  # emptied by the first call: giving back twice does nothing

        def give_back() -> None:
            while left:
                self._change(-left.pop())

        return give_back

    def _change(self, size: int) -> None:
        self._taken += size
        self._events.incremental_caches(self._taken)
