"""Polling: what changes on disk is carried out once it stands still, and nothing that goes wrong takes out
what serves. Triton's polling tests of its lifecycle suite, and the faults that its users reported.
"""

import asyncio
import os
import shutil
from pathlib import Path

import pytest

from vitrail_server.repository.state import IndexEntry, State

from .fakes import write_model
from .scene import Scene, refusal

ALL = "version_policy { all { } }"


async def polling(*repositories: Path) -> Scene:
    scene = Scene(*repositories, mode="poll")
    await scene.started()
    return scene


async def polled(scene: Scene, times: int = 2) -> None:
    """Poll until a change is acted on: when two looks found the same."""
    for _ in range(times):
        await scene.manager.poll()
    await scene.settled()


def rewrite(model: Path, version: int, text: str = "new") -> None:
    (model / str(version) / "model.savedmodel" / "saved_model.pb").write_text(text)


# What is noticed.


async def test_nothing_changes_while_nothing_changes(tmp_path: Path) -> None:
    write_model(tmp_path, "m", 1)
    scene = await polling(tmp_path)
    await polled(scene, 5)
    assert scene.events.loads == [("m", 1, True)]


async def test_a_new_model_is_loaded(tmp_path: Path) -> None:
    scene = await polling(tmp_path)
    write_model(tmp_path, "m", 1)
    await polled(scene)
    assert scene.answers("m") == (1, 1)


async def test_a_change_is_acted_on_when_two_looks_found_the_same(tmp_path: Path) -> None:
    scene = await polling(tmp_path)
    write_model(tmp_path, "m", 1)
    for text in ("a", "ab", "abc"):  # it is being written
        rewrite(tmp_path / "m", 1, text)
        await scene.manager.poll()
        assert scene.manager.models() == []
    await scene.manager.poll()
    assert scene.answers("m") == (1, 1)


async def test_a_new_version_takes_over(tmp_path: Path) -> None:
    write_model(tmp_path, "m", 1)
    scene = await polling(tmp_path)
    write_model(tmp_path, "m", 2, add=True)
    await polled(scene)
    assert scene.answers("m") == (2, 1)
    assert scene.states("m") == {1: State.END, 2: State.AVAILABLE}


async def test_a_new_version_loads_no_other_again(tmp_path: Path) -> None:
    write_model(tmp_path, "m", 1, config=ALL)
    write_model(tmp_path, "n", 1)
    scene = await polling(tmp_path)
    write_model(tmp_path, "m", 2, add=True)
    await polled(scene)
    assert scene.events.loads == [("m", 1, True), ("n", 1, True), ("m", 2, True)]


async def test_a_removed_version_leaves(tmp_path: Path) -> None:
    write_model(tmp_path, "m", 1, 2)
    scene = await polling(tmp_path)
    shutil.rmtree(tmp_path / "m" / "2")
    await polled(scene)
    assert scene.answers("m") == (1, 1)
    assert scene.states("m") == {1: State.AVAILABLE, 2: State.END}


async def test_new_content_of_a_version_takes_over(tmp_path: Path) -> None:
    model = write_model(tmp_path, "m", 1, 2, config=ALL)
    scene = await polling(tmp_path)
    rewrite(model, 1)
    await polled(scene)
    assert [scene.answers("m", version) for version in (1, 2)] == [(1, 2), (2, 1)]


async def test_content_of_the_same_size_is_noticed_by_its_time(tmp_path: Path) -> None:
    model = write_model(tmp_path, "m", 1)
    rewrite(model, 1, "old")
    scene = await polling(tmp_path)
    rewrite(model, 1, "new")
    file = model / "1" / "model.savedmodel" / "saved_model.pb"
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))
    await polled(scene)
    assert scene.answers("m") == (1, 2)


