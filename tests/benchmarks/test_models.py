"""Repositories for the server, made of models that are elsewhere."""

from pathlib import Path

from benchmarks.models import Entry, Model, repository_of

from vitrail_server.repository.config import parse_config


def model(directory: Path) -> Model:
    (directory / "net" / "1").mkdir(parents=True)
    (directory / "net" / "labels.txt").write_text("a\n")
    (directory / "net" / "config.pbtxt").write_text('# A comment.\nname: "net"\nmax_batch_size: 4\n')
    return Model("net", directory / "net", directory / "net" / "1")


def test_a_repository_holds_every_entry_under_its_own_name_and_nothing_is_left_of_it(tmp_path: Path) -> None:
    net = model(tmp_path)
    entries = [Entry(net, incremental=False), Entry(net, incremental=True)]
    with repository_of(entries) as repository:
        assert sorted(path.name for path in repository.iterdir()) == sorted(each.name for each in entries)
        for entry in entries:
            directory = repository / entry.name
            config = parse_config((directory / "config.pbtxt").read_bytes(), "config.pbtxt")
            assert config.name == entry.name
            assert config.max_batch_size == 4
            assert config.parameters["vitrail.incremental"].string_value == (
                "AUTO" if entry.incremental else "OFF"
            )
            assert (directory / "labels.txt").read_text() == "a\n"
            assert not (directory / "labels.txt").is_symlink()
            assert (directory / "1").is_dir()
    assert not repository.exists()
    assert (tmp_path / "net" / "labels.txt").exists()
