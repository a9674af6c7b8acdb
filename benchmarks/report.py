"""Writes the committed figures into docs/performance.md: `python -m benchmarks.report`.

The files in benchmarks/results are the home of the figures; the page shows them between two comments that
name the file, and a test holds it to them.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.models import PROJECT
from benchmarks.table import number

RESULTS = PROJECT / "benchmarks" / "results"
PAGE = PROJECT / "docs" / "performance.md"

SECTION = re.compile(r"(<!-- results: (\S+) -->\n).*?(<!-- end of results -->)", re.DOTALL)

HEADER = (
    "| figure | model | value | 95 % bounds | processor | target | holds |\n|---|---|---|---|---|---|---|\n"
)

Row = Mapping[str, Any]


def main() -> None:
    """Bring the page up to date."""
    before = PAGE.read_text("utf-8")
    after = written(before, RESULTS)
    PAGE.write_text(after, "utf-8")
    print("benchmarks: docs/performance.md " + ("is up to date" if after == before else "was written"))


def written(page: str, results: Path) -> str:
    """Return the page with the figures of its files."""

    def section(match: re.Match[str]) -> str:
        rows = json.loads((results / match[2]).read_text("utf-8"))
        return f"{match[1]}{shown(rows)}{match[3]}"

    return SECTION.sub(section, page)


def shown(rows: Sequence[Row]) -> str:
    """Return the machine as a sentence and the figures as a table; plain rates are in the file only."""
    machine, *figures = rows
    lines = [_line(each) for each in figures if not each["detail"]["unit"].endswith("/s")]
    return f"\n{_machine(machine)}\n\n{HEADER}{''.join(lines)}\n"


def _machine(row: Row) -> str:
    detail = row["detail"]
    share = detail.get("share_of_core")
    kind = ", ".join([detail["cpu"], *detail["vector_extensions"]])
    words = [
        f"Measured on {row['value']:g} processors ({kind})",
        f"computing on {', '.join(detail.get('devices', ['CPU']))}",
        ", ".join(
            f"{name} {version}" for name, version in detail["versions"].items() if "tensorflow" in name
        ),
    ]
    text = ", ".join(words) + "."
    if share is not None:
        text += f" The raw side had {number(share)} of its core."
    return text


def _line(row: Row) -> str:
    detail = row["detail"]
    unit = "" if detail["unit"] == "ratio" else f" {detail['unit']}"
    sign = {"at most": "<=", "at least": ">="}.get(detail.get("bound", ""), "")
    processor = detail.get("processor_ratio")
    cells = (
        f"`{row['figure']}`",
        row["model"],
        f"{number(row['value'])}{unit}",
        _bounds(detail),
        "" if processor is None else number(processor),
        "" if row["target"] is None else f"{sign} {row['target']:g}",
        _verdict(row),
    )
    return f"| {' | '.join(cells)} |\n"


def _bounds(detail: Row) -> str:
    low, high = detail.get("lower_bound"), detail.get("upper_bound")
    if low is None:
        return "" if high is None else f"up to {number(high)}"
    return f"{number(low)} and more" if high is None else f"{number(low)} to {number(high)}"


def _verdict(row: Row) -> str:
    """Return whether the target is reached: `not ruled out` is neither."""
    if row["target"] is None:
        return ""
    at_most = row["detail"]["bound"] == "at most"
    reached = row["value"] <= row["target"] if at_most else row["value"] >= row["target"]
    return "yes" if reached else "not ruled out" if row["holds"] else "**no**"


if __name__ == "__main__":
    main()
