"""The documentation is held to the code: what it lists exists, and what exists is listed."""

import re
from dataclasses import MISSING, fields
from pathlib import Path

import pytest
from prometheus_client.metrics import MetricWrapperBase

from vitrail import errors
from vitrail.v1 import explanation_pb2 as pb
from vitrail_server.metrics import Metrics
from vitrail_server.repository.config_fields import RULES
from vitrail_server.repository.parameters import PREFIX, Parameters
from vitrail_server.rpc.codec import METHODS
from vitrail_server.settings import Settings, flag_of, variable_of

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"


def rows(page: str) -> list[list[str]]:
    """Return the cells of every table row of a page, without headers."""
    lines = (DOCS / page).read_text("utf-8").splitlines()
    table = [line for line in lines if line.startswith("|") and not set(line) <= set("|- ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table]


def in_backticks(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def test_settings_are_documented_with_their_flags_variables_and_defaults() -> None:
    documented = {
        row[0].strip("`"): (row[1].strip("`"), row[2]) for row in rows("settings.md") if "--" in row[0]
    }
    actual = {
        flag_of(each.name): (
            variable_of(each.name),
            "required"
            if each.default is MISSING
            else "none"
            if each.default in (None, ())
            else str(each.default),
        )
        for each in fields(Settings)
    }

    assert {flag: (variable, default.lower()) for flag, (variable, default) in actual.items()} == documented


def test_metrics_are_documented_with_their_types_and_labels() -> None:
    tables = [row for row in rows("metrics.md") if len(row) == 4 and row[0].startswith("`")]
    documented = {name.strip("`"): (kind, labels) for name, kind, labels, _ in tables}
    actual = {}
    for metric in Metrics().registry._collector_to_names:
        if isinstance(metric, MetricWrapperBase):
            name = metric._name + ("_total" if metric._type == "counter" else "")
            actual[name] = (metric._type, ", ".join(metric._labelnames))
        else:  # the library's own, about the process
            for family in metric.collect():
                name = family.name + ("_total" if family.type == "counter" else "")
                actual[name] = (family.type, "")

    assert actual == documented


def test_error_codes_and_classes_are_documented() -> None:
    documented = {row[0].strip("`"): row[1].strip("`") for row in rows("errors.md") if row[0].startswith("`")}
    actual = {kind.code.name: kind.__name__ for kind in errors.BY_CODE.values()}

    assert actual == documented


def test_every_code_has_a_class() -> None:
    assert set(errors.Code) == set(errors.BY_CODE)


def test_methods_are_documented() -> None:
    headings = re.findall(r"^## ([A-Z]{5,})$", (DOCS / "methods.md").read_text("utf-8"), re.MULTILINE)

    assert sorted(method.upper() for method in METHODS) == sorted(headings)


@pytest.mark.parametrize(
    ("enum", "prefix"),
    [
        (pb.Objective.Kind, ""),
        (pb.Gradient.ChannelReduction, "CHANNEL_REDUCTION_"),
        (pb.Occlusion.WindowScore, "WINDOW_SCORE_"),
        (pb.Occlusion.Order, "ORDER_"),
        (pb.Occlusion.Resolution, "RESOLUTION_"),
        (pb.Occlusion.Edge, ""),
        (pb.Warning.Kind, "KIND_"),
    ],
)
def test_values_of_enums_are_in_the_methods_page(enum: type[object], prefix: str) -> None:
    named = set(in_backticks((DOCS / "methods.md").read_text("utf-8")))
    for name, number in enum.items():  # type: ignore[attr-defined]
        if number:
            assert name.removeprefix(prefix) in named, name


def test_methods_served_are_those_of_the_request() -> None:
    oneof = pb.ExplanationSpec.DESCRIPTOR.oneofs_by_name["method"]

    assert {field.name for field in oneof.fields} == set(METHODS)


def test_configuration_keys_are_documented() -> None:
    documented = {row[0].strip("`") for row in rows("repository.md") if row[0].startswith(f"`{PREFIX}")}

    assert {PREFIX + each.name for each in fields(Parameters)} == documented


def test_fields_of_the_configuration_are_documented_with_what_becomes_of_them() -> None:
    documented = {
        row[0].strip("`"): (row[1], row[2]) for row in rows("configuration.md") if row[0].startswith("`")
    }

    assert {path: (rule.use.value, rule.why) for path, rule in RULES.items()} == documented


def test_links_between_pages_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *DOCS.rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}"


def test_files_named_in_the_architecture_page_exist() -> None:
    text = (DOCS / "architecture.md").read_text("utf-8")
    for name in re.findall(r"`((?:client|server|tests)/[\w/.]+\.py)`", text):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"`((?:rpc|repository|explainers|runtime|savedmodel)/[\w/.]+\.py)`", text):
        assert (ROOT / "server" / "vitrail_server" / name).exists(), name


def test_every_decision_is_listed() -> None:
    index = (DOCS / "decisions" / "README.md").read_text("utf-8")
    for page in (DOCS / "decisions").glob("0*.md"):
        assert f"({page.name})" in index, page.name


def test_readme_names_the_two_commands() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")

    assert "scripts/demo" in readme
    assert "scripts/test" in readme
