"""The direction of dependence, as data: every import of the two packages is held to it."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# For each room, the outside packages that must not be imported in it, however indirectly it is meant.
FORBIDDEN = {
    "client/vitrail": ("vitrail_server", "tensorflow", "prometheus_client", "keras"),
    "server/vitrail_server/explainers": (
        "tensorflow",
        "keras",
        "grpc",
        "asyncio",
        "threading",
        "prometheus_client",
    ),
    "server/vitrail_server/inference": (
        "tensorflow",
        "keras",
        "grpc",
        "asyncio",
        "threading",
        "prometheus_client",
    ),
    **{
        f"server/vitrail_server/runtime/{policy}.py": ("tensorflow", "grpc", "asyncio", "threading", "time")
        for policy in ("scheduler", "priority", "fairness", "timing", "ordered", "queueing", "entry")
    },
    "server/vitrail_server/runtime": ("tensorflow", "keras", "grpc", "prometheus_client"),
    "server/vitrail_server/repository": ("tensorflow", "keras", "grpc", "prometheus_client", "threading"),
    "server/vitrail_server/savedmodel": ("grpc", "asyncio", "prometheus_client", "threading"),
    "server/vitrail_server/rpc": ("tensorflow", "keras", "prometheus_client", "threading"),
    "server/vitrail_server/work.py": ("tensorflow", "grpc", "asyncio"),
    "server/vitrail_server/servable.py": ("tensorflow", "grpc", "asyncio"),
}

# For each room of the server, the rooms it may use; beside them, all may use the vocabulary.
VOCABULARY = {"work", "servable", "events", "wording"}
MAY_USE = {
    "explainers": {"explainers"},
    "inference": {"inference", "explainers"},
    "runtime": {"runtime", "explainers"},
    "repository": {"repository", "kserve"},
    "savedmodel": {"savedmodel", "turns"},
    "turns": set(),
    "footprint": set(),
    "rpc": {"rpc", "repository", "runtime", "explainers", "inference", "kserve", "logs", "settings"},
    "work": set(),
    "wording": set(),
    "servable": set(),
    "events": {"repository"},
    "metrics": {"repository"},
    "settings": set(),
    "healthcheck": {"settings"},
    "server": {
        "rpc",
        "repository",
        "runtime",
        "explainers",
        "inference",
        "savedmodel",
        "footprint",
        "metrics",
        "settings",
        "logs",
    },
    "logs": {"settings"},
    "cli": {"server", "settings", "logs"},
    "__main__": {"cli"},
    "__init__": set(),
    "kserve": {"kserve"},
}

# What the server may use of the client's package: the vocabulary of the wire.
WIRE = ("vitrail.v1", "vitrail.tensors", "vitrail.errors", "vitrail.status")


def imports_of(path: Path) -> Iterator[str]:
    """Yield the full name of everything that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def files_in(place: str) -> list[Path]:
    path = ROOT / place
    found = [path] if path.is_file() else sorted(path.rglob("*.py"))
    assert found, f"{place} does not exist"
    return [file for file in found if "_pb2" not in file.name]


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


@pytest.mark.parametrize(("place", "packages"), FORBIDDEN.items())
def test_forbidden_packages_are_not_imported(place: str, packages: tuple[str, ...]) -> None:
    for file in files_in(place):
        bad = [name for name in imports_of(file) for package in packages if within(name, package)]
        if file.name in ("lane.py", "device.py"):  # where the threads meet the loop
            bad = [name for name in bad if not within(name, "asyncio")]

        assert bad == [], f"{file.relative_to(ROOT)} imports {bad}"


def test_every_room_of_the_server_uses_only_what_it_may() -> None:
    package = ROOT / "server" / "vitrail_server"
    for file in files_in("server/vitrail_server"):
        room = file.relative_to(package).parts[0].removesuffix(".py")
        for name in imports_of(file):
            if within(name, "vitrail_server"):
                used = name.split(".")[1]
                assert used in MAY_USE[room] | VOCABULARY, f"{file.relative_to(ROOT)} ({room}) imports {name}"
            elif within(name, "vitrail"):
                assert any(within(name, wire) for wire in WIRE), f"{file.relative_to(ROOT)} imports {name}"


def test_only_metrics_knows_prometheus() -> None:
    users = {
        file.name
        for file in files_in("server/vitrail_server")
        if any(within(name, "prometheus_client") for name in imports_of(file))
    }

    assert {"metrics.py"} == users


def test_every_room_is_in_the_table() -> None:
    package = ROOT / "server" / "vitrail_server"
    rooms = {
        path.name.removesuffix(".py")
        for path in package.iterdir()
        if path.suffix == ".py" or (path.is_dir() and path.name != "__pycache__")
    }

    assert rooms == set(MAY_USE)
