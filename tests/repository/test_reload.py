"""Hot swaps: what serves is replaced in one step, or stays; Triton's availability and model update suites.

Left out of those suites: instances that come and go in place, since here those of a device are one; and what
concerns ensembles.
"""

import asyncio
import gc
import weakref
from pathlib import Path

import pytest

from vitrail_server.repository.state import IndexEntry, State

from .fakes import FakeServable, write_model
from .scene import Scene, refusal, refused

ALL = "version_policy { all { } }"


def rewrite(model: Path, version: int, text: str = "new") -> None:
    """Change the content of a version."""
    (model / str(version) / "model.savedmodel" / "saved_model.pb").write_text(text)


async def serving(tmp_path: Path, *versions: int, config: str | None = None) -> tuple[Scene, Path]:
    model = write_model(tmp_path, "m", *versions, config=config)
    scene = Scene(tmp_path, mode="explicit", load_models=("*",))
    assert await scene.manager.start() is True
    return scene, model


# What is loaded again.


async def test_a_new_version_takes_over_and_the_old_one_leaves(tmp_path: Path) -> None:
    scene, _ = await serving(tmp_path, 1)
    write_model(tmp_path, "m", 2, add=True)
    await scene.manager.load("m")
    assert scene.answers("m") == (2, 1)
    await scene.events.reached("m", 1, State.END)
    assert scene.states("m") == {1: State.END, 2: State.AVAILABLE}
    assert scene.reasons("m") == {1: "unloaded", 2: ""}
    assert scene.loader.servables["m", 1].closed == 1
    # What has left is spoken of until the next replacement.
    write_model(tmp_path, "m", 3, add=True)
    await scene.manager.load("m")
    await scene.events.reached("m", 2, State.END)
    assert scene.states("m") == {2: State.END, 3: State.AVAILABLE}
    assert scene.events.forgotten == [("m", 1)]


async def test_a_new_version_does_not_load_the_others_again(tmp_path: Path) -> None:
    scene, _ = await serving(tmp_path, 1, 2, config=ALL)
    write_model(tmp_path, "m", 3, add=True)
    await scene.manager.load("m")
    assert [scene.answers("m", version) for version in (1, 2, 3)] == [(1, 1), (2, 1), (3, 1)]
    assert scene.events.life("m", 1) == [State.START, State.LOADING, State.AVAILABLE]


async def test_a_changed_version_is_the_only_one_loaded_again(tmp_path: Path) -> None:
    scene, model = await serving(tmp_path, 1, 2, config=ALL)
    rewrite(model, 1)
    await scene.manager.load("m")
    assert [scene.answers("m", version) for version in (1, 2)] == [(1, 2), (2, 1)]


async def test_a_removed_version_leaves(tmp_path: Path) -> None:
    scene, model = await serving(tmp_path, 1, 2, config=ALL)
    (model / "2" / "model.savedmodel" / "saved_model.pb").unlink()
    (model / "2" / "model.savedmodel").rmdir()
    (model / "2").rmdir()
    await scene.manager.load("m")
    assert scene.answers("m") == (1, 1)
    await scene.events.reached("m", 2, State.END)
    assert scene.events.loads == [("m", 2, True), ("m", 1, True)]


@pytest.mark.parametrize(
    ("config", "again"),
    [
        (ALL + "max_batch_size: 4", True),
        (ALL + "instance_group { kind: KIND_CPU }", True),
        (ALL + 'instance_group { kind: KIND_CPU } instance_group { name: "b" kind: KIND_CPU }', True),
        (ALL + 'parameters { key: "vitrail.fill" value { string_value: "0.5" } }', True),
        (ALL + "# a remark", False),
        ("version_policy { latest { num_versions: 5 } }", False),
        (ALL + "optimization { graph { level: 1 } }", False),
        (ALL + 'parameters { key: "vitrail.version_labels" value { string_value: "stable=1" } }', False),
        (ALL + 'parameters { key: "vitrail.build_command" value { string_value: "make" } }', False),
    ],
)
async def test_a_configuration_that_says_something_else_loads_everything_again(
    tmp_path: Path, config: str, again: bool
) -> None:
    scene, model = await serving(tmp_path, 1, 2, config=ALL)
    (model / "config.pbtxt").write_text(config)
    await scene.manager.load("m")
    life = 2 if again else 1
    assert [scene.answers("m", version) for version in (1, 2)] == [(1, life), (2, life)]


async def test_another_count_of_instances_loads_nothing_and_shows(tmp_path: Path) -> None:
    """By Triton's model_update suite; here the instances of a device are one, whatever they are called."""
    group = 'instance_group {{ name: "{}" kind: KIND_CPU count: {} }}'
    scene, model = await serving(tmp_path, 1, 2, config=ALL + group.format("first", 1))
    for name, count in (("first", 4), ("second", 2)):
        (model / "config.pbtxt").write_text(ALL + group.format(name, count))
        await scene.manager.load("m")
        assert [scene.answers("m", version) for version in (1, 2)] == [(1, 1), (2, 1)]
        (shown,) = scene.manager.config("m", 1).instance_group
        assert (shown.name, shown.count) == (name, count)


