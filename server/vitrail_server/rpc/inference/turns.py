"""Lets answers leave in the order in which their requests came."""

import asyncio


class Turns:
    """An order in which places are taken."""

    def __init__(self) -> None:
        self._last: asyncio.Future[None] | None = None

    def take(self) -> "Turn":
        """Return the place behind all that were taken before."""
        before, self._last = self._last, asyncio.get_running_loop().create_future()
        return Turn(before, self._last)


class Turn:
    """One place in an order."""

    def __init__(self, before: "asyncio.Future[None] | None", mine: "asyncio.Future[None]") -> None:
        self._before = before
        self._mine = mine

    async def come(self) -> None:
        """Return when all that came before are done."""
        if self._before is not None:
            await asyncio.shield(self._before)

    def done(self) -> None:
        """Let the next one come, once all that came before are done too."""
        if self._before is None or self._before.done():
            self._set()
        else:
            self._before.add_done_callback(lambda _: self._set())

    def _set(self) -> None:
        if not self._mine.done():
            self._mine.set_result(None)
