"""Whatever the order of loads, unloads, changes, faults and requests: who holds a version can use it, and in
the end nothing is left.
"""

import asyncio
import itertools
import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from fakes.properties import examples
from vitrail.errors import VitrailError
from vitrail_server.repository.lifecycle import Handle
from vitrail_server.repository.state import State

from .fakes import write_model
from .scene import Scene

STEPS = st.lists(
    st.sampled_from(
        [
            *("load", "force", "unload", "poll", "change", "add", "break", "mend"),
            *("allow", "allow", "pin", "pin", "unpin", "turn", "settle", "settle", "settle"),
        ]
    ),
    min_size=10,
    max_size=80,
)


@examples(150)
@given(steps=STEPS, polling=st.booleans())
def test_a_pinned_version_is_never_closed_and_everything_is_in_the_end(
    steps: list[str], polling: bool
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(live(Path(directory), steps, polling=polling))


async def live(repository: Path, steps: list[str], *, polling: bool) -> None:
    write_model(repository, "n", 1)  # so that the repository is never empty
    model = write_model(repository, "m", 1, config="version_policy { latest { num_versions: 2 } }")
    load_models = () if polling else ("*",)
    scene = Scene(repository, mode="poll" if polling else "explicit", load_models=load_models, allowed=2)
    manager = scene.manager
    await manager.start()  # with which the two loads allowed are used up
    handles: list[Handle] = []
    tasks: list[asyncio.Task[None]] = []
    newest = 1
    for number, step in enumerate(steps):
        if step in ("load", "force") and not polling:
            tasks.append(asyncio.create_task(manager.load("m", force=step == "force")))
        elif step == "poll" and polling:
            tasks.append(asyncio.create_task(manager.poll()))
        elif step == "unload" and not polling:
            await manager.unload("m", wait=False)
        elif step == "change":
            saved_model = model / str(newest) / "model.savedmodel" / "saved_model.pb"
            saved_model.write_text(f"content {number}")
        elif step == "add":
            newest += 1
            write_model(repository, "m", newest, add=True)
        elif step == "break":
            scene.loader.broken["m", newest] = ValueError("bad graph")
        elif step == "mend":
            scene.loader.broken.clear()
        elif step == "allow":
            scene.loading.allow(1)
        elif step == "pin":
            serves = bool(manager._models["m"].serving)  # type: ignore[index]
            try:
                handles.append(manager.handle("m"))
            except VitrailError:
                serves = not serves
            assert serves
        elif step == "unpin" and handles:
            handles.pop().close()
        elif step == "settle":
            await scene.settled()
        elif step == "turn":
            await asyncio.sleep(0)
        for handle in handles:
            assert handle.servable.closed == 0  # type: ignore[attr-defined]
        check_states(scene)
    for handle in handles:
        handle.close()
    scene.loading.allow(1000)
    await asyncio.gather(*tasks, return_exceptions=True)
    await scene.settled()
    # What serves is loaded once, and nothing else of it is.
    serving = {id(version._servable) for version in manager._models["m"].serving.values()}  # type: ignore[index]
    for life in (each for lives in scene.loader.lives.values() for each in lives):
        if life.description.name == "m":
            assert life.closed == (0 if id(life) in serving else 1)
    await manager.close()
    for life in (each for lives in scene.loader.lives.values() for each in lives):
        assert life.closed == 1
    assert manager._tasks == set()


def check_states(scene: Scene) -> None:
    """What is told of a version is what it is, and AVAILABLE is only left for UNLOADING."""
    model = (scene.manager._models or {}).get("m")
    if model is None:
        return
    for number in model.serving:
        assert model.state_of(number) is State.AVAILABLE
        life = scene.events.life("m", number)
        assert life[-1] is State.AVAILABLE
        for before, after in itertools.pairwise(life):
            assert before is not State.AVAILABLE or after in (State.AVAILABLE, State.UNLOADING)
