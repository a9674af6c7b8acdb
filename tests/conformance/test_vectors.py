"""The recorded streams of client/vectors, by which a client in any language checks how it assembles maps."""

from pathlib import Path

import pytest
from google.protobuf.message import DecodeError

from conformance.api import read_tiles
from vectors import record
from vitrail.errors import Internal

ACCEPTED = sorted(record.DIRECTORY.glob("*.stream"))
REFUSED = sorted((record.DIRECTORY / "refused").glob("*.stream"))


def named(paths: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", paths, ids=lambda path: path.stem)


def framed(recording: bytes) -> list[bytes]:
    """Split a recording into its messages: each follows its length, a varint."""
    messages, at = [], 0
    while at < len(recording):
        length = shift = 0
        while recording[at] >= 0x80:
            length |= (recording[at] & 0x7F) << shift
            at, shift = at + 1, shift + 7
        length |= recording[at] << shift
        messages.append(recording[at + 1 : at + 1 + length])
        at += 1 + length
    return messages


@named(ACCEPTED)
def test_the_paste_rule_by_hand_gives_the_recorded_map(path: Path) -> None:
    explained = read_tiles(framed(path.read_bytes()))

    assert explained.map().tobytes() == path.with_suffix(".f32").read_bytes()


@named(ACCEPTED)
def test_the_python_client_gives_the_recorded_map(path: Path) -> None:
    values = record.assembled(path.read_bytes()).values

    assert values.astype("<f4").tobytes() == path.with_suffix(".f32").read_bytes()


@named(REFUSED)
def test_the_python_client_refuses_a_recording_that_breaks_a_rule(path: Path) -> None:
    with pytest.raises((Internal, DecodeError)):
        record.assembled(path.read_bytes())


def test_the_recordings_are_those_that_the_script_writes() -> None:
    accepted = {name: record.recorded(messages) for name, messages in record.accepted_streams().items()}

    assert {path.stem: path.read_bytes() for path in ACCEPTED} == accepted
    assert {path.stem: path.read_bytes() for path in REFUSED} == record.refused_streams()


def test_every_recording_is_described() -> None:
    readme = (record.DIRECTORY / "README.md").read_text("utf-8")

    for path in ACCEPTED + REFUSED:
        assert f"`{path.stem}`" in readme, path.stem