async def test_a_changed_label_file_loads_everything_again(tmp_path: Path) -> None:
    config = 'output { name: "scores" label_filename: "labels.txt" }'
    model = write_model(tmp_path, "m", 1, config=config, files={"labels.txt": "a\nb"})
    scene = Scene(tmp_path, mode="explicit", load_models=("*",))
    await scene.started()
    (model / "labels.txt").write_text("a\nc")
    await scene.manager.load("m")
    assert scene.answers("m") == (1, 2)
    assert scene.loader.sources[-1].config.labels == {"scores": ("a", "c")}


async def test_a_label_moves_without_a_load(tmp_path: Path) -> None:
    def labelled(version: int) -> str:
        label = f'value {{ string_value: "stable={version}" }}'
        return ALL + f'parameters {{ key: "vitrail.version_labels" {label} }}'

    scene, model = await serving(tmp_path, 1, 2, config=labelled(1))
    assert scene.answers("m", label="stable") == (1, 1)
    (model / "config.pbtxt").write_text(labelled(2))
    await scene.manager.load("m")
    assert scene.answers("m", label="stable") == (2, 1)
    # To a version that is not there it does not move, and says so.
    (model / "config.pbtxt").write_text(labelled(3))
    error = await refused(scene.manager.load("m"))
    assert "version label 'stable' names version 3 of model 'm', which is not available" in error.message
    assert scene.answers("m", label="stable") == (2, 1)
    assert scene.manager.model("m").reason.startswith("version label 'stable' names version 3")


# In one step.


async def test_the_old_version_answers_until_the_new_one_can(tmp_path: Path) -> None:
    model = write_model(tmp_path, "m", 1)
    scene = Scene(tmp_path, mode="explicit", load_models=("*",), allowed=1)
    await scene.started()
    rewrite(model, 1)
    loading = asyncio.create_task(scene.manager.load("m"))
    await scene.settled()
    assert scene.loading.waiting == 1
    assert scene.answers("m") == (1, 1)
    assert await scene.manager.index() == [IndexEntry("m", "1", "READY", "")]
    scene.loading.allow()
    await loading
    assert scene.answers("m") == (1, 2)
    # Towards everyone else the version was available all the time.
    assert scene.events.life("m", 1) == [State.START, State.LOADING, State.AVAILABLE]


async def test_all_versions_are_switched_in_one_step(tmp_path: Path) -> None:
    scene, model = await serving(tmp_path, 1, 2, config=ALL)
    (model / "config.pbtxt").write_text(ALL + "max_batch_size: 4")
    seen: list[list[tuple[int, int]]] = []
    done = False

    async def watch() -> None:
        while not done:
            seen.append([scene.answers("m", version) for version in (1, 2)])
            await asyncio.sleep(0)

    watching = asyncio.create_task(watch())
    await scene.manager.load("m")
    done = True
    await watching
    assert {tuple(each) for each in seen} <= {((1, 1), (2, 1)), ((1, 2), (2, 2))}
    assert seen[0] == [(1, 1), (2, 1)]
    assert [scene.answers("m", version) for version in (1, 2)] == [(1, 2), (2, 2)]


async def test_what_is_in_flight_finishes_on_its_own_version(tmp_path: Path) -> None:
    scene, model = await serving(tmp_path, 1)
    with scene.manager.handle("m") as old:
        for text in ("second", "third"):
            rewrite(model, 1, text)
            await scene.manager.load("m")
        first, second, third = scene.loader.lives["m", 1]
        assert old.servable is first
        await scene.settled()
        assert (first.closed, second.closed, third.closed) == (0, 1, 0)
    await scene.settled()
    assert (first.closed, second.closed, third.closed) == (1, 1, 0)
    assert scene.answers("m") == (1, 3)
    assert scene.states("m") == {1: State.AVAILABLE}


async def test_unloading_waits_for_every_life(tmp_path: Path) -> None:
    scene, model = await serving(tmp_path, 1)
    old = scene.manager.handle("m")
    rewrite(model, 1)
    await scene.manager.load("m")
    unloading = asyncio.create_task(scene.manager.unload("m"))
    await scene.settled()
    assert scene.states("m") == {1: State.UNLOADING}
    assert not unloading.done()
    old.close()
    await unloading
    assert [life.closed for life in scene.loader.lives["m", 1]] == [1, 1]


# What fails.


