"""One model of the repository: the versions that answer, those that are coming and those that leave.

A version number can have several lives at once: while the new content of version 1 is being loaded, the old
one answers, and an older one may still finish its last explanation. Towards everyone else a number has one
state, that of the life that matters most, and changes of it are reported. All of it is for the event loop.
"""

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from vitrail_server.events import RepositoryEvents
from vitrail_server.repository.lifecycle import UNLOADED, Version
from vitrail_server.repository.repositories import Found
from vitrail_server.repository.source import ModelSource
from vitrail_server.repository.state import ModelStatus, State, VersionStatus

Shown = tuple[State, str]
"""The state of a version number and its reason."""


@dataclass(frozen=True, slots=True)
class Served:
    """What the versions in service were made from."""

    source: ModelSource
    stamps: Mapping[int, str]
    """The content of each version, as it was looked at before it was loaded."""
    overridden: bool
    """Whether the configuration came with the request to load, and not from the repository."""


class Model:
    """The versions of one model."""

    def __init__(self, name: str, events: RepositoryEvents) -> None:
        self.name = name
        self.serving: dict[int, Version] = {}
        """The versions that answer, by number; lowest first."""
        self.served: Served | None = None
        """Where they come from. None: there are none."""
        self.reason = ""
        """Why the directory as a whole could not be read or carried out, last time."""
        self.turn = asyncio.Lock()
        """Held by whoever changes which versions are in service."""
        self.departures = 0
        """How often the model was taken out: a load that began before the last time is out-dated."""
        self.attempted: Found | None = None
        """The directory that was carried out last, or could not be. None: the model is waiting for that."""
        self._coming: dict[int, Version] = {}
        self._leaving: list[Version] = []
        self._ended: dict[int, str] = {}
        self._not_replaced: dict[int, str] = {}
        self._shown: dict[int, Shown] = {}
        self._events = events

    @property
    def labels(self) -> Mapping[str, int]:
        """The version labels and the numbers that they name."""
        return self.served.source.config.parameters.version_labels if self.served else {}

    @property
    def waiting(self) -> bool:
        """Whether nothing was done yet to have the model in service."""
        return self.attempted is None and not self.departures

    @property
    def empty(self) -> bool:
        """Whether nothing is or will be in service, and nothing holds memory."""
        return not (self.serving or self._coming or self._leaving)

    @property
    def next_to_load(self) -> Version | None:
        """What is to be loaded next. None: nothing, or the load has failed already."""
        if self.failed is not None:
            return None
        return next((version for version in self._coming.values() if version.state is State.START), None)

    @property
    def failed(self) -> Version | None:
        """The version with which the load failed."""
        return next((version for version in self._coming.values() if version.state is State.END), None)

    def has(self, number: int, wanted: Served) -> bool:
        """Say whether the version in service is what is wanted, so that it need not be loaded again."""
        return (
            self.served is not None
            and number in self.serving
            and not (self.served.overridden or wanted.overridden)
            and self.served.source.config.loads_like(wanted.source.config)
            and self.served.stamps.get(number) == wanted.stamps.get(number)
        )

    def state_of(self, number: int) -> State | None:
        """Return the state of a version; None if there is no such version."""
        return self._shown[number][0] if number in self._shown else None

    def reason_of(self, number: int) -> str:
        """Return why a version is at END, or why it was not replaced."""
        return self._shown[number][1]

    def status(self) -> ModelStatus:
        """Return what is to be known of the model and its versions."""
        versions = tuple(
            VersionStatus(
                version=number,
                state=state,
                reason=reason,
                labels=tuple(label for label, version in self.labels.items() if version == number),
                description=self.serving[number].description if number in self.serving else None,
            )
            for number, (state, reason) in sorted(self._shown.items())
        )
        return ModelStatus(self.name, versions, self.reason)

    def begin(self, versions: Iterable[Version]) -> None:
        """Take in versions that are about to be loaded, beside those that answer."""
        self._coming = {version.number: version for version in versions}
        for number in self._coming:
            self._show(number)

    def switch(self, served: Served) -> None:
        """Put what was loaded into service and take out what it replaces, in one step.

        What has ended before is forgotten, unless it is asked for again.
        """
        old = self.serving
        if old and self._coming:
            self._events.reload_finished(self.name, ok=True)
        kept = {number: version for number, version in old.items() if number in served.source.versions}
        self.serving = dict(sorted({**kept, **self._coming}.items()))
        self.served = served
        self.reason = ""
        coming, self._coming = self._coming, {}
        self._not_replaced.clear()
        self._ended.clear()
        for version in coming.values():
            version.publish()
        for number, version in old.items():
            if self.serving.get(number) is not version:
                self._leave(version)
        for number in list(self._shown):
            self._show(number)

    def refuse(self, reason: str) -> None:
        """Note that the directory as a whole cannot be served; what is in service stays."""
        self.reason = reason
        if self.serving:
            self._events.reload_finished(self.name, ok=False)
        else:
            self._events.model_refused(self.name, reason)

    def give_up(self, reason: str) -> None:
        """Drop what was loaded or still to be loaded: what is in service stays."""
        coming, self._coming = self._coming, {}
        if self.serving:
            self._events.reload_finished(self.name, ok=False)
        for number, version in coming.items():
            self._leave(version, reason)
            if number in self.serving:
                self._not_replaced[number] = version.reason or reason
            self._show(number)

    def take_out(self) -> None:
        """Take everything out of service, and stop what is coming."""
        versions = [*self.serving.values(), *self._coming.values()]
        self.departures += 1
        self.serving, self._coming = {}, {}
        self.served = None
        self.reason = ""
        self._not_replaced.clear()
        for version in versions:
            self._leave(version)

    def forget(self) -> None:
        """Let nothing be known of the model any more; only when it is empty."""
        for number in list(self._shown):
            del self._shown[number]
            self._events.version_forgotten(self.name, number)
        self._events.model_removed(self.name)

    async def left(self) -> None:
        """Return when every version that was taken out has ended."""
        while self._leaving:
            await self._leaving[0].ended()

    def entered(self, version: Version) -> None:
        """Note that one of the versions entered a state."""
        if version.state is State.END and version in self._leaving:
            self._leaving.remove(version)
            self._end(version)
        self._show(version.number)

    def load_finished(self, version: Version, seconds: float, *, ok: bool) -> None:
        """Note that the load of one of the versions ended."""
        self._events.load_finished(self.name, version.number, seconds, ok=ok)

    def _leave(self, version: Version, reason: str = UNLOADED) -> None:
        if version.state is State.END:  # its load has just failed
            self._end(version)
            return
        self._leaving.append(version)
        version.unload(reason)

    def _end(self, version: Version) -> None:
        self._ended[version.number] = version.reason

    def _show(self, number: int) -> None:
        """Report what the number's state is now, if that has changed."""
        now = self._current(number)
        if now == self._shown.get(number):
            return
        if now is None:
            del self._shown[number]
            self._events.version_forgotten(self.name, number)
        else:
            self._shown[number] = now
            self._events.model_state(self.name, number, *now)

    def _current(self, number: int) -> Shown | None:
        """Return the state of the life that matters most; None if there is none."""
        for lives in (self.serving, self._coming):
            if version := lives.get(number):
                if version.state is State.AVAILABLE:
                    return State.AVAILABLE, self._not_replaced.get(number, "")
                return version.state, version.reason
        if any(version.number == number for version in self._leaving):
            return State.UNLOADING, ""
        return (State.END, self._ended[number]) if number in self._ended else None
