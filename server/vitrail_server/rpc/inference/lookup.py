"""From a model's name and version, as v2 clients write them, to a handle; refused in Triton's texts."""

import re

from vitrail.errors import InvalidArgument, NotFound, Unavailable
from vitrail_server.repository.lifecycle import Handle
from vitrail_server.repository.manager import Manager
from vitrail_server.repository.state import ModelStatus, State, VersionStatus
from vitrail_server.wording import quoted, shortened

RETRY_DELAY = 1.0
"""Seconds after which asking again for a version that is on its way makes sense."""

COMING = (State.START, State.LOADING)


def version_number(text: str) -> int | None:
    """Return the version that a request names; None: the server's choice.

    Raises:
        InvalidArgument: it is no number above 0.

    """
    if not text:
        return None
    if not re.fullmatch("0*[1-9][0-9]{0,18}", text):
        raise InvalidArgument(
            f"failed to get model version from specified version string {quoted(text)} (details: it is no "
            "number), version should be an integral value > 0"
        )
    return int(text)


def pin(manager: Manager, name: str, version: str) -> Handle:
    """Return a handle on the version that a request names, or on the highest one that is ready.

    Raises:
        InvalidArgument: the version is no number.
        NotFound: there is no such model or version.
        Unavailable: it is there, and not ready.

    """
    number = version_number(version)
    status = model_status(manager, name)
    if number is None and not any(each.state is State.AVAILABLE for each in status.versions):
        raise _none_ready(status)
    if number is not None:
        found = version_status(status, number)
        if found.state is not State.AVAILABLE:
            reason = f": {shortened(found.reason, 400)}" if found.reason else ""
            raise Unavailable(
                f"Request for unknown model: {quoted(name)} version {number} is not at ready state{reason}",
                retry_delay=RETRY_DELAY if found.state in COMING else None,
            )
    return manager.handle(name, number)


def model_status(manager: Manager, name: str) -> ModelStatus:
    """Return what is known of a model.

    Raises:
        NotFound: there is no such model.
        Unavailable: the repository is still being read.

    """
    try:
        return manager.model(name)
    except NotFound:
        raise NotFound(f"Request for unknown model: {quoted(name)} is not found") from None


def version_status(status: ModelStatus, number: int) -> VersionStatus:
    """Return what is known of a version.

    Raises:
        NotFound: there is no such version.

    """
    for each in status.versions:
        if each.version == number:
            return each
    raise NotFound(f"Request for unknown model: {quoted(status.name)} version {number} is not found")


def _none_ready(status: ModelStatus) -> NotFound | Unavailable:
    text = f"Request for unknown model: {quoted(status.name)} has no available versions"
    if any(each.state in COMING for each in status.versions):
        return Unavailable(text, retry_delay=RETRY_DELAY)
    reasons = [status.reason, *(each.reason for each in status.versions)]
    reason = next((each for each in reasons if each), "")
    return NotFound(f"{text}: {shortened(reason, 400)}" if reason else text)
