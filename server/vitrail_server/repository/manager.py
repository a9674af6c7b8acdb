"""The models that the server serves: loads them, finds them, replaces them, lets them go.

The manager lives on the event loop and needs no locks against threads: the blocking calls go through the
lanes, and every change of state happens between two awaits. One model that fails never stops the others,
and a load that fails never takes out what serves. Operations on one model take turns; taking it out takes
effect at once, and what was being loaded for it is dropped. What a request names is looked up in what was
read from the repository and leads to no file.
"""

import asyncio
import logging
from collections.abc import Collection, Coroutine, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from vitrail.errors import Internal, NotFound, Unavailable, VitrailError
from vitrail_server.events import RepositoryEvents
from vitrail_server.kserve.v2 import model_config_pb2 as triton
from vitrail_server.repository.choice import RETRY_DELAY, chosen
from vitrail_server.repository.completed import completed_config
from vitrail_server.repository.control import (
    NOT_EXPLICIT,
    OUTDATED,
    Control,
    ControlMode,
    check_files,
    check_model_name,
    not_loaded,
    not_polled,
    parse_override,
)
from vitrail_server.repository.lifecycle import Handle, Lanes, Version
from vitrail_server.repository.model import Model, Served
from vitrail_server.repository.repositories import DUPLICATE, Found, Look, Repositories
from vitrail_server.repository.source import Loader, ModelSource, read_model
from vitrail_server.repository.state import TRITON_STATES, IndexEntry, ModelStatus
from vitrail_server.servable import Servable
from vitrail_server.wording import listed, quoted, reason_of

ABSENT = "the model is not in the model repository"

_logger = logging.getLogger(__name__)


