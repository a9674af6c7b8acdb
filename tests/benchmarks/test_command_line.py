"""`python -m benchmarks`: what its arguments mean."""

from pathlib import Path

import pytest
from benchmarks.__main__ import SUITES, parse
from benchmarks.scale import FULL, QUICK


def test_without_arguments_every_suite_is_measured_in_full() -> None:
    request = parse([])

    assert request.suites == tuple(SUITES)
    assert set(SUITES) == {"limit", "precision", "serving", "incremental", "scheduler", "peers", "loading"}
    assert request.scale == FULL
    assert request.json is None


def test_suites_are_measured_in_the_order_given_and_once() -> None:
    assert parse(["serving", "limit", "serving"]).suites == ("serving", "limit")


def test_quick_measures_less() -> None:
    assert parse(["--quick"]).scale == QUICK


def test_rounds_replace_those_of_the_scale() -> None:
    assert parse(["--quick", "--rounds", "7"]).scale.rounds == 7
    assert parse([]).scale.rounds == FULL.rounds


def test_json_goes_to_a_file_whose_directory_exists(tmp_path: Path) -> None:
    assert parse(["--json", str(tmp_path / "figures.json")]).json == tmp_path / "figures.json"


@pytest.mark.parametrize("suite", ["peer", "limits"])
def test_suites_that_do_not_exist_are_refused_by_name(suite: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        parse(["limit", suite])

    assert refused.value.code == 2
    assert f"there is no suite '{suite}'; the suites are {', '.join(SUITES)}" in capsys.readouterr().err


def test_too_few_rounds_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--rounds", "4"])

    assert "--rounds is 4; it must be at least 5" in capsys.readouterr().err


def test_json_in_a_directory_that_does_not_exist_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse(["--json", str(tmp_path / "none" / "figures.json")])

    assert "--json: there is no directory" in capsys.readouterr().err
