"""The clients in other languages, as programs: all have the same command line and say the same things."""

import asyncio
import os
import re
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[2]
CLIENTS = ROOT / "client"
PATIENCE = 60.0
"""Seconds after which a program hangs."""

AT_ONCE = 4
"""Programs that run at a time where a test has many."""

# gRPC for Go tries calls again by itself since 1.40; before, it must be asked to.
ENVIRONMENT = {"GRPC_GO_RETRY": "on"}


@dataclass(frozen=True)
class Outcome:
    """What a program did."""

    code: int
    out: str
    error: str

    @property
    def seconds(self) -> float:
        """How long it says that the map took."""
        found = re.search(r"in ([\d.]+) s$", self.out.strip())
        assert found, self.out
        return float(found[1])

    @property
    def told(self) -> str:
        """What it says, but how long it took."""
        return re.sub(r" in [\d.]+ s$", "", self.out.strip())


@dataclass(frozen=True)
class Program:
    """One client, built by scripts/polyglot."""

    language: str
    command: tuple[str, ...]

    async def run(self, *arguments: object, **environment: str) -> Outcome:
        """Run it to its end."""
        process = await asyncio.create_subprocess_exec(
            *self.command,
            *map(str, arguments),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, **ENVIRONMENT, **environment},
        )
        try:
            out, error = await asyncio.wait_for(process.communicate(), PATIENCE)
        except TimeoutError:
            process.kill()
            raise
        assert process.returncode is not None
        return Outcome(process.returncode, out.decode(), error.decode())


PROGRAMS = (
    Program("node", ("node", str(CLIENTS / "node" / "explain.js"))),
    Program("typescript", ("node", str(CLIENTS / "typescript" / "build" / "explain.js"))),
    Program("go", (str(CLIENTS / "go" / "build" / "vitrail-explain"),)),
    Program("cpp", (str(CLIENTS / "cpp" / "build" / "vitrail-explain"),)),
)

every_program = pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.language)


async def outcomes(runs: Mapping[str, Coroutine[None, None, Outcome]]) -> dict[str, Outcome]:
    """Let several programs run, a few at a time, and return what each did."""
    places = asyncio.Semaphore(AT_ONCE)

    async def placed(run: Coroutine[None, None, Outcome]) -> Outcome:
        async with places:
            return await run

    return dict(zip(runs, await asyncio.gather(*map(placed, runs.values())), strict=True))


def read_map(path: Path, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return the map that a program wrote."""
    return np.frombuffer(path.read_bytes(), "<f4").reshape(shape)
