"""Which version of a model answers a request, or why none does."""

from vitrail.errors import InvalidArgument, NotFound, Unavailable
from vitrail_server.repository.lifecycle import Version
from vitrail_server.repository.model import Model
from vitrail_server.repository.state import State
from vitrail_server.wording import MESSAGE_LIMIT, listed, quoted, shortened

RETRY_DELAY = 1.0
"""Seconds after which asking again for a version that is on its way makes sense."""

LABEL_FIELD = "spec.version_label"


def chosen(model: Model, version: int | None, label: str | None) -> Version:
    """Return the version given, the one that the label names, or else the highest that is AVAILABLE.

    Raises:
        InvalidArgument: a version and a label are given, or there is no such label.
        NotFound: there is no such version; the message names what there is.
        Unavailable: the version cannot serve; with a retry delay if it may be able to soon.

    """
    if version is not None and label is not None:
        raise InvalidArgument("give a version or a version label, not both", field=LABEL_FIELD)
    if model.waiting:
        raise Unavailable(f"model {quoted(model.name)} is waiting to be loaded", retry_delay=RETRY_DELAY)
    if model.reason and not model.serving:
        raise Unavailable(f"model {quoted(model.name)} cannot be served: {model.reason}")
    if label is not None:
        version = _labelled(model, label)
    if version is None:
        return _highest(model)
    return _numbered(model, version)


def _labelled(model: Model, label: str) -> int:
    if label not in model.labels:
        there = listed(f"{quoted(known)} (version {version})" for known, version in model.labels.items())
        raise InvalidArgument(
            f"model {quoted(model.name)} has no version label {quoted(label)}; its labels: {there}",
            field=LABEL_FIELD,
        )
    return model.labels[label]


def _numbered(model: Model, number: int) -> Version:
    if number in model.serving:
        return model.serving[number]
    state = model.state_of(number)
    if state is None:
        raise NotFound(
            f"model {quoted(model.name)} has no version {number}; versions available: {listed(model.serving)}"
        )
    if state is State.END:
        raise Unavailable(
            f"version {number} of model {quoted(model.name)} is not available: {model.reason_of(number)}; "
            f"versions available: {listed(model.serving)}"
        )
    raise Unavailable(
        f"version {number} of model {quoted(model.name)} is at {state}", retry_delay=RETRY_DELAY
    )


def _highest(model: Model) -> Version:
    if model.serving:
        return model.serving[max(model.serving)]
    versions = model.status().versions
    states = listed(
        f"version {version.version} is at {version.state}"
        + (f" ({version.reason})" if version.reason else "")
        for version in versions
    )
    coming = any(version.state in (State.START, State.LOADING) for version in versions)
    raise Unavailable(
        shortened(f"model {quoted(model.name)} has no available version: {states}", MESSAGE_LIMIT),
        retry_delay=RETRY_DELAY if coming else None,
    )