async def test_a_new_configuration_is_carried_out(tmp_path: Path) -> None:
    model = write_model(tmp_path, "m", 1, 2, 3)
    scene = await polling(tmp_path)
    (model / "config.pbtxt").write_text("version_policy { specific { versions: [1, 3] } }")
    await polled(scene)
    assert scene.states("m") == {1: State.AVAILABLE, 3: State.AVAILABLE}
    assert scene.answers("m", 3) == (3, 1)
    (model / "config.pbtxt").unlink()
    await polled(scene)
    assert scene.states("m") == {1: State.END, 3: State.AVAILABLE}
    assert scene.answers("m", 3) == (3, 1)


async def test_an_editors_file_loads_nothing(tmp_path: Path) -> None:
    model = write_model(tmp_path, "m", 1, config=ALL)
    scene = await polling(tmp_path)
    (model / ".config.pbtxt.swp").write_text("being edited")
    await polled(scene)
    assert scene.answers("m") == (1, 1)


async def test_a_removed_model_leaves_and_is_forgotten(tmp_path: Path) -> None:
    model = write_model(tmp_path, "m", 1)
    write_model(tmp_path, "n", 1)
    scene = await polling(tmp_path)
    handle = scene.manager.handle("m")
    shutil.rmtree(model)
    await polled(scene, 4)
    assert scene.states("m") == {1: State.UNLOADING}
    assert scene.events.removed == []
    handle.close()
    await scene.settled()
    assert [status.name for status in scene.manager.models()] == ["n"]
    assert refusal(scene.manager, "m").message == "model 'm' is not in the repository, which has 'n'"
    assert scene.events.life("m", 1)[-2:] == [State.UNLOADING, State.END]
    assert scene.events.forgotten == [("m", 1)]
    assert scene.events.removed == ["m"]
    assert scene.loader.servables["m", 1].closed == 1


async def test_a_model_that_comes_back_is_loaded_again(tmp_path: Path) -> None:
    model = write_model(tmp_path, "m", 1)
    write_model(tmp_path, "n", 1)
    scene = await polling(tmp_path)
    handle = scene.manager.handle("m")
    elsewhere = tmp_path.parent / f"{tmp_path.name}-elsewhere"
    model.rename(elsewhere)
    await polled(scene)
    elsewhere.rename(model)
    await polled(scene)
    assert scene.answers("m") == (1, 2)
    handle.close()
    await scene.settled()
    assert scene.answers("m") == (1, 2)
    assert scene.events.removed == []
    assert [life.closed for life in scene.loader.lives["m", 1]] == [1, 0]


# What goes wrong.


async def test_a_model_that_fails_stops_neither_the_others_nor_the_polling(tmp_path: Path) -> None:
    write_model(tmp_path, "m", 1)
    write_model(tmp_path, "n", 1)
    scene = await polling(tmp_path)
    for name in ("bad", "m", "n"):
        write_model(tmp_path, name, 2, add=True)
    scene.loader.broken = {("bad", 2): ValueError("bad graph"), ("m", 2): ValueError("bad graph")}
    await polled(scene)
    assert scene.answers("m") == (1, 1)
    assert scene.answers("n") == (2, 1)
    assert await scene.manager.index() == [
        IndexEntry("bad", "2", "UNAVAILABLE", "ValueError: bad graph"),
        IndexEntry("m", "1", "READY", ""),
        IndexEntry("m", "2", "UNAVAILABLE", "ValueError: bad graph"),
        IndexEntry("n", "1", "UNAVAILABLE", "unloaded"),
        IndexEntry("n", "2", "READY", ""),
    ]
    # It is not tried again until it changes, and then it recovers.
    loads = len(scene.events.loads)
    await polled(scene, 3)
    assert len(scene.events.loads) == loads
    scene.loader.broken = {}
    rewrite(tmp_path / "m", 2)
    rewrite(tmp_path / "bad", 2)
    await polled(scene)
    assert scene.answers("m") == (2, 1)
    assert scene.answers("bad") == (2, 1)


