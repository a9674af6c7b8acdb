"""Explicit control: Triton's rules and texts of load, unload and index, from its lifecycle suite.

Left out of that suite: ensembles and dependents, repository agents, shutdown with in-flight requests
(tests/rpc), files that come with a request to load (refused by name), and platforms besides TensorFlow.
"""

import asyncio
import json
from pathlib import Path

import pytest

from vitrail.errors import Internal, InvalidArgument, Unavailable, Unimplemented, VitrailError
from vitrail_server.repository.control import NOT_EXPLICIT, OUTDATED, Control, ControlMode
from vitrail_server.repository.state import IndexEntry, State

from .fakes import write_model
from .scene import Scene, refusal, refused

ALL = "version_policy { all { } }"


# What is loaded at start.


async def test_in_explicit_mode_nothing_is_loaded_that_was_not_asked_for(tmp_path: Path) -> None:
    write_model(tmp_path, "a", 1)
    write_model(tmp_path, "b", 1)
    scene = Scene(tmp_path, mode="explicit")
    assert await scene.manager.start() is True
    assert scene.manager.models() == []
    assert await scene.manager.index() == [IndexEntry("a", "", "", ""), IndexEntry("b", "", "", "")]
    assert await scene.manager.index(ready=True) == []


async def test_models_can_be_named_for_the_start(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write_model(tmp_path, name, 1)
    scene = Scene(tmp_path, mode="explicit", load_models=("c", "a", "c"))
    assert await scene.manager.start() is True
    assert [model.name for model in scene.manager.models()] == ["a", "c"]
    every = Scene(tmp_path, mode="explicit", load_models=("*",))
    await every.started()
    assert [model.name for model in every.manager.models()] == ["a", "b", "c"]


async def test_a_model_named_for_the_start_that_is_not_there_is_a_failure(tmp_path: Path) -> None:
    write_model(tmp_path, "a", 1)
    scene = Scene(tmp_path, mode="explicit", load_models=("a", "gone"))
    assert await scene.manager.start() is False
    assert scene.answers("a") == (1, 1)
    assert await scene.manager.index() == [
        IndexEntry("a", "1", "READY", ""),
        IndexEntry("gone", "", "UNAVAILABLE", "the model is not in the model repository"),
    ]


@pytest.mark.parametrize(
    ("mode", "load_models", "message"),
    [
        (
            "explicit",
            ("*", "m"),
            "Wildcard model name '*' must be the ONLY startup model if specified at all.",
        ),
        ("none", ("m",), "--load-model needs --model-control-mode explicit"),
        ("poll", ("*",), "--load-model needs --model-control-mode explicit"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(
    mode: ControlMode, load_models: tuple[str, ...], message: str
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        Control(mode, load_models)
    assert caught.value.message == message


# Load and unload.


@pytest.mark.parametrize("mode", ["none", "poll"])
async def test_without_explicit_control_nothing_can_be_loaded_or_unloaded(
    tmp_path: Path, mode: ControlMode
) -> None:
    write_model(tmp_path, "m", 1)
    scene = Scene(tmp_path, mode=mode)
    manager = await scene.started()
    for operation in (manager.load("m"), manager.unload("m")):
        error = await refused(operation)
        assert isinstance(error, Unavailable)
        assert error.message == NOT_EXPLICIT
    assert scene.answers("m") == (1, 1)


async def test_a_model_is_loaded_and_unloaded_on_request(tmp_path: Path) -> None:
    write_model(tmp_path, "m", 1, 3, config=ALL)
    scene = Scene(tmp_path, mode="explicit")
    manager = await scene.started()
    await manager.load("m")
    assert scene.answers("m") == (3, 1)
    assert await manager.index() == [IndexEntry("m", "1", "READY", ""), IndexEntry("m", "3", "READY", "")]
    await manager.unload("m")
    assert await manager.index() == [
        IndexEntry("m", "1", "UNAVAILABLE", "unloaded"),
        IndexEntry("m", "3", "UNAVAILABLE", "unloaded"),
    ]
    assert await manager.index(ready=True) == []
    assert refusal(manager, "m", 3).message == (
        "version 3 of model 'm' is not available: unloaded; versions available: none"
    )
    await manager.load("m")
    assert scene.answers("m") == (3, 2)
    assert [life.closed for life in scene.loader.lives["m", 3]] == [1, 0]


async def test_a_model_that_came_after_the_start_is_listed_and_can_be_loaded(tmp_path: Path) -> None:
    scene = Scene(tmp_path, mode="explicit")
    manager = await scene.started()
    write_model(tmp_path, "late", 1)
    assert await manager.index() == [IndexEntry("late", "", "", "")]
    await manager.load("late")
    assert scene.answers("late") == (1, 1)


async def test_what_was_never_loaded_can_be_unloaded(tmp_path: Path) -> None:
    write_model(tmp_path, "m", 1)
    scene = Scene(tmp_path, mode="explicit")
    manager = await scene.started()
    await manager.unload("m")
    await manager.unload("unknown")
    await manager.unload("../m")
    assert scene.events.states == []


async def test_unloading_waits_for_the_handles_if_it_is_asked_to(tmp_path: Path) -> None:
    write_model(tmp_path, "m", 1, 2, config=ALL)
    scene = Scene(tmp_path, mode="explicit", load_models=("*",))
    manager = await scene.started()
    handle = manager.handle("m", 1)
    await manager.unload("m", wait=False)
    assert scene.states("m") == {1: State.UNLOADING, 2: State.UNLOADING}
    error = refusal(manager, "m", 1)
    assert isinstance(error, Unavailable)
    assert error.message == "version 1 of model 'm' is at UNLOADING"
    waiting = asyncio.create_task(manager.unload("m"))
    await scene.events.reached("m", 2, State.END)
    assert (await manager.index())[0] == IndexEntry("m", "1", "UNLOADING", "")
    assert not waiting.done()
    handle.close()
    await waiting
    assert scene.states("m") == {1: State.END, 2: State.END}
    assert [servable.closed for servable in scene.loader.servables.values()] == [1, 1]


async def test_a_load_of_what_has_not_changed_loads_nothing(tmp_path: Path) -> None:
    write_model(tmp_path, "m", 1)
    scene = Scene(tmp_path, mode="explicit")
    manager = await scene.started()
    await manager.load("m")
    await manager.load("m")
    assert scene.answers("m") == (1, 1)
    assert scene.events.reloads == []
    await manager.load("m", force=True)
    assert scene.answers("m") == (1, 2)
    assert scene.events.reloads == [("m", True)]


@pytest.mark.parametrize("name", ["", "  ", "\t"])
async def test_an_empty_name_is_refused(tmp_path: Path, name: str) -> None:
    scene = Scene(tmp_path, mode="explicit")
    error = await refused((await scene.started()).load(name))
    assert isinstance(error, InvalidArgument)
    assert error.message == "Model name cannot be empty. Please enter a valid name to deploy."


@pytest.mark.parametrize("name", ["..", "../m", "a/b", "/etc", "a..b"])
async def test_a_name_that_looks_like_a_path_is_refused(tmp_path: Path, name: str) -> None:
    scene = Scene(tmp_path, mode="explicit")
    error = await refused((await scene.started()).load(name))
    assert isinstance(error, InvalidArgument)
    assert error.message == (
        f"invalid model name '{name}', model name must not contain path traversal characters"
    )


async def test_a_model_that_is_not_there_cannot_be_loaded(tmp_path: Path) -> None:
    scene = Scene(tmp_path, mode="explicit")
    manager = await scene.started()
    error = await refused(manager.load("gone"))
    assert isinstance(error, Internal)
    assert error.message.startswith("failed to load 'gone', failed to poll from model repository")
    assert manager.models() == []  # a request leaves nothing behind


async def test_a_configuration_that_is_wrong_is_the_reason(tmp_path: Path) -> None:
    write_model(tmp_path, "m", 1, config="foo: 1")
    scene = Scene(tmp_path, mode="explicit")
    manager = await scene.started()
    error = await refused(manager.load("m"))
    reason = 'm/config.pbtxt:1:1: Message type "ModelConfig" has no field named "foo".'
    assert isinstance(error, Internal)
    assert error.message == f"failed to load 'm', failed to poll from model repository: {reason}"
    assert await manager.index() == [IndexEntry("m", "", "UNAVAILABLE", reason)]
    assert scene.events.refused == [("m", reason)]


async def test_a_version_that_fails_is_the_reason(tmp_path: Path) -> None:
    write_model(tmp_path, "m", 1, 2, config=ALL)
    scene = Scene(tmp_path, mode="explicit", broken={("m", 2): InvalidArgument("wrong dims")})
    manager = await scene.started()
    for _ in range(2):  # the second load of a broken model fails like the first
        error = await refused(manager.load("m"))
        assert isinstance(error, Internal)
        assert error.message == (
            "load failed for model 'm': version 2 is at UNAVAILABLE state: Invalid argument: wrong dims;"
        )
    assert await manager.index() == [
        IndexEntry("m", "1", "UNAVAILABLE", "version 2 failed to load"),
        IndexEntry("m", "2", "UNAVAILABLE", "wrong dims"),
    ]
    del scene.loader.broken["m", 2]
    await manager.load("m")
    assert await manager.index() == [IndexEntry("m", "1", "READY", ""), IndexEntry("m", "2", "READY", "")]


async def test_before_the_repository_is_read_there_is_no_control(tmp_path: Path) -> None:
    scene = Scene(tmp_path, mode="explicit", reads=0)
    for operation in (scene.manager.load("m"), scene.manager.unload("m")):
        error = await refused(operation)
        assert error.message == "the model repository is still being read"
        assert error.retry_delay


async def test_a_server_that_shuts_down_loads_nothing(tmp_path: Path) -> None:
    write_model(tmp_path, "m", 1)
    scene = Scene(tmp_path, mode="explicit")
    manager = await scene.started()
    await manager.close()
    error = await refused(manager.load("m"))
    assert (type(error), error.message) == (Unavailable, "the server is shutting down")
    assert scene.loader.sources == []


# Several operations at once.


async def test_an_unload_takes_effect_before_a_load_that_is_under_way(tmp_path: Path) -> None:
    write_model(tmp_path, "m", 1, 2, config=ALL)
    scene = Scene(tmp_path, mode="explicit", allowed=1)
    manager = await scene.started()
    loading = asyncio.create_task(manager.load("m"))
    await scene.events.reached("m", 1, State.LOADING)
    unloading = asyncio.create_task(manager.unload("m"))
    await scene.events.reached("m", 1, State.UNLOADING)
    scene.loading.allow()
    error = await refused(loading)
    await unloading
    assert (type(error), error.message) == (Internal, OUTDATED)
    assert scene.states("m") == {1: State.END, 2: State.END}
    assert State.AVAILABLE not in scene.events.life("m", 2)
    assert [servable.closed for servable in scene.loader.servables.values()] == [1, 1]
    await manager.load("m")
    assert scene.answers("m") == (2, 2)


async def test_a_load_that_waits_its_turn_is_outdated_by_an_unload(tmp_path: Path) -> None:
    write_model(tmp_path, "m", 1)
    scene = Scene(tmp_path, mode="explicit", allowed=0)
    manager = await scene.started()
    first = asyncio.create_task(manager.load("m"))
    await scene.events.reached("m", 1, State.LOADING)
    second = asyncio.create_task(manager.load("m", force=True))
    await asyncio.sleep(0)
    unloading = asyncio.create_task(manager.unload("m"))
    await scene.events.reached("m", 1, State.UNLOADING)
    scene.loading.allow()
    errors = [await refused(first), await refused(second)]
    assert [error.message for error in errors] == [OUTDATED, OUTDATED]
    await unloading
    assert len(scene.loader.sources) == 1


async def test_two_loads_of_one_model_take_turns(tmp_path: Path) -> None:
    write_model(tmp_path, "m", 1)
    scene = Scene(tmp_path, mode="explicit", allowed=0)
    manager = await scene.started()
    both = [asyncio.create_task(manager.load("m", force=True)) for _ in range(2)]
    await scene.events.reached("m", 1, State.LOADING)
    scene.loading.allow(1)
    await both[0]
    assert not both[1].done()
    assert scene.answers("m") == (1, 1)
    scene.loading.allow(1)
    await both[1]
    assert scene.answers("m") == (1, 2)


async def test_loads_of_different_models_do_not_wait_for_each_others_end(tmp_path: Path) -> None:
    write_model(tmp_path, "a", 1)
    write_model(tmp_path, "b", 1)
    scene = Scene(tmp_path, mode="explicit", load_models=("a",))
    manager = await scene.started()
    handle = manager.handle("a")
    await manager.load("a", force=True)
    unloading = asyncio.create_task(manager.unload("a"))  # waits for the handle
    await manager.load("b")
    assert scene.answers("b") == (1, 1)
    assert not unloading.done()
    handle.close()
    await unloading


async def test_a_caller_that_gives_up_does_not_stop_a_load(tmp_path: Path) -> None:
    write_model(tmp_path, "m", 1)
    scene = Scene(tmp_path, mode="explicit", allowed=0)
    manager = await scene.started()
    loading = asyncio.create_task(manager.load("m"))
    await scene.events.reached("m", 1, State.LOADING)
    loading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loading
    scene.loading.allow()
    await scene.events.reached("m", 1, State.AVAILABLE)
    assert scene.answers("m") == (1, 1)


# A configuration that comes with the request.


async def test_a_configuration_can_come_with_the_request(tmp_path: Path) -> None:
    write_model(tmp_path, "m", 1, 2, 3)
    scene = Scene(tmp_path, mode="explicit")
    manager = await scene.started()
    await manager.load("m")
    assert scene.answers("m") == (3, 1)
    override = {"versionPolicy": {"specific": {"versions": ["1", "3"]}}, "max_batch_size": 7}
    await manager.load("m", config=json.dumps(override))
    assert [scene.answers("m", version) for version in (1, 3)] == [(1, 1), (3, 2)]
    assert manager.config("m").version_policy.specific.versions == [1, 3]
    # The same again loads again; without it the directory counts again, which is a change too.
    await manager.load("m", config=json.dumps(override))
    assert scene.answers("m") == (3, 3)
    await manager.load("m")
    assert scene.answers("m") == (3, 4)
    assert scene.states("m") == {1: State.END, 3: State.AVAILABLE}
    await manager.load("m")
    assert scene.answers("m") == (3, 4)


async def test_a_configuration_of_a_request_is_undone_though_it_says_what_the_directory_says(
    tmp_path: Path,
) -> None:
    write_model(tmp_path, "m", 1, config="max_batch_size: 7")
    scene = Scene(tmp_path, mode="explicit")
    manager = await scene.started()
    await manager.load("m", config=json.dumps({"max_batch_size": 7}))
    loaded = scene.answers("m")
    await manager.load("m")
    assert scene.answers("m") == (1, loaded[1] + 1)
    await manager.load("m")
    assert scene.answers("m") == (1, loaded[1] + 1)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "load parameter 'config' is not a model configuration in JSON: Expecting property name "),
        ("[]", "load parameter 'config' is not a model configuration in JSON: it is not an object"),
        (
            '{"foo": 1}',
            (
                "load parameter 'config' is not a model configuration in JSON: "
                'Message type "ModelConfig" has no field named "foo"'
            ),
        ),
        ("", "load parameter 'config' is not a model configuration in JSON: "),
        ("[" * 100_000, "load parameter 'config' is not a model configuration in JSON: "),
    ],
)
async def test_a_configuration_that_is_not_one_is_refused(tmp_path: Path, config: str, message: str) -> None:
    write_model(tmp_path, "m", 1)
    scene = Scene(tmp_path, mode="explicit")
    error = await refused((await scene.started()).load("m", config=config))
    assert isinstance(error, InvalidArgument)
    assert error.message.startswith(message)
    assert len(error.message) < 500


async def test_a_wrong_configuration_of_a_request_leaves_what_serves(tmp_path: Path) -> None:
    write_model(tmp_path, "m", 1)
    scene = Scene(tmp_path, mode="explicit", load_models=("m",))
    manager = await scene.started()
    error = await refused(manager.load("m", config='{"platform": "onnxruntime_onnx"}'))
    reason = "unexpected platform type 'onnxruntime_onnx' for m; only 'tensorflow_savedmodel' is served"
    assert error.message == f"failed to load 'm', failed to poll from model repository: {reason}"
    assert scene.answers("m") == (1, 1)
    assert await manager.index() == [IndexEntry("m", "1", "READY", reason)]
    assert manager.model("m").reason == reason
    assert scene.events.refused == []
    assert scene.events.reloads == [("m", False)]
    await manager.load("m")
    assert await manager.index() == [IndexEntry("m", "1", "READY", "")]
    assert scene.answers("m") == (1, 1)


@pytest.mark.parametrize(
    ("config", "kind", "message"),
    [
        (None, InvalidArgument, "Load parameter 'config' must be specified for model file override"),
        (
            "{}",
            Unimplemented,
            (
                "load parameter 'file:1/model.savedmodel/saved_model.pb' is not supported: put the files "
                "into the model repository"
            ),
        ),
    ],
)
async def test_files_that_come_with_a_request_are_refused(
    tmp_path: Path, config: str | None, kind: type[VitrailError], message: str
) -> None:
    write_model(tmp_path, "m", 1)
    manager = await Scene(tmp_path, mode="explicit").started()
    files = {"file:1/model.savedmodel/saved_model.pb": b""}
    error = await refused(manager.load("m", config=config, files=files))
    assert (type(error), error.message) == (kind, message)


# Several repositories.


async def test_several_repositories_are_one(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    write_model(one, "b", 1)
    write_model(two, "a", 2)
    scene = Scene(two, one, two)
    assert await scene.manager.start() is True
    assert [model.name for model in scene.manager.models()] == ["a", "b"]
    assert scene.answers("a") == (2, 1)


async def test_a_repository_that_is_gone_keeps_no_model_of_another_from_being_loaded(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    write_model(one, "a", 1)
    write_model(two, "b", 1)
    scene = Scene(one, two, mode="explicit")
    manager = await scene.started()
    one.rename(tmp_path / "gone")
    await manager.load("b")
    assert scene.answers("b") == (1, 1)
    assert await manager.index() == [IndexEntry("b", "1", "READY", "")]
    assert "failed to poll from model repository" in (await refused(manager.load("a"))).message


async def test_a_model_in_two_repositories_is_unavailable(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    write_model(one, "m", 1)
    write_model(two, "m", 2)
    scene = Scene(one, two)
    assert await scene.manager.start() is False
    reason = "model appears in two or more repositories"
    assert await scene.manager.index() == [IndexEntry("m", "", "UNAVAILABLE", reason)]
    assert refusal(scene.manager, "m").message == f"model 'm' cannot be served: {reason}"
    explicit = Scene(one, two, mode="explicit")
    await explicit.started()
    assert await explicit.manager.index() == [IndexEntry("m", "", "UNAVAILABLE", reason)]
    error = await refused(explicit.manager.load("m"))
    assert error.message == f"failed to load 'm', failed to poll from model repository: {reason}"


# A configuration chosen by name.


async def test_a_configuration_can_be_chosen_by_name(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_model(tmp_path, name, 1, 2, config=ALL)
    (tmp_path / "a" / "configs").mkdir()
    (tmp_path / "a" / "configs" / "small.pbtxt").write_text("version_policy { latest { num_versions: 1 } }")
    scene = Scene(tmp_path, config_name="small")
    await scene.started()
    assert scene.states("a") == {2: State.AVAILABLE}
    assert scene.states("b") == {1: State.AVAILABLE, 2: State.AVAILABLE}


async def test_a_fault_in_a_chosen_configuration_names_its_file(tmp_path: Path) -> None:
    write_model(tmp_path, "a", 1)
    (tmp_path / "a" / "configs").mkdir()
    (tmp_path / "a" / "configs" / "small.pbtxt").write_text("max_batch_size: -1")
    scene = Scene(tmp_path, config_name="small")
    await scene.started()
    assert scene.manager.model("a").reason == (
        "a/configs/small.pbtxt: 'max_batch_size' must be non-negative value for a, not -1"
    )
