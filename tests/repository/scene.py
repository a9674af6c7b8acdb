"""A manager over repositories on disk, and what surrounds it."""

import asyncio
from collections.abc import Mapping
from pathlib import Path

import pytest

from vitrail.errors import VitrailError
from vitrail_server.repository.control import Control, ControlMode
from vitrail_server.repository.lifecycle import Lanes
from vitrail_server.repository.manager import Manager
from vitrail_server.repository.repositories import Repositories
from vitrail_server.repository.state import State

from .fakes import FakeLane, FakeLoader, RecordedEvents


class Scene:
    """A manager that has not been started; `allowed` loads go through the loading lane."""

    def __init__(
        self,
        *repositories: Path,
        broken: Mapping[tuple[str, int], Exception] | None = None,
        allowed: int = 1_000_000,
        reads: int = 1_000_000,
        mode: ControlMode = "none",
        load_models: tuple[str, ...] = (),
        config_name: str = "",
    ) -> None:
        self.loader = FakeLoader(broken)
        self.loading, self.reading = FakeLane(allowed), FakeLane(reads)
        self.events = RecordedEvents()
        self.manager = Manager(
            Repositories(repositories, config_name),
            self.loader,
            Lanes(loading=self.loading, repository=self.reading),
            self.events,
            Control(mode, load_models),
        )

    async def started(self) -> Manager:
        await self.manager.start()
        return self.manager

    async def settled(self) -> None:
        """Return when everything that can happen without further ado has happened."""
        for _ in range(50):
            await asyncio.sleep(0)

    def states(self, name: str) -> dict[int, State]:
        return {version.version: version.state for version in self.manager.model(name).versions}

    def reasons(self, name: str) -> dict[int, str]:
        return {version.version: version.reason for version in self.manager.model(name).versions}

    def answers(self, name: str, version: int | None = None, label: str | None = None) -> tuple[int, int]:
        """Return the version that answers, and which life of it: the first, the second, ..."""
        with self.manager.handle(name, version, label) as handle:
            description = handle.servable.description
            lives = self.loader.lives[name, description.version]
            return description.version, 1 + next(i for i, life in enumerate(lives) if life is handle.servable)


async def refused(operation: object) -> VitrailError:
    """Return the error with which an operation of the manager ends."""
    with pytest.raises(VitrailError) as caught:
        await operation  # type: ignore[misc]
    return caught.value


def refusal(
    manager: Manager, name: str, version: int | None = None, label: str | None = None
) -> VitrailError:
    with pytest.raises(VitrailError) as caught:
        manager.handle(name, version, label)
    return caught.value
