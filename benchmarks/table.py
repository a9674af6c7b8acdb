"""Figures as a table for people. Pure."""

from collections.abc import Sequence

from benchmarks.figures import Figure

HEADER = ("suite", "figure", "model", "value", "spread", "processor", "target", "holds")
NUMBERS = frozenset({"value", "spread", "processor"})
"""Columns that are aligned to the right."""


def table(figures: Sequence[Figure]) -> str:
    """Return a Markdown table with one line per figure, its columns aligned."""
    rows = [HEADER, *(_cells(figure) for figure in figures)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    lines = [_line(row, widths) for row in rows]
    rule = [("-" * (width - 1) + ":") if name in NUMBERS else "-" * width for name, width in _named(widths)]
    return "\n".join([lines[0], _line(rule, widths), *lines[1:]])


def number(value: float) -> str:
    """Return a value with three digits, or all of those before the point."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _cells(figure: Figure) -> tuple[str, ...]:
    unit = f" {figure.unit}" if figure.unit else ""
    spread = figure.detail.get("spread")
    low, high = spread if isinstance(spread, list) else ("", "")
    processor = figure.detail.get("processor_ratio")
    return (
        figure.suite,
        figure.name,
        figure.model,
        number(figure.value) + unit,
        f"{number(float(low))} - {number(float(high))}" if spread else "",
        number(processor) if isinstance(processor, float) else "",
        str(figure.target) if figure.target else "",
        ("yes" if figure.holds else "NO") if figure.target else "",
    )


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    aligned = [
        cell.rjust(width) if name in NUMBERS else cell.ljust(width)
        for cell, (name, width) in zip(cells, _named(widths), strict=True)
    ]
    return f"| {' | '.join(aligned)} |"


def _named(widths: Sequence[int]) -> list[tuple[str, int]]:
    return list(zip(HEADER, widths, strict=True))