async def test_a_new_version_that_fails_leaves_the_old_one(tmp_path: Path) -> None:
    scene, _ = await serving(tmp_path, 1)
    write_model(tmp_path, "m", 2, add=True)
    scene.loader.broken["m", 2] = ValueError("bad graph")
    error = await refused(scene.manager.load("m"))
    assert error.message == (
        "load failed for model 'm': version 2 is at UNAVAILABLE state: Internal: ValueError: bad graph;"
    )
    assert scene.answers("m") == (1, 1)
    assert await scene.manager.index() == [
        IndexEntry("m", "1", "READY", ""),
        IndexEntry("m", "2", "UNAVAILABLE", "ValueError: bad graph"),
    ]
    assert scene.events.reloads == [("m", False)]
    del scene.loader.broken["m", 2]
    await scene.manager.load("m")
    assert scene.answers("m") == (2, 1)
    assert scene.events.reloads == [("m", False), ("m", True)]


async def test_new_content_that_fails_leaves_the_old_with_the_reason(tmp_path: Path) -> None:
    scene, model = await serving(tmp_path, 1)
    rewrite(model, 1)
    scene.loader.broken["m", 1] = ValueError("bad graph")
    await refused(scene.manager.load("m"))
    assert scene.answers("m") == (1, 1)
    assert scene.states("m") == {1: State.AVAILABLE}
    assert await scene.manager.index() == [IndexEntry("m", "1", "READY", "ValueError: bad graph")]
    assert scene.events.states[-1] == ("m", 1, State.AVAILABLE, "ValueError: bad graph")
    del scene.loader.broken["m", 1]
    await scene.manager.load("m")
    assert scene.answers("m") == (1, 2)
    assert await scene.manager.index() == [IndexEntry("m", "1", "READY", "")]


async def test_of_several_new_versions_all_come_or_none(tmp_path: Path) -> None:
    scene, _ = await serving(tmp_path, 1, config=ALL)
    write_model(tmp_path, "m", 2, 3, add=True)
    scene.loader.broken["m", 2] = ValueError("bad graph")
    await refused(scene.manager.load("m"))
    await scene.settled()
    assert scene.answers("m") == (1, 1)
    assert scene.states("m") == {1: State.AVAILABLE, 2: State.END, 3: State.END}
    assert scene.reasons("m") == {1: "", 2: "ValueError: bad graph", 3: "version 2 failed to load"}
    assert scene.loader.servables["m", 3].closed == 1
    assert refusal(scene.manager, "m", 3).message == (
        "version 3 of model 'm' is not available: version 2 failed to load; versions available: 1"
    )


async def test_a_directory_without_versions_leaves_what_serves(tmp_path: Path) -> None:
    scene, model = await serving(tmp_path, 1)
    (model / "1").rename(tmp_path.parent / "elsewhere")
    error = await refused(scene.manager.load("m"))
    reason = "at least one version must be available under the version policy of model 'm'"
    assert error.message.endswith(reason)
    assert scene.answers("m") == (1, 1)
    assert await scene.manager.index() == [IndexEntry("m", "1", "READY", reason)]


async def test_a_model_that_is_gone_leaves_what_serves(tmp_path: Path) -> None:
    scene, model = await serving(tmp_path, 1)
    model.rename(tmp_path.parent / "gone")
    error = await refused(scene.manager.load("m"))
    assert error.message == (
        "failed to load 'm', failed to poll from model repository: the model is not in the model repository"
    )
    assert scene.answers("m") == (1, 1)


# What is left.


async def test_nothing_holds_what_was_replaced_or_what_failed(tmp_path: Path) -> None:
    scene, model = await serving(tmp_path, 1)
    references: list[weakref.ref[FakeServable]] = []
    for swap in range(5):
        rewrite(model, 1, f"content {swap}")
        if swap == 3:
            scene.loader.broken["m", 1] = ValueError("bad graph")
            await refused(scene.manager.load("m"))
            del scene.loader.broken["m", 1]
            continue
        await scene.manager.load("m")
        references.append(weakref.ref(scene.loader.servables["m", 1]))
    await scene.settled()
    scene.loader.lives.clear()
    gc.collect()
    assert [reference() is None for reference in references] == [True, True, True, False]
    model_ = scene.manager._models["m"]  # type: ignore[index]
    assert (model_._coming, model_._leaving, list(model_._shown)) == ({}, [], [1])
    assert scene.manager._tasks == set()


async def test_numbers_that_only_ever_grow_leave_nothing_behind(tmp_path: Path) -> None:
    scene, _ = await serving(tmp_path, 1)
    for number in range(2, 40):
        write_model(tmp_path, "m", number, add=True)
        await scene.manager.load("m")
        await scene.settled()
    assert scene.states("m") == {38: State.END, 39: State.AVAILABLE}
    assert [servable.closed for servable in scene.loader.servables.values()] == [1] * 38 + [0]
