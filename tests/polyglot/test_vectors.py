"""Every client assembles the recorded streams to the same bytes, and refuses those that break a rule."""

from pathlib import Path

from polyglot.programs import PROGRAMS, ROOT, Program, every_program, outcomes

VECTORS = ROOT / "client" / "vectors"


@every_program
async def test_maps_are_those_of_the_python_client_bit_by_bit(program: Program, tmp_path: Path) -> None:
    for stream in VECTORS.glob("*.stream"):
        outcome = await program.run("--replay", stream, "--out", tmp_path / stream.stem)

        assert outcome.code == 0, outcome.error
        assert (tmp_path / stream.stem).read_bytes() == stream.with_suffix(".f32").read_bytes(), stream.stem


@every_program
async def test_streams_that_break_a_rule_are_refused(program: Program, tmp_path: Path) -> None:
    streams = sorted((VECTORS / "refused").glob("*.stream"))
    assert streams

    refusals = await outcomes(
        {each.stem: program.run("--replay", each, "--out", tmp_path / each.stem) for each in streams}
    )

    for name, outcome in refusals.items():
        assert outcome.code == 1, name
        assert "error: INTERNAL: " in outcome.error, name
        assert not (tmp_path / name).exists(), name


async def test_every_program_says_the_same_of_a_stream() -> None:
    for stream in VECTORS.glob("*.stream"):
        replayed = [await program.run("--replay", stream) for program in PROGRAMS]

        assert len({outcome.told for outcome in replayed}) == 1
        assert len({outcome.error for outcome in replayed}) == 1
