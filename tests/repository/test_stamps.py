import os
from pathlib import Path

import pytest

from vitrail_server.repository.directory import read_model_directory
from vitrail_server.repository.stamps import ModelStamp, stamp_of

from .fakes import write_model


def stamp(model: Path) -> ModelStamp:
    return stamp_of(read_model_directory("m", model))


def saved_model(model: Path, version: int) -> Path:
    return model / str(version) / "model.savedmodel" / "saved_model.pb"


def test_what_has_not_changed_has_the_same_stamp(tmp_path: Path) -> None:
    model = write_model(tmp_path, "m", 1, 2, config="", files={"labels.txt": "a"})
    before = stamp(model)
    assert stamp(model) == before
    assert set(before.versions) == {1, 2}


def test_a_version_has_a_stamp_of_its_own(tmp_path: Path) -> None:
    model = write_model(tmp_path, "m", 1, 2)
    before = stamp(model)
    saved_model(model, 2).write_text("new")
    after = stamp(model)
    assert after.versions[1] == before.versions[1]
    assert after.versions[2] != before.versions[2]
    assert after.rest == before.rest


@pytest.mark.parametrize("name", ["config.pbtxt", "labels.txt", "configs/small.pbtxt", "warmup/image"])
def test_a_file_beside_the_versions_changes_the_rest(tmp_path: Path, name: str) -> None:
    model = write_model(tmp_path, "m", 1)
    before = stamp(model)
    file = model / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("a")
    with_file = stamp(model)
    assert with_file.rest != before.rest
    assert with_file.versions == before.versions
    file.write_text("ab")
    assert stamp(model).rest not in (before.rest, with_file.rest)
    file.unlink()
    assert stamp(model) != with_file


def test_the_time_counts_where_the_size_is_the_same(tmp_path: Path) -> None:
    model = write_model(tmp_path, "m", 1)
    before = stamp(model)
    os.utime(saved_model(model, 1), ns=(0, saved_model(model, 1).stat().st_mtime_ns + 1))
    assert stamp(model).versions != before.versions


def test_a_file_that_came_and_went_is_no_change(tmp_path: Path) -> None:
    model = write_model(tmp_path, "m", 1)
    before = stamp(model)
    (model / "1" / "lock").touch()
    (model / "1" / "lock").unlink()
    assert stamp(model) == before


def test_links_are_followed_and_loops_and_loose_ends_are_not(tmp_path: Path) -> None:
    model = write_model(tmp_path, "m", 1)
    store = tmp_path / "store"
    store.mkdir()
    (store / "weights").write_text("a")
    (model / "1" / "weights").symlink_to(store)
    (model / "1" / "loop").symlink_to(model)
    (model / "1" / "nowhere").symlink_to(tmp_path / "gone")
    before = stamp(model)
    (store / "weights").write_text("ab")
    assert stamp(model).versions != before.versions


def test_names_that_are_no_text_are_no_problem(tmp_path: Path) -> None:
    model = write_model(tmp_path, "m", 1)
    before = stamp(model)
    Path(os.fsdecode(os.fsencode(model / "1") + b"/\xff")).touch()
    assert stamp(model).versions != before.versions
