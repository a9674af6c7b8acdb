import asyncio
import logging
import weakref

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitrail.errors import Code, FailedPrecondition, Unavailable
from vitrail_server.repository.lifecycle import UNLOADED, Handle, Lanes, Version
from vitrail_server.repository.state import State

from .fakes import FakeLane, FakeServable, OneLife, RecordedEvents


class Scene:
    """Version 1 of model 'm' and all that surrounds it."""

    def __init__(self, error: Exception | None = None, closing_error: Exception | None = None) -> None:
        self.events = RecordedEvents()
        self.lane = FakeLane(allowed=0)
        self.servable = FakeServable("m", 1, closing_error)
        self._error = error
        lanes = Lanes(loading=self.lane, repository=self.lane)
        self.version = Version("m", 1, self._load, lanes, OneLife(self.events))

    def _load(self) -> FakeServable:
        if self._error is not None:
            raise self._error
        return self.servable

    async def ended(self) -> Version:
        """Return the version when its load is over."""
        self.lane.allow(1)
        await self.version.load()
        return self.version

    async def available(self) -> Version:
        (await self.ended()).publish()
        return self.version


async def test_a_life_goes_through_every_state() -> None:
    scene = Scene()
    descriptions = [scene.version.description]
    version = await scene.available()
    descriptions.append(version.description)
    scene.lane.allow(1)
    version.unload()
    descriptions.append(version.description)
    assert descriptions == [None, scene.servable.description, None]
    await version.ended()
    assert (version.state, version.reason) == (State.END, UNLOADED)
    assert scene.servable.closed == 1
    assert scene.events.states == [
        ("m", 1, State.LOADING, ""),
        ("m", 1, State.AVAILABLE, ""),
        ("m", 1, State.UNLOADING, ""),
        ("m", 1, State.END, "unloaded"),
    ]
    assert scene.events.loads == [("m", 1, True)]


@pytest.mark.parametrize(
    ("error", "code", "reason", "traced"),
    [
        (FailedPrecondition("no SavedModel"), Code.FAILED_PRECONDITION, "no SavedModel", False),
        (ValueError("bad graph\nmore\nand more"), Code.INTERNAL, "ValueError: bad graph", True),
        (MemoryError(), Code.INTERNAL, "MemoryError", True),
    ],
)
async def test_a_failure_ends_the_version_with_its_first_line(
    error: Exception, code: Code, reason: str, traced: bool, caplog: pytest.LogCaptureFixture
) -> None:
    scene = Scene(error)
    version = await scene.ended()
    assert (version.state, version.code, version.reason) == (State.END, code, reason)
    assert scene.events.life("m", 1) == [State.LOADING, State.END]
    assert scene.events.states[-1] == ("m", 1, State.END, reason)
    assert scene.events.loads == [("m", 1, False)]
    assert caplog.messages == [f"version 1 of model m failed to load: {reason}"]
    assert (caplog.records[0].exc_info is not None) == traced