class Manager:
    """Serves the models of the repositories. All methods are for the event loop."""

    def __init__(
        self,
        repositories: Repositories,
        loader: Loader,
        lanes: Lanes,
        events: RepositoryEvents,
        control: Control | None = None,
    ) -> None:
        self._repositories = repositories
        self._loader = loader
        self._lanes = lanes
        self._events = events
        self._control = control or Control()
        self._models: dict[str, Model] | None = None
        self._looked: Look | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        # Versions are loaded one at a time, so a model comes as a whole before the next one begins.
        self._load_turn = asyncio.Lock()
        self._closed = False

    @property
    def control_mode(self) -> ControlMode:
        """Who decides what is loaded."""
        return self._control.mode

    async def start(self) -> bool:
        """Load what is to be served from the start; return, when that is over, whether it went well.

        Raises:
            FailedPrecondition: a repository is not a directory.

        """
        look = await self._lanes.repository.run(partial(self._repositories.look, strict=True))
        for name, fault in look.ignored.items():
            _logger.warning("ignored %s in the model repository: %s", name, fault)
        if self._closed:
            return False
        self._looked = look
        self._models = {name: Model(name, self._events) for name in self._control.at_start(look.models)}
        return await self._all_well(
            self._carry_out(model, look.models.get(name), model.departures)
            for name, model in self._models.items()
        )

    def handle(self, name: str, version: int | None = None, label: str | None = None) -> Handle:
        """Return a handle on the version given, on the one that the label names, or on the highest available.

        Raises:
            InvalidArgument: a version and a label are given, or the model has no such label.
            NotFound: there is no such model or version; the message names what there is.
            Unavailable: the version cannot serve; with a retry delay if it may be able to soon.

        """
        return chosen(self._find(name), version, label).pin()

    def models(self) -> list[ModelStatus]:
        """Return every model, the broken ones included, in the order of their names.

        There are none while the repository is still being read, and none that were never asked for.
        """
        return [model.status() for _, model in sorted((self._models or {}).items())]

    def model(self, name: str) -> ModelStatus:
        """Return one model.

        Raises:
            NotFound: no model of that name is or was served.
            Unavailable: the repository is still being read.

        """
        return self._find(name).status()

    def config(self, name: str, version: int | None = None) -> triton.ModelConfig:
        """Return the configuration of an available version, completed from its signature.

        Raises:
            NotFound: there is no such model or version.
            Unavailable: the version cannot serve.

        """
        model = self._find(name)
        with chosen(model, version, None).pin() as handle:
            assert model.served is not None  # noqa: S101 - a version is available
            return completed_config(model.served.source, handle.servable.description)

    async def index(self, *, ready: bool = False) -> list[IndexEntry]:
        """Return every model of the repositories, with the states of its versions; `ready`: only READY ones.

        A model that was never loaded has one entry without version and state.
        """
        names = await self._lanes.repository.run(self._repositories.names)
        models = self._models or {}
        entries = []
        for name in sorted({*names, *models}):
            entries += _entries(name, models.get(name), duplicate=len(names.get(name, ())) > 1)
        return [entry for entry in entries if entry.state == "READY"] if ready else entries

    async def load(
        self,
        name: str,
        *,
        config: str | None = None,
        files: Mapping[str, bytes] | None = None,
        force: bool = False,
    ) -> None:
        """Bring a model to what its directory asks for; return when that is over.

        What did not change is not loaded again, unless `force` asks for it. `config` is a configuration in
        JSON that takes the place of the model's own until the next load.

        Raises:
            Unavailable: the control mode is not explicit, or the repository is still being read.
            InvalidArgument: the name or the configuration is malformed.
            Unimplemented: files are given.
            Internal: the model cannot be served as its directory asks; what was in service still is.

        """
        models = self._controlled()
        check_model_name(name)
        check_files(files or {}, config)
        override = None if config is None else parse_override(config)
        model = models.get(name)
        if model is None:
            if name not in await self._lanes.repository.run(self._repositories.names):
                raise not_polled(name, ABSENT)
            model = models.setdefault(name, Model(name, self._events))
        await self._finished(self._load_now(model, model.departures, override, force=force))

    async def unload(self, name: str, *, wait: bool = True) -> None:
        """Take a model out of service; one that is not in service is left as it is.

        Requests get no version of it from now on, whatever is being loaded. `wait` returns when its last
        handle is closed and its memory given back.

        Raises:
            Unavailable: the control mode is not explicit, or the repository is still being read.

        """
        model = self._controlled().get(name)
        if model is None:
            return
        model.take_out()
        if wait:
            await model.left()

    async def poll(self) -> None:
        """Look at the repositories, and carry out what has changed since the last look but one.

        A change is acted on when two looks in a row found the same, so that nothing is loaded while it is
        being written. A model goes when its directory is gone from a repository that can be listed and is
        not empty; whatever else is wrong with a directory leaves in service what is there.
        """
        if self._models is None or self._looked is None or self._closed:
            return
        before = self._looked
        look = self._looked = await self._lanes.repository.run(self._repositories.look)
        for repository, fault in look.doubtful.items():
            if repository not in before.doubtful:
                _logger.warning("%s: its models stay in service", fault)
        changed = []
        for name in sorted({*look.models, *self._models}):
            found, model = look.models.get(name), self._models.get(name)
            if found != before.models.get(name):
                continue
            if found is None:
                if model is not None and not _in(model, look.doubtful):
                    self._remove(model)
            elif model is None or found != model.attempted:
                model = self._models.setdefault(name, Model(name, self._events))
                changed.append(self._carry_out(model, found, model.departures))
        await self._all_well(changed)

    async def keep_polling(self, seconds: float) -> None:
        """Poll every so many seconds, for ever."""
        while True:
            await asyncio.sleep(seconds)
            try:
                await self.poll()
            except Exception:  # whatever it was, the next look may find something else
                _logger.exception("polling the model repository failed")

    async def close(self) -> None:
        """Take every model out of service, as `unload` does, and load no further ones."""
        self._closed = True
        models = list((self._models or {}).values())
        for model in models:
            model.take_out()
        for model in models:
            await model.left()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _controlled(self) -> dict[str, Model]:
        if self._control.mode != "explicit":
            raise Unavailable(NOT_EXPLICIT)
        if self._closed:
            raise Unavailable("the server is shutting down")
        return self._known()

    def _known(self) -> dict[str, Model]:
        if self._models is None:
            raise Unavailable("the model repository is still being read", retry_delay=RETRY_DELAY)
        return self._models

    def _find(self, name: str) -> Model:
        models = self._known()
        if name not in models:
            there = listed((quoted(known) for known in sorted(models)), none="no models")
            raise NotFound(f"model {quoted(name)} is not in the repository, which has {there}")
        return models[name]

    async def _finished(self, operation: Coroutine[Any, Any, None]) -> None:
        """Carry an operation out to its end, also if whoever waits for it gives up."""
        await asyncio.shield(self._start(operation))

    def _start(self, operation: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(operation)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # it is in the log; nobody may be waiting for it any more

    async def _all_well(self, operations: Iterable[Coroutine[Any, Any, None]]) -> bool:
        """Carry operations out; say whether all of them went well. What went wrong is in the log already."""
        ends = await asyncio.gather(
            *(self._finished(operation) for operation in operations), return_exceptions=True
        )
        return not any(isinstance(end, BaseException) for end in ends)

    async def _load_now(
        self, model: Model, departures: int, override: triton.ModelConfig | None, *, force: bool
    ) -> None:
        """Look at a model's directory and carry it out."""
        async with model.turn:
            found = await self._lanes.repository.run(partial(self._repositories.find, model.name))
            await self._apply(model, found, departures, override, force=force)

    async def _carry_out(self, model: Model, found: Found | None, departures: int) -> None:
        """Carry out what was found of a model."""
        async with model.turn:
            await self._apply(model, found, departures)

    async def _apply(
        self,
        model: Model,
        found: Found | None,
        departures: int,
        override: triton.ModelConfig | None = None,
        *,
        force: bool = False,
    ) -> None:
        """Bring a model to what was found of it: all of its versions, or nothing changes.

        `departures` is how often the model had been taken out when this was asked for.
        """
        found = found or Found(model.name, fault=ABSENT)
        try:
            source = await self._lanes.repository.run(partial(_read, found, override))
        except Exception as error:  # whatever is wrong with one model must not stop the others
            reason = reason_of(error, below=found.repository)
            trace = None if isinstance(error, VitrailError) else error
            _logger.exception("model %s cannot be served: %s", model.name, reason, exc_info=trace)
            if model.departures == departures:
                model.attempted = found
                model.refuse(reason)
            raise not_polled(model.name, reason) from None
        for note in source.notes:
            _logger.warning("model %s: %s", model.name, note)
        if model.departures != departures:
            raise Internal(OUTDATED)
        model.attempted = found
        stamp = found.stamp
        served = Served(source, stamp.versions if stamp else {}, overridden=override is not None)
        model.begin(
            Version(model.name, number, partial(self._load, source, number), self._lanes, model)
            for number in sorted(source.versions, reverse=True)
            if force or not model.has(number, served)
        )
        await self._load_versions(model)
        if model.departures != departures:
            raise Internal(OUTDATED)
        if (failed := model.failed) is not None:
            model.give_up(f"version {failed.number} failed to load")
            raise not_loaded(model.name, failed)
        model.switch(served)

    async def _load_versions(self, model: Model) -> None:
        """Load what is coming, the highest version first, until one fails or the model is taken out."""
        async with self._load_turn:
            while (version := model.next_to_load) is not None:
                await version.load()

    def _load(self, source: ModelSource, number: int) -> Servable:
        """Find the version's SavedModel and load it; blocks, on the lane."""
        return self._loader.load(source.version(number))

    def _remove(self, model: Model) -> None:
        """Take a model out of service whose directory is gone, and forget it once it has left."""
        gone = Found(model.name, fault=ABSENT)
        if model.attempted != gone:
            model.attempted = gone
            model.take_out()
            self._start(self._forget(model))

    async def _forget(self, model: Model) -> None:
        await model.left()
        if model.attempted is not None and model.attempted.fault == ABSENT and self._models:
            model.forget()
            del self._models[model.name]


def _read(found: Found, override: triton.ModelConfig | None) -> ModelSource:
    """Return what a model's directory asks for; blocks."""
    return read_model(found.readable(), override)


def _in(model: Model, repositories: Collection[Path]) -> bool:
    """Say whether the model's directory was in one of these repositories."""
    return model.attempted is not None and model.attempted.repository in repositories


def _entries(name: str, model: Model | None, *, duplicate: bool) -> list[IndexEntry]:
    """Return the lines of one model in the index."""
    status = model.status() if model else ModelStatus(name, (), DUPLICATE if duplicate else "")
    entries = [
        IndexEntry(name, str(version.version), TRITON_STATES[version.state], version.reason or status.reason)
        for version in status.versions
    ]
    state = "UNAVAILABLE" if status.reason else "LOADING" if model and model.waiting else ""
    return entries or [IndexEntry(name, "", state, status.reason)]
