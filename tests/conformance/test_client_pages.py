"""The pages of docs/clients show the programs' own lines, and cover the same subjects in every language."""

import ast
import re
import textwrap
from pathlib import Path

import pytest

import vitrail

ROOT = Path(__file__).resolve().parents[2]
PAGES = ROOT / "docs" / "clients"
SUBJECTS = [
    "Generate",
    "Connect and explain",
    "Message limits",
    "Deadlines and time_budget",
    "Cancellation",
    "Errors",
    "Retries",
    "Load balancing",
    "TLS and tokens",
]
SOURCES = {
    "node": ("js", "*.js"),
    "typescript": ("ts", "src/*.ts"),
    "go": ("go", "*.go"),
    "cpp": ("cpp", "*.cc"),
}


def blocks(page: str, fence: str) -> list[str]:
    """Return the code blocks of a page that are marked as this language."""
    return re.findall(
        rf"^```{fence}\n(.*?)^```$", (PAGES / f"{page}.md").read_text("utf-8"), re.MULTILINE | re.DOTALL
    )


def flat(code: str) -> str:
    """Return code without its common indentation."""
    return textwrap.dedent(code).strip("\n")


@pytest.mark.parametrize("page", [*SOURCES, "python"])
def test_every_page_covers_every_subject(page: str) -> None:
    headings = re.findall(r"^## (.+)$", (PAGES / f"{page}.md").read_text("utf-8"), re.MULTILINE)

    assert headings == SUBJECTS


@pytest.mark.parametrize("language", SOURCES)
def test_every_line_of_code_shown_is_the_programs_own(language: str) -> None:
    fence, pattern = SOURCES[language]
    sources = [path.read_text("utf-8") for path in (ROOT / "client" / language).glob(pattern)]
    assert sources
    shown = blocks(language, fence)
    assert shown

    for block in shown:
        assert any(occurs(flat(block), source) for source in sources), block


def occurs(block: str, source: str) -> bool:
    """Return whether a block's lines are consecutive lines of a source, indented or not."""
    lines, wanted = source.splitlines(), len(block.splitlines())
    return any(flat("\n".join(lines[at : at + wanted])) == block for at in range(len(lines) - wanted + 1))


def test_python_code_shown_is_python_and_names_what_the_package_has() -> None:
    shown = blocks("python", "python")
    assert shown

    for block in shown:
        for node in ast.walk(ast.parse(block)):
            if (
                isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.value.id == "vitrail"
            ):
                assert hasattr(vitrail, node.attr), node.attr


def test_the_retry_policy_shown_is_the_programs_own() -> None:
    [policy, _] = blocks("README", "json")

    for program in ("node/explain.js", "go/main.go", "cpp/explain.cc"):
        source = (ROOT / "client" / program).read_text("utf-8")
        for value in re.findall(r'("[\d.]+s"|"UNAVAILABLE"|: \d+)', policy):
            assert value in source, f"{program} has no {value}"