async def test_a_load_that_a_stop_interrupts_has_not_failed(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    scene = Scene(Unavailable("the server is shutting down"))
    loading = asyncio.create_task(scene.version.load())
    await asyncio.sleep(0)
    scene.version.unload()
    scene.lane.allow(1)
    await loading
    await scene.version.ended()
    assert (scene.version.state, scene.version.reason) == (State.END, UNLOADED)
    assert scene.events.loads == []
    (said,) = caplog.records
    assert said.levelno == logging.INFO
    assert said.message == "loading version 1 of model m was interrupted: the server is shutting down"


async def test_the_log_has_the_cause_that_the_reason_leaves_out(caplog: pytest.LogCaptureFixture) -> None:
    error = FailedPrecondition("TensorFlow cannot read it")
    error.__cause__ = ValueError("no file\nat /models/m/1")
    version = await Scene(error).ended()
    assert version.reason == "TensorFlow cannot read it"
    assert caplog.messages == [
        "version 1 of model m failed to load: TensorFlow cannot read it (ValueError: no file at /models/m/1)"
    ]


async def test_available_is_published_when_it_can_serve_and_unloading_before_it_cannot() -> None:
    scene = Scene()
    could_pin: list[tuple[State, bool]] = []

    def try_to_pin(name: str, number: int, state: State) -> None:
        try:
            scene.version.pin().close()
        except RuntimeError:
            could_pin.append((state, False))
        else:
            could_pin.append((state, scene.servable.closed == 0))

    scene.events.on_state = try_to_pin
    version = await scene.available()
    scene.lane.allow(1)
    version.unload()
    await version.ended()
    assert could_pin == [
        (State.LOADING, False),
        (State.AVAILABLE, True),
        (State.UNLOADING, False),
        (State.END, False),
    ]


async def test_what_is_loaded_serves_once_it_is_published() -> None:
    scene = Scene()
    with pytest.raises(RuntimeError, match="version 1 of model 'm' is START"):
        scene.version.publish()
    version = await scene.ended()
    assert (version.state, version.loaded, version.description) == (State.LOADING, True, None)
    with pytest.raises(RuntimeError, match="version 1 of model 'm' is LOADING"):
        version.pin()
    version.publish()
    assert (version.state, version.loaded) == (State.AVAILABLE, False)
    assert version.description is scene.servable.description


async def test_a_loaded_version_that_is_not_published_is_closed() -> None:
    scene = Scene()
    version = await scene.ended()
    scene.lane.allow(1)
    version.unload("another one failed")
    await version.ended()
    assert (version.state, version.reason) == (State.END, "another one failed")
    assert scene.servable.closed == 1


async def test_unloading_waits_for_the_last_handle() -> None:
    scene = Scene()
    version = await scene.available()
    first, second = version.pin(), version.pin()
    scene.lane.allow()
    version.unload()
    ended = asyncio.create_task(version.ended())
    first.close()
    first.close()  # a second time does nothing
    done, _ = await asyncio.wait([ended], timeout=0.01)
    assert not done
    assert second.servable is scene.servable
    assert (version.state, scene.servable.closed) == (State.UNLOADING, 0)
    second.close()
    await ended
    assert (version.state, scene.servable.closed) == (State.END, 1)


async def test_a_handle_closes_itself_and_then_holds_nothing() -> None:
    version = await Scene().available()
    with version.pin() as handle:
        assert handle.servable.description.version == 1
    with pytest.raises(RuntimeError, match="the handle is closed"):
        _ = handle.servable


async def test_nothing_holds_a_version_that_ended() -> None:
    references: list[weakref.ref[FakeServable]] = []

    def load() -> FakeServable:
        servable = FakeServable("m", 1)
        references.append(weakref.ref(servable))
        return servable

    lane = FakeLane()
    version = Version("m", 1, load, Lanes(lane, lane), OneLife(RecordedEvents()))
    await version.load()
    version.publish()
    handle = version.pin()
    handle.close()
    version.unload()
    await version.ended()
    assert [reference() for reference in references] == [None]


async def test_a_version_that_was_not_touched_ends_at_once() -> None:
    scene = Scene()
    scene.version.unload()
    await scene.version.ended()
    assert scene.events.life("m", 1) == [State.END]
    await scene.version.load()  # too late, and does nothing
    assert (scene.version.state, scene.version.reason) == (State.END, UNLOADED)


async def test_a_version_that_is_being_loaded_is_loaded_to_the_end_and_closed() -> None:
    scene = Scene()
    loading = asyncio.create_task(scene.version.load())
    await scene.events.reached("m", 1, State.LOADING)
    scene.version.unload()
    assert scene.version.state is State.UNLOADING
    scene.lane.allow()
    await loading
    await scene.version.ended()
    assert scene.servable.closed == 1
    assert scene.events.life("m", 1) == [State.LOADING, State.UNLOADING, State.END]
    assert scene.events.loads == [("m", 1, True)]


async def test_a_version_that_fails_while_it_is_unloaded_was_unloaded() -> None:
    scene = Scene(ValueError("bad graph"))
    loading = asyncio.create_task(scene.version.load())
    await scene.events.reached("m", 1, State.LOADING)
    scene.version.unload()
    scene.lane.allow()
    await loading
    await scene.version.ended()
    assert scene.events.states[-1] == ("m", 1, State.END, UNLOADED)
    assert scene.events.loads == [("m", 1, False)]
    assert scene.servable.closed == 0


async def test_a_caller_that_is_cancelled_does_not_stop_a_load() -> None:
    scene = Scene()
    loading = asyncio.create_task(scene.version.load())
    await scene.events.reached("m", 1, State.LOADING)
    loading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loading
    scene.lane.allow()
    await scene.version.load()
    scene.version.publish()
    with scene.version.pin() as handle:
        assert handle.servable is scene.servable


async def test_loading_twice_is_loading_once() -> None:
    scene = Scene()
    both = asyncio.gather(scene.version.load(), scene.version.load())
    scene.lane.allow()
    await both
    await scene.version.load()
    assert scene.events.loads == [("m", 1, True)]


async def test_unloading_twice_is_unloading_once() -> None:
    scene = Scene()
    version = await scene.available()
    scene.lane.allow()
    version.unload()
    version.unload()
    await asyncio.gather(version.ended(), version.ended())
    version.unload()
    await version.ended()
    assert scene.servable.closed == 1
    assert scene.events.life("m", 1)[-2:] == [State.UNLOADING, State.END]


async def test_a_version_that_does_not_close_cleanly_ends_all_the_same(
    caplog: pytest.LogCaptureFixture,
) -> None:
    scene = Scene(closing_error=OSError("busy"))
    version = await scene.available()
    scene.lane.allow()
    version.unload()
    await version.ended()
    assert version.state is State.END
    assert caplog.messages == ["version 1 of model m did not close cleanly"]


STEPS = st.lists(st.sampled_from(["load", "allow", "unload", "publish", "pin", "unpin", "turn"]), max_size=25)


@settings(max_examples=150)
@given(steps=STEPS, broken=st.booleans())
def test_whatever_happens_states_go_forward_and_a_pinned_version_is_never_closed(
    steps: list[str], broken: bool
) -> None:
    async def live() -> None:
        scene = Scene(ValueError("broken") if broken else None)
        handles: list[Handle] = []
        tasks = []
        for step in steps:
            if step == "load":
                tasks.append(asyncio.create_task(scene.version.load()))
            elif step == "allow":
                scene.lane.allow(1)
            elif step == "unload":
                scene.version.unload()
            elif step == "publish" and scene.version.loaded:
                scene.version.publish()
            elif step == "pin" and scene.version.state is State.AVAILABLE:
                handles.append(scene.version.pin())
            elif step == "unpin" and handles:
                handles.pop().close()
            elif step == "turn":
                await asyncio.sleep(0)
            assert not (handles and scene.servable.closed)
        for handle in handles:
            handle.close()
        scene.lane.allow()
        await asyncio.gather(*tasks)
        scene.version.unload()
        await scene.version.ended()
        life = scene.events.life("m", 1)
        order = list(State)
        assert life == sorted(set(life), key=order.index)
        assert life[-1] is State.END
        assert scene.servable.closed == scene.events.loads.count(("m", 1, True)) <= 1

    asyncio.run(live())
