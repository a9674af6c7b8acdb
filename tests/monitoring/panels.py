"""The panels of the committed dashboards, as their queries."""

import json
import re
from dataclasses import dataclass
from typing import Any

from monitoring.servers import ROOT

GRAFANA = ROOT / "deploy" / "grafana"
RATE_INTERVAL = "10s"
"""What Grafana would put for $__rate_interval: a few scrapes."""


@dataclass(frozen=True)
class Query:
    """One query of a panel."""

    board: str
    title: str
    legend: str
    expression: str
    panel: "Panel"

    def promql(self, **variables: str) -> str:
        """Return the expression with its variables filled in: those given, else All."""
        text = self.expression.replace("$__rate_interval", RATE_INTERVAL)
        return re.sub(r"\$(\w+)", lambda found: variables.get(found[1], ".*"), text)

    def name_of(self, labels: dict[str, str]) -> str:
        """Return how Grafana would call a series."""
        return re.sub(r"\{\{(\w+)\}\}", lambda found: labels.get(found[1], ""), self.legend)


@dataclass(frozen=True)
class Panel:
    """What a picture of a panel needs beside its queries."""

    unit: str
    stacked: bool
    limits: tuple[float, ...]


def queries(board: str) -> list[Query]:
    """Return every query of a dashboard."""
    loaded = json.loads((GRAFANA / f"{board}.json").read_text("utf-8"))
    return [
        Query(board, panel["title"], target["legendFormat"], target["expr"], _panel(panel))
        for panel in loaded["panels"]
        for target in panel.get("targets", ())
    ]


def _panel(panel: dict[str, Any]) -> Panel:
    defaults = panel["fieldConfig"]["defaults"]
    return Panel(
        unit=defaults["unit"],
        stacked="stacking" in defaults.get("custom", {}),
        limits=tuple(step["value"] for step in defaults["thresholds"]["steps"] if step["value"] is not None),
    )
