"""One model: what is taken out of service while a load of it is ending."""

import asyncio

from vitrail.errors import FailedPrecondition
from vitrail_server.repository.lifecycle import Lanes, Version
from vitrail_server.repository.model import Model
from vitrail_server.repository.state import State

from .fakes import FakeLane, FakeServable, RecordedEvents

FAULT = "the SavedModel has no signature"


def fail() -> FakeServable:
    raise FailedPrecondition(FAULT)


async def test_a_model_is_taken_out_just_when_its_load_has_failed() -> None:
    """An unload between the failure and the end of the operation that loads waits for nothing."""
    events, lane = RecordedEvents(), FakeLane()
    model = Model("m", events)
    version = Version("m", 1, fail, Lanes(loading=lane, repository=lane), model)
    model.begin([version])
    await version.load()
    model.take_out()
    assert model.empty
    await asyncio.wait_for(model.left(), 1)
    assert (model.state_of(1), model.reason_of(1)) == (State.END, FAULT)
    assert events.life("m", 1) == [State.START, State.LOADING, State.END]
