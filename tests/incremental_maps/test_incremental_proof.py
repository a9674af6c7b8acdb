"""The proof that incremental maps are the full ones: its command line, and what it says of a network."""

import json
from pathlib import Path
from typing import Any

import pytest

import incremental_maps.__main__ as command
from incremental_maps.networks import IMAGE_RANGES

FOUND: dict[str, Any] = {
    "network": "VGG16",
    "patch": 16,
    "fill": "constant",
    "largest_difference": 2e-6,
    "largest_noise": 1e-6,
    "largest_difference_of_map": 4e-5,
    "holds": True,
    "multiplications_saved": 7.0,
    "speedup": 6.5,
    "worthwhile": True,
}


def test_every_network_has_its_range_of_pixels() -> None:
    assert set(command.NETWORKS) == set(IMAGE_RANGES)


def test_an_unknown_network_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["incremental", "VGG17"])
    with pytest.raises(SystemExit) as caught:
        command.main()
    assert caught.value.code == 2
    assert "there is no network 'VGG17'; there are VGG16, " in capsys.readouterr().err


@pytest.mark.parametrize(("holds", "status"), [(True, 0), (False, 1)])
def test_what_is_found_is_printed_and_written(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    holds: bool,
    status: int,
) -> None:
    """Each network runs in a process of its own, whose output is what was found."""
    found = FOUND | {"holds": holds}

    class Finished:
        stdout = json.dumps([found])

    file = tmp_path / "maps.json"
    monkeypatch.setattr("sys.argv", ["incremental", "VGG16", "--json", str(file)])
    monkeypatch.setattr("subprocess.run", lambda *_, **__: Finished())

    assert command.main() == status
    assert json.loads(file.read_text()) == [found]
    printed = capsys.readouterr().out
    assert printed.startswith("VGG16")
    assert ("holds" in printed) == holds
    assert "6.50 times as fast" in printed
