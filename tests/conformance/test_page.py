"""docs/clients/conformance.md is held to the tests: every row names one, and every one has a row."""

import ast
import re
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "clients" / "conformance.md"
ROWS = re.compile(r"^\| (?P<promise>[^|]+) \| `(?P<module>\w+)\.(?P<test>\w+)` \|$", re.MULTILINE)


def defined_in(module: Path) -> set[str]:
    tree = ast.parse(module.read_text("utf-8"))
    return {
        f"{module.stem}.{node.name}"
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    }


def test_every_row_names_a_test_and_every_test_has_a_row() -> None:
    rows = [f"{row['module']}.{row['test']}" for row in ROWS.finditer(PAGE.read_text("utf-8"))]
    modules = [HERE / f"{name}.py" for name in sorted({row.partition(".")[0] for row in rows})]

    assert sorted(rows) == sorted(set().union(*map(defined_in, modules)))
    assert {module.stem for module in modules} == wire_level_modules()


def wire_level_modules() -> set[str]:
    """Return the modules whose docstring says that they hold rows of the page."""
    return {
        module.stem
        for module in HERE.glob("test_*.py")
        if (ast.get_docstring(ast.parse(module.read_text("utf-8"))) or "").startswith("Rows of")
    }


def test_every_line_of_the_tables_is_a_row() -> None:
    lines = [line for line in PAGE.read_text("utf-8").splitlines() if line.startswith("|")]

    rows = [line for line in lines if ROWS.match(line)]
    headers = [line for line in lines if line == "| promise | test |" or set(line) <= set("|-")]
    assert len(lines) == len(rows) + len(headers)


def test_wire_level_modules_use_no_stub_and_no_client() -> None:
    helpers = [HERE / "api.py", HERE / "wire.py"]
    for module in [*helpers, *(HERE / f"{name}.py" for name in wire_level_modules())]:
        text = module.read_text("utf-8")
        assert not re.search(r"^(from|import) (vitrail|google)\b", text, re.MULTILINE), module.name
