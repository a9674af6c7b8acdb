"""An object in a process of its own, whose methods are called from here, one at a time.

For the raw side: TensorFlow must not be in the client's process, and what computes must be alone on its
core. What a method returns or raises comes back here.
"""

import os
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Concatenate, Generic, ParamSpec, Self, TypeVar

from benchmarks.machine import pin

S = TypeVar("S")
P = ParamSpec("P")
T = TypeVar("T")

EXIT_SECONDS = 10.0
"""How long the process may take to end."""


class Remote(Generic[S]):
    """A process that holds what `make` returned there; `make` is a function or class of a module."""

    def __init__(self, make: Callable[[], S]) -> None:
        context = get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(make, theirs), daemon=True)
        self._process.start()
        theirs.close()

    def pin(self, core: int | None) -> None:
        """Move the process to one core."""
        pin(self._process.pid or os.getpid(), core)

    def call(self, method: Callable[Concatenate[S, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a method of the object there, as in ``remote.call(Raw.load, path)``, and wait for it.

        Raises:
            RuntimeError: the method failed, or the process ended.

        """
        self._connection.send((method, args, kwargs))
        try:
            result, failure = self._connection.recv()
        except EOFError:
            raise RuntimeError(f"the process ended while it ran {method.__qualname__}") from None
        if failure:
            raise RuntimeError(f"{method.__qualname__} failed: {failure}")
        value: T = result
        return value

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.join(EXIT_SECONDS)
        if self._process.is_alive():
            self._process.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _work(make: Callable[[], S], connection: Connection) -> None:
    """Make the object and call its methods until the other side hangs up."""
    it = make()
    while True:
        try:
            method, args, kwargs = connection.recv()
        except EOFError:
            return
        try:
            connection.send((method(it, *args, **kwargs), ""))
        except Exception as error:  # noqa: BLE001 - it belongs to the process that waits
            connection.send((None, f"{type(error).__name__}: {error}"))
