"""The one place where the event loop meets a thread: a lane runs blocking calls one after the other."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Lane:
    """A thread of its own for one kind of blocking work, in order of arrival.

    The server has several: the device computes, the loading lane loads and traces models, the planning lane
    traces plans, the decoding lane reads images. None of them touches the state of the event loop.
    """

    def __init__(self, name: str) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)

    def submit(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Queue a call from any thread and return its future."""
        return self._executor.submit(function, *args, **kwargs)

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a call and return its result to the event loop.

        Cancelling the wait does not stop a call that has begun.
        """
        return await asyncio.wrap_future(self._executor.submit(function, *args, **kwargs))

    def close(self) -> None:
        """Drop the calls that have not begun, and wait for the one that has."""
        self._executor.shutdown(wait=True, cancel_futures=True)
