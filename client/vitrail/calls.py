"""What the calls of both clients share: channel options, credentials, deadlines and when to retry.

Everything here is a value or a pure decision; the clients do the calling and the waiting.
"""

import time
from collections.abc import Callable
from importlib.metadata import version

import grpc

from vitrail.errors import Unavailable, VitrailError
from vitrail.status import from_rpc_error

DEADLINE_FACTOR, DEADLINE_SECONDS = 1.05, 1.0
"""How much later than the time budget the rpc deadline is: 5 % and a second.

The budget is the server's to keep, and returns a partial map; the deadline is the hard end, for a
server or a network that does not answer, and loses the map.
"""

FIRST_PAUSE, LONGEST_PAUSE = 0.2, 2.0
"""Seconds before the first retry, doubled for each further one up to the longest."""

ATTEMPTS = 5
"""How often a call without a timeout is tried in all; one with a timeout is tried until that is over."""

EXPLAIN_TILES = "/vitrail.v1.ExplanationService/ExplainTiles"
"""The rpc whose requests `sending` writes itself, which the generated stub would not let it."""

HEALTH_CHECK = "/grpc.health.v1.Health/Check"
"""The standard health check. Its request and response have one field each, so that protobuf's own
StringValue and Int32Value read and write them, and the client needs no package for two messages."""

SERVING = 1
"""The health check's answer of a server that is ready."""


def channel_options() -> list[tuple[str, str]]:
    """Return the options with which channels are opened."""
    return [("grpc.primary_user_agent", f"vitrail-python/{version('vitrail')}")]


def metadata(token: str | None) -> tuple[tuple[str, str], ...]:
    """Return what every call carries for a caller with `token`; None: nothing."""
    return (("authorization", f"Bearer {token}"),) if token is not None else ()


def deadline(budget: float | None) -> float | None:
    """Return the rpc deadline in seconds for a time budget in seconds; None: without one."""
    return None if budget is None else budget * DEADLINE_FACTOR + DEADLINE_SECONDS


class Retry:
    """Decides whether and when a call that failed before its first message is made again.

    Only UNAVAILABLE is, where the server or gRPC says that trying again helps, and never beyond the
    timeout.
    """

    def __init__(self, timeout: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._end = None if timeout is None else clock() + timeout
        self._failures = 0

    @property
    def remaining(self) -> float | None:
        """The seconds left. None: no limit."""
        return None if self._end is None else max(0.0, self._end - self._clock())

    def pause(self, error: VitrailError) -> float | None:
        """Return how many seconds to wait before the next attempt; None: give up."""
        if not isinstance(error, Unavailable) or error.retry_delay is None:
            return None
        self._failures += 1
        # The exponent is bounded because a long timeout allows thousands of attempts.
        pause = max(error.retry_delay, min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(self._failures - 1, 10)))
        if self.remaining is None:
            return pause if self._failures < ATTEMPTS else None
        return pause if pause < self.remaining else None


def pause_or_raise(failure: grpc.RpcError, retry: Retry | None) -> float:
    """Return how many seconds to wait before the next attempt at a call that failed.

    `retry` is None where the server has answered already.

    Raises:
        VitrailError: there is no next attempt; what ended the call.

    """
    error = from_rpc_error(failure)
    pause = retry.pause(error) if retry else None
    if pause is None:
        raise error from failure
    return pause
