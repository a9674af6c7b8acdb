"""The command line is the same in every language, and wrong ones are refused without a stack trace."""

from polyglot.programs import PROGRAMS, Program, every_program, outcomes

WRONG = (
    "",
    "photo.png",
    "--model net",
    "--model net photo.png another.png",
    "--model net --tomorrow photo.png",
    "--model net --method tomorrow photo.png",
    "--model net --method occlusion --patch 0 photo.png",
    "--model net --method occlusion --patch 2.5 photo.png",
    "--model net --patch 8 photo.png",
    "--model net --stride 8 photo.png",
    "--model net --timeout 0 photo.png",
    "--model net --timeout soon photo.png",
    "--model net --tls-cert cert.pem photo.png",
    "--model net --tls-cert cert.pem --tls-key key.pem photo.png",
    "--out",
)


async def test_help_is_the_same_in_every_language() -> None:
    helped = [await program.run("--help") for program in PROGRAMS]

    assert {outcome.code for outcome in helped} == {0}
    assert len({outcome.out for outcome in helped}) == 1
    assert "--cancel-after-tiles" in helped[0].out


@every_program
async def test_wrong_command_lines_end_with_2_and_the_usage(program: Program) -> None:
    for line, outcome in (await outcomes({line: program.run(*line.split()) for line in WRONG})).items():
        assert outcome.code == 2, line
        assert outcome.error.startswith("error: "), line
        assert "usage: vitrail-explain" in outcome.error, line


@every_program
async def test_a_file_that_is_not_there_is_named(program: Program) -> None:
    for line in ("--replay no/such", "--model net no/such.png"):
        outcome = await program.run(*line.split())

        assert outcome.code == 1
        assert outcome.error.startswith("error: ")
        assert "no/such" in outcome.error
        assert len(outcome.error.splitlines()) == 1
