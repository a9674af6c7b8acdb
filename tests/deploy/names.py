"""The rules as text, and every series that dashboards and rules may name."""

import re
from pathlib import Path

from vitrail_server.metrics import Metrics

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "deploy" / "prometheus"
RECORDING = (PROMETHEUS / "rules" / "recording.yml").read_text("utf-8")
ALERTS = (PROMETHEUS / "rules" / "alerts.yml").read_text("utf-8")

RECORDED = re.findall(r"- record: (\S+)", RECORDING)
NAMES_OF_ALERTS = re.findall(r"- alert: (\w+)", ALERTS)


def known_names() -> set[str]:
    """Return the name of every series that the server or a recording rule makes."""
    names = set(RECORDED)
    for family in Metrics().registry.collect():
        match family.type:
            case "counter":
                names.add(f"{family.name}_total")
            case "histogram":
                names |= {f"{family.name}_{part}" for part in ("bucket", "sum", "count")}
            case _:
                names.add(family.name)
    return names
