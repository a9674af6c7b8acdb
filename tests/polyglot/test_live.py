"""Every client against a real server with closed-form models: maps, cancelling, deadlines, errors."""

import asyncio
from pathlib import Path

import numpy as np
import pytest

import vitrail
from fakes.models import Softmax, weights
from fakes.serving import Gate, Offer, served
from fakes.wide import Plain
from polyglot.conftest import PHOTO_SHAPE
from polyglot.programs import PROGRAMS, Program, every_program, read_map
from vitrail import aio

MODEL = Softmax(weights(1, 4, PHOTO_SHAPE) / 500)
METHODS: dict[str, tuple[list[str], vitrail.Gradient | vitrail.Occlusion]] = {
    "gradient": ([], vitrail.Gradient()),
    "occlusion": (
        ["--method", "occlusion", "--patch", "4", "--stride", "3"],
        vitrail.Occlusion(patch=4, stride=3),
    ),
}


@pytest.mark.parametrize("method", METHODS)
async def test_maps_are_those_of_the_python_client(method: str, photo: Path, tmp_path: Path) -> None:
    flags, parameters = METHODS[method]
    async with served(tmp_path, {"net": Offer(model=MODEL)}) as server:
        async with aio.Client(server.target) as client:
            expected = await client.explain(photo, model="net", method=parameters, targets=vitrail.TopK(2))
        told = set()
        for program in PROGRAMS:
            out = tmp_path / program.language
            outcome = await program.run(
                *("--server", server.target, "--model", "net", "--top-k", 2, "--out", out, *flags, photo)
            )
            assert outcome.code == 0, outcome.error
            np.testing.assert_allclose(read_map(out, (2, 12, 16)), expected.values, rtol=0, atol=1e-5)
            assert "100 %" in outcome.error
            told.add(outcome.told.partition(" tiles")[0].rpartition(",")[0])  # how many tiles is a race

        evaluations = expected.plan.evaluations
        assert told == {
            f"net version 1, map [2, 12, 16], {evaluations} evaluations\n"
            + "".join(
                f"  output {each.index}: output {each.output:.4f}, score {each.score:.4f}\n"
                for each in expected.targets
            )
            + f"COMPLETE: {evaluations} of {evaluations} evaluations"
        }


async def test_maps_of_many_mebibytes_come_through_the_default_limits(photo: Path, tmp_path: Path) -> None:
    async with served(tmp_path, {"wide": Offer(model=Plain((1100, 1000, 1), 2))}) as server:
        for program in PROGRAMS:
            out = tmp_path / program.language
            outcome = await program.run("--server", server.target, "--model", "wide", "--out", out, photo)
            assert outcome.code == 0, outcome.error
            assert (read_map(out, (2, 1100, 1000)) == 1).all()


@every_program
async def test_cancelling_after_tiles_ends_the_servers_work(
    program: Program, photo: Path, tmp_path: Path
) -> None:
    gate = Gate(is_open=False)
    async with served(tmp_path, {"net": Offer(model=MODEL, gate=gate)}) as server:
        gate.let_through(2)
        outcome = await program.run(
            *("--server", server.target, "--model", "net", "--method", "occlusion", "--patch", 1),
            *("--cancel-after-tiles", 1, "--out", tmp_path / "map.f32", photo),
        )
        await server.metrics.until(lambda: bool(server.metrics.ended))
        [ended] = server.metrics.ended

        assert outcome.code == 0, outcome.error
        assert "CANCELLED: " in outcome.out
        assert " 1 tiles in " in outcome.out
        assert ended.outcome == "cancelled"
        assert ended.dropped > 0
        written = read_map(tmp_path / "map.f32", (4, 12, 16))
        assert 0 < np.isfinite(written).mean() < 1


@every_program
async def test_a_time_budget_returns_what_there_is(program: Program, photo: Path, tmp_path: Path) -> None:
    gate = Gate(is_open=False)
    async with served(tmp_path, {"net": Offer(model=MODEL, gate=gate)}) as server:
        running = asyncio.create_task(
            program.run(
                *("--server", server.target, "--model", "net", "--method", "occlusion", "--patch", 1),
                *("--timeout", 0.5, "--out", tmp_path / "map.f32", photo),
            )
        )
        await gate.reached(1)
        await asyncio.sleep(0.5)  # the budget runs by the clock
        gate.open()
        outcome = await running

        assert outcome.code == 0, outcome.error
        assert "PARTIAL: " in outcome.out
        written = read_map(tmp_path / "map.f32", (4, 12, 16))
        assert 0 < np.isfinite(written).mean() < 1


@every_program
async def test_the_deadline_ends_a_call_that_nobody_answers(
    program: Program, photo: Path, tmp_path: Path
) -> None:
    gate = Gate(is_open=False)
    async with served(tmp_path, {"net": Offer(model=MODEL, gate=gate)}) as server:
        outcome = await program.run("--server", server.target, "--model", "net", "--timeout", 0.2, photo)
        await server.metrics.until(lambda: bool(server.metrics.ended))

        assert outcome.code == 1
        assert outcome.error.startswith("error: DEADLINE_EXCEEDED: ")
        assert server.metrics.ended[0].outcome in ("deadline_exceeded", "cancelled")


@every_program
async def test_a_refusal_is_shown_with_its_field(program: Program, photo: Path, tmp_path: Path) -> None:
    async with served(tmp_path, {"net": Offer(model=MODEL)}) as server:
        wrong = await program.run(
            *("--server", server.target, "--model", "net", "--method", "occlusion", "--patch", 99, photo)
        )
        unset = await program.run("--server", server.target, "--model", "net", "--method", "occlusion", photo)

    assert (wrong.code, wrong.out) == (1, "")
    assert wrong.error == (
        "error: INVALID_ARGUMENT: spec.occlusion.patch.rows is 99; it must be 1 to 12, the image's rows\n"
        "  field: spec.occlusion.patch.rows\n"
    )
    assert "  field: spec.occlusion.patch\n" in unset.error


@every_program
async def test_a_token_opens_the_door(program: Program, photo: Path, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("explain open-sesame\n")
    tokens.chmod(0o600)
    async with served(tmp_path, {"net": Offer(model=MODEL)}, token_file=tokens) as server:
        call = ("--server", server.target, "--model", "net", photo)
        without = await program.run(*call)
        right = await program.run(*call, VITRAIL_TOKEN="open-sesame")  # noqa: S106 - for this test only

    assert without.error.startswith("error: UNAUTHENTICATED: ")
    assert right.code == 0, right.error
