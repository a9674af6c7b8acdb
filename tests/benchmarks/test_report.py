"""The page shows the figures that are committed."""

import json

from benchmarks.figures import Figure, Target, measured
from benchmarks.report import PAGE, RESULTS, SECTION, shown, written


def reports() -> dict[str, list[dict[str, object]]]:
    """Return the files that the benchmarks have written: those whose first object is the machine."""
    found = {path.name: json.loads(path.read_text("utf-8")) for path in RESULTS.glob("*.json")}
    return {
        name: rows
        for name, rows in found.items()
        if isinstance(rows, list) and rows[0].get("suite") == "machine"
    }


def test_the_page_shows_every_report_as_it_is() -> None:
    page = PAGE.read_text("utf-8")

    assert written(page, RESULTS) == page, "run: python -m benchmarks.report"
    assert {match[2] for match in SECTION.finditer(page)} == set(reports())
    assert "quick-cpu.json" in reports()


def test_reports_have_the_keys_that_are_documented() -> None:
    keys = ["suite", "figure", "model", "value", "target", "holds", "detail"]
    assert all(list(row) == keys for rows in reports().values() for row in rows)


def test_a_figure_that_misses_its_target_is_told_from_one_that_is_not_ruled_out() -> None:
    machine = Figure(
        "machine",
        "machine",
        "",
        2,
        unit="processors",
        detail={
            "cpu": "A",
            "vector_extensions": [],
            "versions": {"tensorflow": "2"},
            "share_of_core": 0.5,
        },
    )
    target = Target(1.0, at_most=True)
    figures = [
        measured("s", "reached", "net", [0.5] * 5, how="so", target=target),
        measured("s", "open", "net", [0.9, 1.1, 1.2, 1.3, 1.4], how="so", target=target),
        measured("s", "missed", "net", [1.25] * 5, how="so", target=target, detail={"processor_ratio": 1.5}),
        measured("s", "rate", "net", [7.0] * 5, how="so", unit="images/s"),
        Figure("s", "plain", "", 3.0, unit="MiB"),
    ]

    assert shown([each.as_json() for each in (machine, *figures)]).splitlines() == [
        "",
        "Measured on 2 processors (A), computing on CPU, tensorflow 2. The raw side had 0.5 of its core.",
        "",
        "| figure | model | value | 95 % bounds | processor | target | holds |",
        "|---|---|---|---|---|---|---|",
        "| `reached` | net | 0.5 | 0.5 to 0.5 |  | <= 1 | yes |",
        "| `open` | net | 1.2 | 0.9 to 1.4 |  | <= 1 | not ruled out |",
        "| `missed` | net | 1.25 | 1.25 to 1.25 | 1.5 | <= 1 | **no** |",
        "| `plain` |  | 3 MiB |  |  |  |  |",
        "",
    ]
