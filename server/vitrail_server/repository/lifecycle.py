"""One life of one version of a model, from START to END.

Everything here happens on the event loop, so a state changes at one point for everyone; the blocking work
goes through the lanes. What is loaded is not AVAILABLE until it is published, so that several versions can
be published in one step. A version that failed or was unloaded is not used again: loading once more is a
new `Version`.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self, TypeVar

from vitrail.errors import Code, Unavailable, VitrailError
from vitrail_server.repository.state import State
from vitrail_server.servable import Description, Servable
from vitrail_server.wording import cause_of, reason_of

T = TypeVar("T")

UNLOADED = "unloaded"
"""The reason of a version that ended because it was asked to."""

_logger = logging.getLogger(__name__)


class Lane(Protocol):
    """Runs blocking calls off the event loop; it outlives everything that uses it."""

    def run(self, call: Callable[[], T]) -> Awaitable[T]:
        """Start the call when the lane gets to it, and return what it returns or raise what it raises."""


@dataclass(frozen=True, slots=True)
class Lanes:
    """Where the blocking calls go."""

    loading: Lane
    """Loads versions, one at a time: each measures itself."""
    repository: Lane
    """Reads the repository, and gives the memory of versions back; nothing here waits for a load."""


class VersionEvents(Protocol):
    """What a version reports."""

    def entered(self, version: "Version") -> None:
        """Report that the version entered its state."""

    def load_finished(self, version: "Version", seconds: float, *, ok: bool) -> None:
        """Report that the load ended, unless a stop of the server interrupted it; the state follows."""


class Handle:
    """Keeps a version loaded while it is used.

    Closed on the event loop when the last use is over; closing again does nothing. As a context manager
    it closes itself.
    """

    __slots__ = ("_release", "_servable")

    def __init__(self, servable: Servable, release: Callable[[], None]) -> None:
        self._servable: Servable | None = servable
        self._release = release

    @property
    def servable(self) -> Servable:
        """The version; not to be used after the handle is closed."""
        if self._servable is None:
            raise RuntimeError("the handle is closed")
        return self._servable

    def close(self) -> None:
        """Let the version go."""
        if self._servable is not None:
            self._servable = None
            self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class Version:
    """One life of one version of a model.

    `load` blocks, on the lane, and returns a servable that is warm. `events` hears of every state and of
    the end of the load.
    """

    def __init__(
        self, name: str, number: int, load: Callable[[], Servable], lanes: Lanes, events: VersionEvents
    ) -> None:
        self.number = number
        self.state = State.START
        self.reason = ""
        self.code = Code.INTERNAL
        """The kind of the fault that the load failed with."""
        self._name = name
        self._load_servable = load
        self._lanes = lanes
        self._events = events
        self._servable: Servable | None = None
        self._handles = 0
        self._unused = asyncio.Event()
        self._unused.set()
        self._loading: asyncio.Task[None] | None = None
        self._unloading: asyncio.Task[None] | None = None

    @property
    def description(self) -> Description | None:
        """What is known of the version; None unless it is AVAILABLE."""
        if self.state is not State.AVAILABLE or self._servable is None:
            return None
        return self._servable.description

    @property
    def loaded(self) -> bool:
        """Whether it can be published."""
        return self.state is State.LOADING and self._servable is not None

    async def load(self) -> None:
        """Load, if that was not begun yet, and return when it is over.

        A failure ends the version; else it waits, at LOADING, to be published.
        """
        if self.state is State.START:
            self._enter(State.LOADING)
            self._loading = asyncio.create_task(self._load())
        if self._loading is not None:
            # The call on the lane cannot be stopped, so a caller that is cancelled leaves it running.
            await asyncio.shield(self._loading)

    def publish(self) -> None:
        """Become AVAILABLE; only when loaded."""
        if not self.loaded:
            raise RuntimeError(f"version {self.number} of model '{self._name}' is {self.state}")
        self._enter(State.AVAILABLE)

    def pin(self) -> Handle:
        """Return a handle; only while AVAILABLE."""
        if self.state is not State.AVAILABLE or self._servable is None:
            raise RuntimeError(f"version {self.number} of model '{self._name}' is {self.state}")
        self._handles += 1
        self._unused.clear()
        return Handle(self._servable, self._unpin)

    def unload(self, reason: str = UNLOADED) -> None:
        """Take no new handles from now on; the memory is given back once the last handle is closed.

        A version that is being loaded is loaded to the end first. `ended` says when all is over.
        """
        if self.state is State.START:
            self._enter(State.END, reason)
        elif self.state in (State.LOADING, State.AVAILABLE):
            self._enter(State.UNLOADING)
            self._unloading = asyncio.create_task(self._unload(reason))

    async def ended(self) -> None:
        """Return when a version that was told to unload is at END."""
        if self._unloading is not None:
            await asyncio.shield(self._unloading)

    async def _load(self) -> None:
        clock = asyncio.get_running_loop().time
        started = clock()
        reason = ""
        try:
            self._servable = await self._lanes.loading.run(self._load_servable)
        except Exception as error:  # whatever is wrong with one version must not stop the others
            reason = reason_of(error)
            if isinstance(error, Unavailable) and self.state is State.UNLOADING:
                # Nothing is wrong with it: the server stops, and waits for nothing that would end unused.
                _logger.info(
                    "loading version %d of model %s was interrupted: %s", self.number, self._name, reason
                )
                return
            self.code = error.code if isinstance(error, VitrailError) else Code.INTERNAL
            trace = None if isinstance(error, VitrailError) else error
            cause = cause_of(error)
            _logger.exception(
                "version %d of model %s failed to load: %s",
                self.number,
                self._name,
                f"{reason} ({cause})" if cause else reason,
                exc_info=trace,
            )
        self._events.load_finished(self, clock() - started, ok=not reason)
        if reason and self.state is State.LOADING:  # else it was unloaded meanwhile, and _unload goes on
            self._enter(State.END, reason)

    async def _unload(self, reason: str) -> None:
        if self._loading is not None:
            await self._loading
        await self._unused.wait()
        if self._servable is not None:
            try:
                await self._lanes.repository.run(self._servable.close)
            except Exception:
                _logger.exception("version %d of model %s did not close cleanly", self.number, self._name)
            self._servable = None
        self._enter(State.END, reason)

    def _unpin(self) -> None:
        self._handles -= 1
        if self._handles == 0:
            self._unused.set()

    def _enter(self, state: State, reason: str = "") -> None:
        self.state, self.reason = state, reason
        self._events.entered(self)
