"""The models that the server serves: loads them, finds them, lets them go.

The manager lives on the event loop and needs no locks: the blocking calls go through the lane, and every
change of state happens between two awaits. One model or version that fails never stops the others. What a
request names is looked up in what was read from the repository and leads to no file.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from vitrail.errors import InvalidArgument, NotFound, Unavailable, VitrailError
from vitrail_server.events import RepositoryEvents
from vitrail_server.repository.directory import list_models
from vitrail_server.repository.lifecycle import Handle, Lane, Version
from vitrail_server.repository.source import Loader, ModelSource, read_model
from vitrail_server.repository.state import ModelStatus, State, VersionStatus
from vitrail_server.servable import Servable
from vitrail_server.wording import MESSAGE_LIMIT, listed, quoted, reason_of, shortened

RETRY_DELAY = 1.0
"""Seconds after which asking again for a version that is on its way makes sense."""

_logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Model:
    name: str
    versions: dict[int, Version] = field(default_factory=dict)
    labels: Mapping[str, int] = field(default_factory=dict)
    reason: str = ""


class Manager:
    """Serves the models of one repository. All methods are for the event loop."""

    def __init__(self, repository: Path, loader: Loader, lane: Lane, events: RepositoryEvents) -> None:
        self._repository = repository
        self._loader = loader
        self._lane = lane
        self._events = events
        self._models: dict[str, _Model] | None = None
        self._closed = False

    async def start(self) -> None:
        """Read the repository and load every model's versions; return when all of that is over.

        Every version stands for itself: those that can be loaded are served, whatever happens to the
        others. The highest version of a model is loaded first, so that the server's choice does not
        change while the rest follow.

        Raises:
            FailedPrecondition: the repository is not a directory.

        """
        listing = await self._lane.run(partial(list_models, self._repository))
        for name, fault in listing.ignored.items():
            _logger.warning("ignored %s in the model repository: %s", name, fault)
        models = {name: await self._read(name, path) for name, path in listing.models.items()}
        if self._closed:
            return
        self._models = models
        for model in models.values():
            for version in sorted(model.versions.values(), key=lambda version: version.number, reverse=True):
                await version.load()

    def handle(self, name: str, version: int | None = None, label: str | None = None) -> Handle:
        """Return a handle on the version given, on the one that the label names, or on the highest available.

        Raises:
            InvalidArgument: a version and a label are given.
            NotFound: there is no such model, version or label; the message names what there is.
            Unavailable: the version cannot serve; with a retry delay if it may be able to soon.

        """
        model = self._find(name)
        if model.reason:
            raise Unavailable(f"model {quoted(name)} cannot be served: {model.reason}")
        if version is not None and label is not None:
            raise InvalidArgument("give a version or a version label, not both")
        if label is not None:
            version = _labelled(model, label)
        if version is None:
            return _highest_available(model).pin()
        return _numbered(model, version).pin()

    def models(self) -> list[ModelStatus]:
        """Return every model, the broken ones included, in the order of their names.

        There are none while the repository is still being read.
        """
        return [_status(model) for model in (self._models or {}).values()]

    def model(self, name: str) -> ModelStatus:
        """Return one model.

        Raises:
            NotFound: the repository has no model of that name.
            Unavailable: the repository is still being read.

        """
        return _status(self._find(name))

    async def unload(self, name: str) -> None:
        """Take a model out of service; return when its last handle is closed and its memory given back.

        Raises:
            NotFound: the repository has no model of that name.

        """
        await _unloaded([self._find(name)])

    async def close(self) -> None:
        """Take every model out of service, as `unload` does, and load no further ones."""
        self._closed = True
        await _unloaded(list((self._models or {}).values()))

    async def _read(self, name: str, path: Path) -> _Model:
        try:
            source = await self._lane.run(partial(read_model, name, path))
        except Exception as error:  # whatever is wrong with one model must not stop the others
            reason = reason_of(error)
            trace = None if isinstance(error, VitrailError) else error
            _logger.exception("model %s cannot be served: %s", name, reason, exc_info=trace)
            self._events.model_refused(name, reason)
            return _Model(name, reason=reason)
        for note in source.notes:
            _logger.warning("model %s: %s", name, note)
        versions = {
            number: Version(name, number, partial(self._load, source, number), self._lane, self._events)
            for number in source.versions
        }
        return _Model(name, versions, source.config.parameters.version_labels)

    def _load(self, source: ModelSource, number: int) -> Servable:
        """Find the version's SavedModel and load it; blocks, on the lane."""
        return self._loader.load(source.version(number))

    def _find(self, name: str) -> _Model:
        if self._models is None:
            raise Unavailable("the model repository is still being read", retry_delay=RETRY_DELAY)
        model = self._models.get(name)
        if model is None:
            there = listed((quoted(known) for known in self._models), none="no models")
            raise NotFound(f"model {quoted(name)} is not in the repository, which has {there}")
        return model


async def _unloaded(models: list[_Model]) -> None:
    """Unload the models, all at once; return when the last version has ended."""
    versions = [version for model in models for version in model.versions.values()]
    for version in versions:
        version.unload()
    for version in versions:
        await version.ended()


def _labelled(model: _Model, label: str) -> int:
    if label not in model.labels:
        there = listed(f"{quoted(known)} (version {version})" for known, version in model.labels.items())
        raise NotFound(
            f"model {quoted(model.name)} has no version label {quoted(label)}; its labels: {there}"
        )
    return model.labels[label]


def _numbered(model: _Model, number: int) -> Version:
    version = model.versions.get(number)
    if version is None:
        raise NotFound(
            f"model {quoted(model.name)} has no version {number}; versions available: {_available(model)}"
        )
    if version.state is State.AVAILABLE:
        return version
    if version.state is State.END:
        raise Unavailable(
            f"version {number} of model {quoted(model.name)} is not available: {version.reason}; "
            f"versions available: {_available(model)}"
        )
    raise Unavailable(
        f"version {number} of model {quoted(model.name)} is at {version.state}", retry_delay=RETRY_DELAY
    )


def _highest_available(model: _Model) -> Version:
    available = [version for version in model.versions.values() if version.state is State.AVAILABLE]
    if available:
        return max(available, key=lambda version: version.number)
    coming = any(version.state in (State.START, State.LOADING) for version in model.versions.values())
    states = listed(
        f"version {version.number} is at {version.state}" + (f" ({version.reason})" if version.reason else "")
        for version in model.versions.values()
    )
    raise Unavailable(
        shortened(f"model {quoted(model.name)} has no available version: {states}", MESSAGE_LIMIT),
        retry_delay=RETRY_DELAY if coming else None,
    )


def _available(model: _Model) -> str:
    return listed(number for number, version in model.versions.items() if version.state is State.AVAILABLE)


def _status(model: _Model) -> ModelStatus:
    versions = tuple(
        VersionStatus(
            version=version.number,
            state=version.state,
            reason=version.reason,
            labels=tuple(label for label, number in model.labels.items() if number == version.number),
            description=version.description,
        )
        for version in model.versions.values()
    )
    return ModelStatus(model.name, versions, model.reason)
