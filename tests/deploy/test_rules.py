"""The rules, their tests, runbooks and documentation fit; promtool runs them in scripts/monitoring."""

import re

from deploy.names import ALERTS, NAMES_OF_ALERTS, PROMETHEUS, RECORDED, RECORDING, ROOT, known_names

RUNBOOKS = (ROOT / "docs" / "runbooks.md").read_text("utf-8")


def test_every_alert_has_a_runbook_and_every_runbook_an_alert() -> None:
    assert re.findall(r"^## (\w+)$", RUNBOOKS, re.MULTILINE) == NAMES_OF_ALERTS


def test_every_alert_leads_to_its_own_runbook() -> None:
    """The anchor of a heading is its text in lower case."""
    assert re.findall(r"runbook: (\S+)", ALERTS) == [
        f"docs/runbooks.md#{name.lower()}" for name in NAMES_OF_ALERTS
    ]


def test_every_alert_says_how_urgent_it_is_and_what_happened() -> None:
    for block in ALERTS.split("- alert: ")[1:]:
        name = block.split()[0]
        assert re.search(r"labels: \{severity: (page|ticket)\}", block), name
        assert re.search(r'summary: ".+"', block), name


def test_links_between_runbooks_lead_somewhere() -> None:
    linked = set(re.findall(r"\]\(#(\w+)\)", RUNBOOKS))

    assert linked <= {name.lower() for name in NAMES_OF_ALERTS}


def test_every_rule_has_a_unit_test() -> None:
    alerts, recording = (
        (PROMETHEUS / "tests" / name).read_text("utf-8") for name in ("alerts.yml", "recording.yml")
    )

    assert set(re.findall(r"alertname: (\w+)", alerts)) == set(NAMES_OF_ALERTS)
    for name in RECORDED:
        assert name in recording, name


def test_every_recording_rule_is_documented() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text("utf-8")
    documented = {
        window.replace("…", first.removesuffix("5m")) if window.startswith("…") else window
        for row in re.findall(r"^\| (`\w+:.*?) \|", page, re.MULTILINE)
        for first, *_ in [re.findall(r"`([^`]+)`", row)]
        for window in re.findall(r"`([^`]+)`", row)
    }

    assert documented == set(RECORDED)


def test_rules_name_series_that_exist() -> None:
    code = re.sub(r"#.*|(record|alert|summary|runbook): .*", "", RECORDING + ALERTS)
    named = set(re.findall(r"\b(?:vitrail|process|job|instance)[\w:]*_[\w:]+", code))
    groups = set(re.findall(r"- name: (\w+)", code))

    assert named - groups <= known_names()
    assert {"vitrail_explanations_total", "process_resident_memory_bytes"} <= named
