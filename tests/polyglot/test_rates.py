"""How fast each client takes a stream in: one run per language, printed. Nothing is asserted of the speed."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from client.fake_server import FakeServer
from client.messages import Event, complete, occlusion_plan, tile
from polyglot.programs import PROGRAMS, Program, read_map

SIDE, TILE = 1024, 32
ROUNDS = 4
"""How often every tile of the map is sent, each time with other values."""


def script() -> list[Event]:
    """Return a map of 4 MiB in tiles of 4 KiB."""
    tiles = [
        tile(row, column, np.full((TILE, TILE), turn * SIDE**2 + row * SIDE + column))
        for turn in range(ROUNDS)
        for row in range(0, SIDE, TILE)
        for column in range(0, SIDE, TILE)
    ]
    return [occlusion_plan((1, SIDE, SIDE)), *tiles, complete()]


async def test_stream_rates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo = tmp_path / "photo.png"
    photo.write_bytes(b"not looked at")
    events = script()
    python = Program("python", (sys.executable, "-m", "vitrail.cli", "explain", "--quiet", "--json"))
    with FakeServer() as server:
        server.scripts += [events] * (1 + len(PROGRAMS))
        call = ("--server", server.target, "--model", "net")
        outcome = await python.run(*call, "--npy", tmp_path / "map.npy", photo)
        seconds = {python.language: json.loads(outcome.out)["seconds"]}
        expected = np.load(tmp_path / "map.npy")
        for program in PROGRAMS:
            outcome = await program.run(*call, "--out", tmp_path / "map.f32", photo)
            assert outcome.code == 0, outcome.error
            assert read_map(tmp_path / "map.f32", expected.shape).tobytes() == expected.tobytes()
            seconds[program.language] = outcome.seconds

    count = len(events) - 2
    with capsys.disabled():
        print(f"\n{count} tiles of 4 KiB from one Python thread, connecting included:")  # noqa: T201
        for language, took in seconds.items():
            print(f"  {language:10} {took:6.3f} s {count / took:7.0f} tiles/s")  # noqa: T201
