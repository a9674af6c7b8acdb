import asyncio
from pathlib import Path

import pytest

from vitrail.errors import FailedPrecondition, InvalidArgument, NotFound, Unavailable
from vitrail_server.kserve.v2 import model_config_pb2 as triton
from vitrail_server.repository.choice import RETRY_DELAY
from vitrail_server.repository.directory import ModelDirectory
from vitrail_server.repository.source import ModelSource, read_model
from vitrail_server.repository.state import ModelStatus, State, VersionStatus

from .fakes import write_model
from .scene import Scene, refusal

ALL = "version_policy { all { } }"
LABELS = 'parameters { key: "vitrail.version_labels" value { string_value: "stable=1,canary=2" } }'


# Starting.


async def test_every_model_serves_the_versions_of_its_policy(tmp_path: Path) -> None:
    write_model(tmp_path, "b", 1, 2, 3)
    write_model(tmp_path, "a", 1, 2, 3, config=ALL)
    scene = Scene(tmp_path)
    manager = await scene.started()
    assert scene.states("a") == dict.fromkeys((1, 2, 3), State.AVAILABLE)
    assert scene.states("b") == {3: State.AVAILABLE}
    assert [model.name for model in manager.models()] == ["a", "b"]
    assert [(source.name, source.version) for source in scene.loader.sources] == [
        ("a", 3),
        ("a", 2),
        ("a", 1),
        ("b", 3),
    ]
    assert scene.loader.sources[0].saved_model == tmp_path / "a" / "3" / "model.savedmodel"
    assert scene.events.loads == [("a", 3, True), ("a", 2, True), ("a", 1, True), ("b", 3, True)]


async def test_a_model_serves_all_of_its_versions_or_none(tmp_path: Path) -> None:
    (write_model(tmp_path, "m", 1, 3, config=ALL) / "2").mkdir()
    write_model(tmp_path, "n", 1)
    scene = Scene(tmp_path)
    assert await scene.manager.start() is False
    no_model = "no SavedModel: there is no 2/model.savedmodel/saved_model.pb nor 2/saved_model.pb"
    assert scene.manager.model("m") == ModelStatus(
        "m",
        (
            VersionStatus(1, State.END, "version 2 failed to load", (), None),
            VersionStatus(2, State.END, no_model, (), None),
            VersionStatus(3, State.END, "version 2 failed to load", (), None),
        ),
        reason="",
    )
    # The one that was loaded is closed, and the one after the fault is not loaded at all.
    assert [(source.name, source.version) for source in scene.loader.sources] == [("m", 3), ("n", 1)]
    assert scene.loader.servables["m", 3].closed == 1
    assert scene.answers("n") == (1, 1)


async def test_starting_says_whether_all_went_well(tmp_path: Path) -> None:
    write_model(tmp_path, "m", 1)
    assert await Scene(tmp_path).manager.start() is True
    write_model(tmp_path, "n", 1, config="foo: 1")
    assert await Scene(tmp_path).manager.start() is False


async def test_no_version_answers_before_all_are_loaded(tmp_path: Path) -> None:
    write_model(tmp_path, "m", 1, 2, config=ALL)
    scene = Scene(tmp_path, allowed=1)
    starting = asyncio.create_task(scene.manager.start())
    await scene.events.reached("m", 1, State.LOADING)
    assert scene.states("m") == {1: State.LOADING, 2: State.LOADING}
    scene.loading.allow()
    await starting
    assert scene.states("m") == {1: State.AVAILABLE, 2: State.AVAILABLE}