async def test_a_broken_configuration_leaves_what_serves_until_it_is_mended(tmp_path: Path) -> None:
    model = write_model(tmp_path, "m", 1)
    scene = await polling(tmp_path)
    (model / "config.pbtxt").write_text("foo: 1")
    await polled(scene)
    reason = 'm/config.pbtxt:1:1: Message type "ModelConfig" has no field named "foo".'
    assert scene.answers("m") == (1, 1)
    assert await scene.manager.index() == [IndexEntry("m", "1", "READY", reason)]
    (model / "config.pbtxt").write_text("max_batch_size: 3")
    await polled(scene)
    assert scene.answers("m") == (1, 2)
    assert await scene.manager.index() == [IndexEntry("m", "1", "READY", "")]


async def test_a_model_without_versions_leaves_what_serves(tmp_path: Path) -> None:
    model = write_model(tmp_path, "m", 1)
    scene = await polling(tmp_path)
    shutil.rmtree(model / "1")
    await polled(scene)
    assert scene.answers("m") == (1, 1)


async def test_a_repository_that_cannot_be_listed_unloads_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    repository, elsewhere = tmp_path / "repository", tmp_path / "elsewhere"
    write_model(repository, "m", 1)
    scene = await polling(repository)
    repository.rename(elsewhere)
    await polled(scene, 3)
    assert scene.answers("m") == (1, 1)
    assert caplog.messages == [
        f"the model repository {str(repository)!r} is not a directory: its models stay in service"
    ]
    assert await scene.manager.index() == [IndexEntry("m", "1", "READY", "")]
    elsewhere.rename(repository)
    write_model(repository, "m", 2, add=True)
    await polled(scene)
    assert scene.answers("m") == (2, 1)


async def test_a_repository_that_cannot_be_listed_does_not_stop_the_others(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    write_model(one, "a", 1)
    write_model(two, "b", 1)
    scene = await polling(one, two)
    shutil.rmtree(one)
    write_model(two, "b", 2, add=True)
    await polled(scene)
    assert scene.answers("a") == (1, 1)
    assert scene.answers("b") == (2, 1)


async def test_a_repository_that_looks_empty_unloads_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    write_model(one, "a", 1)
    write_model(two, "b", 1)
    write_model(two, "c", 1)
    scene = await polling(one, two)
    shutil.rmtree(one / "a")
    shutil.rmtree(two / "b")
    await polled(scene, 4)
    assert scene.answers("a") == (1, 1)
    assert [status.name for status in scene.manager.models()] == ["a", "c"]
    assert caplog.messages == [f"the model repository {one} is empty: its models stay in service"]


async def test_a_second_directory_of_the_same_name_leaves_what_serves(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    write_model(one, "m", 1)
    write_model(two, "n", 1)
    scene = await polling(one, two)
    write_model(two, "m", 2)
    await polled(scene)
    reason = "model appears in two or more repositories"
    assert scene.answers("m") == (1, 1)
    assert (await scene.manager.index())[0] == IndexEntry("m", "1", "READY", reason)
    shutil.rmtree(one / "m")
    write_model(one, "o", 1)
    await polled(scene)
    assert scene.answers("m") == (2, 1)
    assert (await scene.manager.index())[:2] == [
        IndexEntry("m", "1", "UNAVAILABLE", "unloaded"),
        IndexEntry("m", "2", "READY", ""),
    ]


# Around the loop.


async def test_before_the_start_there_is_nothing_to_poll(tmp_path: Path) -> None:
    write_model(tmp_path, "m", 1)
    scene = Scene(tmp_path, mode="poll")
    await scene.manager.poll()
    assert scene.manager.models() == []


async def test_a_closed_manager_does_not_poll(tmp_path: Path) -> None:
    scene = await polling(tmp_path)
    await scene.manager.close()
    write_model(tmp_path, "m", 1)
    await polled(scene)
    assert scene.loader.sources == []


async def test_polling_goes_on_and_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    scene = await polling(tmp_path)
    polls = 0

    async def poll() -> None:
        nonlocal polls
        polls += 1
        if polls == 1:
            raise RuntimeError("unforeseen")
        if polls == 3:
            raise asyncio.CancelledError

    scene.manager.poll = poll  # type: ignore[method-assign]
    with pytest.raises(asyncio.CancelledError):
        await scene.manager.keep_polling(0.0)
    assert caplog.messages == ["polling the model repository failed"]
