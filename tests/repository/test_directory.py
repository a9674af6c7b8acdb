from pathlib import Path

import pytest

from vitrail.errors import FailedPrecondition, InvalidArgument
from vitrail_server.repository.directory import (
    find_saved_model,
    list_models,
    read_labels,
    read_model_directory,
)

from .fakes import model_directory, write_model


def test_models_are_the_directories_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("b", "a", ".git", ".building-x"):
        (tmp_path / name).mkdir()
    (tmp_path / "README.md").touch()
    listing = list_models(tmp_path)
    assert listing.models == {"a": tmp_path / "a", "b": tmp_path / "b"}
    assert list(listing.models) == ["a", "b"]
    assert listing.ignored == {}


def test_a_model_may_be_a_link(tmp_path: Path) -> None:
    elsewhere = write_model(tmp_path / "elsewhere", "m", 1)
    repository = tmp_path / "repository"
    repository.mkdir()
    (repository / "linked").symlink_to(elsewhere)
    (repository / "dangling").symlink_to(tmp_path / "gone")
    assert list(list_models(repository).models) == ["linked"]


def test_a_name_that_cannot_be_printed_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "a\nb").mkdir()
    listing = list_models(tmp_path)
    assert listing.models == {}
    assert listing.ignored == {r"'a\nb'": "its name has characters that cannot be printed"}


@pytest.mark.parametrize("name", ["gone", "file"])
def test_a_repository_must_be_a_directory(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FailedPrecondition, match=f"the model repository '.*/{name}' is not a directory"):
        list_models(tmp_path / name)


def test_versions_are_positive_whole_numbers(tmp_path: Path) -> None:
    model = write_model(
        tmp_path, "m", 10, 9, 1, "01", "0", "-3", "1abc", "v1", "\N{ARABIC-INDIC DIGIT ONE}", 2**63, config=""
    )
    for name in ("configs", "warmup", "initial_state", ".hidden"):
        (model / name).mkdir()
    (model / "2").touch()
    (model / "labels.txt").touch()
    directory = read_model_directory("m", model)
    assert list(directory.versions.items()) == [(number, model / str(number)) for number in (1, 9, 10)]
    assert directory.config == model / "config.pbtxt"
    zero = "its number starts with 0: versions count from 1, without leading zeros"
    word = "its name is not a number"
    assert directory.ignored == {
        "01": zero,
        "0": zero,
        "-3": word,
        "1abc": word,
        "v1": word,
        "\N{ARABIC-INDIC DIGIT ONE}": word,
        str(2**63): "its number is above 9223372036854775807",
        "2": "it is not a directory",
    }


def test_the_largest_version_fits_the_wire(tmp_path: Path) -> None:
    directory = read_model_directory("m", write_model(tmp_path, "m", 2**63 - 1))
    assert list(directory.versions) == [9223372036854775807]
    assert directory.config is None


def test_both_layouts_of_a_saved_model(tmp_path: Path) -> None:
    version = tmp_path / "1"
    (version / "model.savedmodel").mkdir(parents=True)
    (version / "saved_model.pb").touch()
    assert find_saved_model(version) == version
    (version / "model.savedmodel" / "saved_model.pb").touch()
    assert find_saved_model(version) == version / "model.savedmodel"


def test_the_default_model_filename_is_the_only_place(tmp_path: Path) -> None:
    version = tmp_path / "1"
    (version / "net").mkdir(parents=True)
    (version / "saved_model.pb").touch()
    with pytest.raises(FailedPrecondition, match=r"^no SavedModel: there is no 1/net/saved_model.pb$"):
        find_saved_model(version, "net")
    (version / "net" / "saved_model.pb").touch()
    assert find_saved_model(version, "net") == version / "net"


def test_no_saved_model_names_both_places(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition) as caught:
        find_saved_model(tmp_path / "1")
    assert caught.value.message == (
        "no SavedModel: there is no 1/model.savedmodel/saved_model.pb nor 1/saved_model.pb"
    )


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("cat\ndog\n", ("cat", "dog")),
        ("cat\r\ndog", ("cat", "dog")),
        ("cat\n\ndog\n", ("cat", "", "dog")),
        ("\ufeffcat\n", ("cat",)),
        ("caf\u00e9\u2028au lait\n", ("caf\u00e9\u2028au lait",)),
        ("", ()),
    ],
)
def test_labels_are_the_lines_of_the_file(tmp_path: Path, text: str, labels: tuple[str, ...]) -> None:
    directory = model_directory(tmp_path)
    (directory.path / "labels.txt").write_bytes(text.encode())
    assert read_labels(directory, "labels.txt") == labels


def test_a_label_file_may_be_deeper_or_a_link_inside(tmp_path: Path) -> None:
    directory = model_directory(tmp_path)
    (directory.path / "..data").mkdir()
    (directory.path / "..data" / "names").write_text("cat\n")
    (directory.path / "labels.txt").symlink_to("..data/names")
    assert read_labels(directory, "labels.txt") == ("cat",)
    assert read_labels(directory, "..data/names") == ("cat",)


def test_a_linked_model_may_have_labels(tmp_path: Path) -> None:
    elsewhere = write_model(tmp_path / "elsewhere", "x", 1, files={"labels.txt": "cat\n"})
    link = tmp_path / "m"
    link.symlink_to(elsewhere)
    assert read_labels(read_model_directory("m", link), "labels.txt") == ("cat",)


@pytest.mark.parametrize("filename", ["../secret", "a/../../secret", "/etc/passwd", "..", "a\0b", "a\nb"])
def test_a_label_file_must_be_a_path_inside(tmp_path: Path, filename: str) -> None:
    directory = model_directory(tmp_path)
    (tmp_path / "secret").write_text("secret")
    with pytest.raises(InvalidArgument, match="must be a path inside the model's directory") as caught:
        read_labels(directory, filename)
    assert repr(filename) in caught.value.message


def test_a_label_file_must_not_lead_out_by_a_link(tmp_path: Path) -> None:
    directory = model_directory(tmp_path)
    (tmp_path / "secret").write_text("secret")
    (directory.path / "labels.txt").symlink_to(tmp_path / "secret")
    (directory.path / "out").symlink_to(tmp_path)
    for filename in ("labels.txt", "out/secret"):
        with pytest.raises(InvalidArgument, match=f"'{filename}' is a link that leads out of the model's"):
            read_labels(directory, filename)


@pytest.mark.parametrize("filename", ["gone.txt", "1", "."])
def test_a_label_file_must_be_a_file(tmp_path: Path, filename: str) -> None:
    with pytest.raises(
        InvalidArgument, match=f"label file '{filename}' is not a file in the model's directory"
    ):
        read_labels(model_directory(tmp_path), filename)


def test_a_label_file_must_be_text(tmp_path: Path) -> None:
    directory = model_directory(tmp_path)
    (directory.path / "labels.txt").write_bytes(b"cat\n\xff")
    with pytest.raises(InvalidArgument, match="is not UTF-8 text: byte 4 is wrong"):
        read_labels(directory, "labels.txt")