async def test_a_broken_model_does_not_stop_the_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own fault is told in a line; one that nobody foresaw has its stack trace in the log."""

    def read(directory: ModelDirectory, override: triton.ModelConfig | None = None) -> ModelSource:
        if directory.name == "e":
            raise ZeroDivisionError("nobody foresaw this")
        return read_model(directory, override)

    monkeypatch.setattr("vitrail_server.repository.manager.read_model", read)
    write_model(tmp_path, "a", 1, config="foo: 1")
    write_model(tmp_path, "b")
    write_model(tmp_path, "c", 1)
    write_model(tmp_path, "d", 1, files={}, config="")
    (tmp_path / "d" / "config.pbtxt").unlink()
    (tmp_path / "d" / "config.pbtxt").symlink_to("gone")
    write_model(tmp_path, "e", 1)
    scene = Scene(tmp_path)
    manager = await scene.started()
    a, b, c, d, e = manager.models()
    assert (a.name, a.versions) == ("a", ())
    assert a.reason == 'a/config.pbtxt:1:1: Message type "ModelConfig" has no field named "foo".'
    assert b.reason == "at least one version must be available under the version policy of model 'b'"
    assert (c.reason, scene.states("c")) == ("", {1: State.AVAILABLE})
    assert d.reason == "d/config.pbtxt: the file cannot be read (No such file or directory)"
    assert e.reason == "ZeroDivisionError: nobody foresaw this"
    assert scene.events.refused == [(model.name, model.reason) for model in (a, b, d, e)]
    assert [record.message for record in caplog.records] == [
        f"model {model.name} cannot be served: {model.reason}" for model in (a, b, d, e)
    ]
    assert [record.exc_info is not None for record in caplog.records] == [False, False, False, True]


async def test_the_operator_is_told_what_is_ignored(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_model(tmp_path, "m", 1, "v2")
    (tmp_path / "a\tb").mkdir()
    await Scene(tmp_path).started()
    assert caplog.messages == [
        r"ignored 'a\tb' in the model repository: its name has characters that cannot be printed",
        "model m: ignored 'v2': its name is not a number",
    ]


async def test_a_repository_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="is not a directory"):
        await Scene(tmp_path / "gone").started()


async def test_while_the_repository_is_read_nothing_is_known(tmp_path: Path) -> None:
    write_model(tmp_path, "m", 1)
    scene = Scene(tmp_path, reads=0)
    starting = asyncio.create_task(scene.manager.start())
    assert scene.manager.models() == []
    error = refusal(scene.manager, "m")
    assert isinstance(error, Unavailable)
    assert error.message == "the model repository is still being read"
    assert error.retry_delay == RETRY_DELAY
    with pytest.raises(Unavailable):
        scene.manager.model("m")
    scene.reading.allow()
    await starting
    scene.manager.handle("m").close()


async def test_an_empty_repository_serves_nothing(tmp_path: Path) -> None:
    manager = await Scene(tmp_path).started()
    assert manager.models() == []
    assert refusal(manager, "m").message == "model 'm' is not in the repository, which has no models"


# Choosing a version.


async def test_a_version_is_chosen_by_number_by_label_or_as_the_highest(tmp_path: Path) -> None:
    write_model(tmp_path, "m", 1, 2, 10, config=ALL + LABELS)
    manager = await Scene(tmp_path).started()

    def chosen(version: int | None = None, label: str | None = None) -> int:
        with manager.handle("m", version, label) as handle:
            return handle.servable.description.version

    assert chosen() == 10
    assert chosen(version=2) == 2
    assert chosen(label="stable") == 1
    assert chosen(label="canary") == 2
    assert [version.labels for version in manager.model("m").versions] == [("stable",), ("canary",), ()]


async def test_what_is_not_found_is_answered_with_what_there_is(tmp_path: Path) -> None:
    write_model(tmp_path, "m", 1, 2, 3, config=LABELS + "version_policy { specific { versions: [1, 2] } }")
    write_model(tmp_path, "other", 1)
    manager = await Scene(tmp_path).started()
    for error, message in [
        (refusal(manager, "x"), "model 'x' is not in the repository, which has 'm', 'other'"),
        (refusal(manager, "m", 9), "model 'm' has no version 9; versions available: 1, 2"),
        (refusal(manager, "m", -1), "model 'm' has no version -1; versions available: 1, 2"),
        (refusal(manager, "m", 3), "model 'm' has no version 3; versions available: 1, 2"),
    ]:
        assert isinstance(error, NotFound)
        assert error.message == message
    with pytest.raises(NotFound, match="model 'x' is not in the repository"):
        manager.model("x")


async def test_a_label_that_is_unknown_is_a_wrong_request(tmp_path: Path) -> None:
    write_model(tmp_path, "m", 1, 2, config=ALL + LABELS)
    write_model(tmp_path, "other", 1)
    manager = await Scene(tmp_path).started()
    for error, message in [
        (
            refusal(manager, "m", label="beta"),
            ("model 'm' has no version label 'beta'; its labels: 'stable' (version 1), 'canary' (version 2)"),
        ),
        (
            refusal(manager, "other", label="beta"),
            "model 'other' has no version label 'beta'; its labels: none",
        ),
    ]:
        assert isinstance(error, InvalidArgument)
        assert (error.message, error.field) == (message, "spec.version_label")


@pytest.mark.parametrize("name", ["", ".", "..", "../m", "m/1", "/etc", "m\0", "repository/m", "x" * 10_000])
async def test_a_name_from_a_request_is_only_looked_up(tmp_path: Path, name: str) -> None:
    repository = tmp_path / "repository"
    write_model(repository, "m", 1)
    write_model(tmp_path, "outside", 1)
    error = refusal(await Scene(repository).started(), name)
    assert isinstance(error, NotFound)
    assert len(error.message) < 150
    assert error.message.isprintable()


async def test_a_long_list_of_models_is_cut(tmp_path: Path) -> None:
    for number in range(12):
        write_model(tmp_path, f"m{number:02}", 1)
    assert refusal(await Scene(tmp_path).started(), "x").message.endswith("'m09' and 2 more")


async def test_a_version_and_a_label_are_not_given_together(tmp_path: Path) -> None:
    write_model(tmp_path, "m", 1)
    error = refusal(await Scene(tmp_path).started(), "m", 1, "stable")
    assert isinstance(error, InvalidArgument)
    assert error.message == "give a version or a version label, not both"


async def test_a_broken_model_is_unavailable_with_its_reason(tmp_path: Path) -> None:
    write_model(tmp_path, "m", 1, config='platform: "onnxruntime_onnx"')
    manager = await Scene(tmp_path).started()
    for version, label in [(None, None), (1, None), (None, "stable")]:
        error = refusal(manager, "m", version, label)
        assert isinstance(error, Unavailable)
        assert error.retry_delay is None
        assert error.message == (
            "model 'm' cannot be served: m/config.pbtxt: unexpected platform type 'onnxruntime_onnx' for m; "
            "only 'tensorflow_savedmodel' is served"
        )


async def test_a_broken_version_is_unavailable_with_its_reason(tmp_path: Path) -> None:
    write_model(tmp_path, "m", 1, 2, config=ALL)
    manager = await Scene(tmp_path, broken={("m", 2): ValueError("bad graph")}).started()
    error = refusal(manager, "m", 2)
    assert isinstance(error, Unavailable)
    assert error.retry_delay is None
    assert error.message == (
        "version 2 of model 'm' is not available: ValueError: bad graph; versions available: none"
    )


async def test_a_model_without_an_available_version_is_unavailable_with_the_reasons(tmp_path: Path) -> None:
    write_model(tmp_path, "m", 1, 2, config=ALL)
    error = refusal(await Scene(tmp_path, broken={("m", 2): FailedPrecondition("no image")}).started(), "m")
    assert isinstance(error, Unavailable)
    assert error.retry_delay is None
    assert error.message == (
        "model 'm' has no available version: version 1 is at END (version 2 failed to load), "
        "version 2 is at END (no image)"
    )


async def test_many_long_reasons_still_make_a_short_message(tmp_path: Path) -> None:
    for name in ("m", "n"):
        write_model(tmp_path, name, *range(1, 60), config=ALL)
    broken = {("m", 59): ValueError("x" * 5000)}
    message = refusal(await Scene(tmp_path, broken=broken).started(), "m").message
    assert len(message) <= 1000
    assert message.endswith("and 49 more")


async def test_a_version_on_its_way_is_worth_a_retry(tmp_path: Path) -> None:
    write_model(tmp_path, "m", 1, 2, config=ALL)
    write_model(tmp_path, "z", 1)
    scene = Scene(tmp_path, allowed=0, reads=2)  # the repositories and the first model are read
    starting = asyncio.create_task(scene.manager.start())
    await scene.events.reached("m", 2, State.LOADING)
    for error, message in [
        (refusal(scene.manager, "m", 1), "version 1 of model 'm' is at START"),
        (refusal(scene.manager, "m", 2), "version 2 of model 'm' is at LOADING"),
        (
            refusal(scene.manager, "m"),
            "model 'm' has no available version: version 1 is at START, version 2 is at LOADING",
        ),
        (refusal(scene.manager, "z"), "model 'z' is waiting to be loaded"),
    ]:
        assert isinstance(error, Unavailable)
        assert error.retry_delay == RETRY_DELAY
        assert error.message == message
    scene.reading.allow()
    await scene.events.reached("z", 1, State.START)
    assert refusal(scene.manager, "z").message == (
        "model 'z' has no available version: version 1 is at START"
    )
    scene.loading.allow()
    await starting
    assert scene.answers("m") == (2, 1)


# Ending.


async def test_closing_unloads_everything(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_model(tmp_path, name, 1, 2, config=ALL)
    scene = Scene(tmp_path)
    manager = await scene.started()
    handle = manager.handle("a")
    closing = asyncio.create_task(manager.close())
    await scene.events.reached("b", 2, State.END)
    assert not closing.done()
    handle.close()
    await closing
    assert [servable.closed for servable in scene.loader.servables.values()] == [1, 1, 1, 1]
    assert {version.state for model in manager.models() for version in model.versions} == {State.END}
    await manager.close()


async def test_closing_while_starting_loads_no_further_version(tmp_path: Path) -> None:
    write_model(tmp_path, "m", 1, 2, 3, config=ALL)
    scene = Scene(tmp_path, allowed=0)
    starting = asyncio.create_task(scene.manager.start())
    await scene.events.reached("m", 3, State.LOADING)
    closing = asyncio.create_task(scene.manager.close())
    await scene.events.reached("m", 1, State.END)
    scene.loading.allow()
    await asyncio.gather(starting, closing)
    assert [source.version for source in scene.loader.sources] == [3]
    assert scene.loader.servables["m", 3].closed == 1
    assert set(scene.states("m").values()) == {State.END}


async def test_closing_after_starting_was_cancelled_closes_what_was_being_loaded(tmp_path: Path) -> None:
    write_model(tmp_path, "m", 1)
    scene = Scene(tmp_path, allowed=0)
    starting = asyncio.create_task(scene.manager.start())
    await scene.events.reached("m", 1, State.LOADING)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    scene.loading.allow()
    await scene.manager.close()
    assert scene.loader.servables["m", 1].closed == 1


async def test_closing_while_the_repository_is_read_loads_nothing(tmp_path: Path) -> None:
    write_model(tmp_path, "m", 1)
    scene = Scene(tmp_path, reads=0)
    starting = asyncio.create_task(scene.manager.start())
    await scene.manager.close()
    scene.reading.allow()
    assert await starting is False
    assert scene.loader.sources == []
    assert scene.manager.models() == []
