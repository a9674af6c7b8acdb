from pathlib import Path

import pytest

from vitrail.errors import FailedPrecondition, InvalidArgument
from vitrail_server.repository.config import ModelConfig
from vitrail_server.repository.directory import read_model_directory
from vitrail_server.repository.source import ModelSource, VersionSource, read_model

from .fakes import write_model


def read(name: str, path: Path) -> ModelSource:
    return read_model(read_model_directory(name, path))


NO_VERSION = "at least one version must be available under the version policy of model 'm'"


def test_the_latest_version_is_served_by_default(tmp_path: Path) -> None:
    path = write_model(tmp_path, "m", 9, 10)
    source = read("m", path)
    assert source.versions == (10,)
    assert source.notes == ()
    assert source.version(10) == VersionSource(
        "m", 10, path / "10" / "model.savedmodel", ModelConfig("m"), warmup=path / "warmup"
    )


def test_the_default_model_filename_is_where_the_saved_model_is(tmp_path: Path) -> None:
    path = write_model(tmp_path, "m", 1, config='default_model_filename: "net"')
    (path / "1" / "model.savedmodel").rename(path / "1" / "net")
    assert read("m", path).version(1).saved_model == path / "1" / "net"


def test_a_version_without_a_saved_model_is_found_out_on_its_own(tmp_path: Path) -> None:
    path = write_model(tmp_path, "m", 1, config="version_policy { all { } }")
    (path / "2").mkdir()
    source = read("m", path)
    assert source.versions == (1, 2)
    with pytest.raises(FailedPrecondition, match="no SavedModel"):
        source.version(2)


def test_what_the_operator_should_know_is_noted(tmp_path: Path) -> None:
    path = write_model(
        tmp_path,
        "m",
        1,
        "01",
        config="""
            version_policy { specific { versions: [1, 7] } }
            optimization { graph { level: 1 } }
            parameters { key: "vitrail.version_labels" value { string_value: "stable=1" } }
        """,
    )
    assert read("m", path).notes == (
        "'optimization.graph' is not used: the graph is optimized as far as it pays on this machine",
        "ignored '01': its number starts with 0: versions count from 1, without leading zeros",
        "version 7 is specified for model 'm', but the version directory is not present",
    )


def test_a_model_without_versions_says_so(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition) as caught:
        read("m", write_model(tmp_path, "m"))
    assert caught.value.message == NO_VERSION


def test_a_model_without_versions_says_what_builds_them(tmp_path: Path) -> None:
    config = 'parameters { key: "vitrail.build_command" value { string_value: "scripts/models" } }'
    with pytest.raises(FailedPrecondition) as caught:
        read("m", write_model(tmp_path, "m", config=config))
    assert caught.value.message == f"{NO_VERSION}; run scripts/models"


def test_a_model_without_versions_says_what_is_there_instead(tmp_path: Path) -> None:
    path = write_model(tmp_path, "m", 1, "v2", config="version_policy { specific { versions: 7 } }")
    with pytest.raises(FailedPrecondition) as caught:
        read("m", path)
    assert caught.value.message == (
        f"{NO_VERSION} (version 7 is specified for model 'm', but the version directory is not present, "
        "ignored 'v2': its name is not a number)"
    )


def test_a_broken_configuration_is_the_models_fault(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"^m/config\.pbtxt:1:1: "):
        read("m", write_model(tmp_path, "m", 1, config="foo: 1"))


def test_a_label_on_a_version_that_is_not_served_is_refused(tmp_path: Path) -> None:
    labels = 'parameters { key: "vitrail.version_labels" value { string_value: "stable=2,old=1" } }'
    with pytest.raises(FailedPrecondition) as caught:
        read("m", write_model(tmp_path, "m", 1, 2, config=labels))
    assert caught.value.message == (
        "version label 'old' names version 1 of model 'm', which is not available; versions served: 2"
    )


def test_the_name_of_each_saved_model_is_known(tmp_path: Path) -> None:
    path = write_model(tmp_path, "m", 1, config="version_policy { all { } }")
    (path / "2").mkdir()
    (path / "2" / "saved_model.pb").touch()
    (path / "3").mkdir()
    assert read("m", path).filenames == {1: "model.savedmodel", 2: "", 3: ""}
