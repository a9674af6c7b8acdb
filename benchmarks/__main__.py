"""The command line: `python -m benchmarks [SUITE ...]`.

Prints a table and, if asked, writes the figures as JSON: a list of objects with the keys suite, figure,
model, value, target, holds and detail, of which the first describes the machine.
"""

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks import incremental, limit, loading, peers, precision, scheduler, serving
from benchmarks.figures import LEAST_ROUNDS, Detail, Figure
from benchmarks.machine import choose_cores, describe, load_average, pin, usable_cores
from benchmarks.raw import Raw
from benchmarks.scale import FULL, QUICK, Scale
from benchmarks.sides import Needs, Sides, say, sides
from benchmarks.table import number, table


@dataclass(frozen=True, slots=True)
class Suite:
    """Figures that are measured together."""

    measure: Callable[[Sides], Iterator[Figure]]
    needs: Needs


SUITES: Mapping[str, Suite] = {
    suite.SUITE: Suite(suite.measure, suite.NEEDS)
    for suite in (limit, precision, serving, incremental, scheduler, peers, loading)
}


@dataclass(frozen=True, slots=True)
class Request:
    """What the command line asks for."""

    suites: tuple[str, ...]
    scale: Scale
    quick: bool
    json: Path | None


def main() -> None:
    """Run the command line."""
    request = parse(sys.argv[1:])
    # Without this a termination would leave the server behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    figures = run(request)
    print(table(figures))
    if request.json is not None:
        request.json.write_text(json.dumps([each.as_json() for each in figures], indent=2) + "\n", "utf-8")


def parse(arguments: Sequence[str]) -> Request:
    """Return what the arguments ask for; exits with status 2 and a message where they are wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measures how close Vitrail comes to the limit of this machine.",
        epilog="What the figures mean is on the page docs/performance.md.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "suites", nargs="*", metavar="SUITE", help=f"{', '.join(SUITES)} (default: all of them)"
    )
    parser.add_argument("--quick", action="store_true", help="two models and few rounds: under two minutes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE as well")
    parser.add_argument(
        "--rounds", type=int, metavar="N", help=f"how often to repeat, at least {LEAST_ROUNDS}"
    )
    given = parser.parse_args(arguments)
    for name in given.suites:
        if name not in SUITES:
            parser.error(f"there is no suite {name!r}; the suites are {', '.join(SUITES)}")
    if given.rounds is not None and given.rounds < LEAST_ROUNDS:
        parser.error(
            f"--rounds is {given.rounds}; it must be at least {LEAST_ROUNDS}, or nothing can be said with "
            "95 % confidence"
        )
    if given.json is not None and not given.json.absolute().parent.is_dir():
        parser.error(f"--json: there is no directory {given.json.parent}")
    scale = QUICK if given.quick else FULL
    return Request(
        suites=tuple(dict.fromkeys(given.suites)) or tuple(SUITES),
        scale=replace(scale, rounds=given.rounds or scale.rounds),
        quick=given.quick,
        json=given.json,
    )


def run(request: Request) -> list[Figure]:
    """Return the machine and the figures of the suites, one after the other."""
    load_before, cores = load_average(), choose_cores(usable_cores())
    pin(os.getpid(), cores.client)
    chosen = [SUITES[name] for name in request.suites]
    figures = []
    with sides(request.scale, cores, [suite.needs for suite in chosen]) as all_sides:
        for suite in chosen:
            for figure in suite.measure(all_sides):
                say(f"{figure.suite} {figure.model} {figure.name}: {number(figure.value)} {figure.unit}")
                figures.append(figure)
        share = all_sides.raw.call(Raw.share_of_core)
        devices = all_sides.raw.call(Raw.devices)
    say(f"computed on {', '.join(devices)}")
    detail: Detail = {
        "quick": request.quick,
        "devices": devices,
        "load_average_before": load_before,
        "share_of_core": share,
    }
    return [describe(cores, detail), *figures]


if __name__ == "__main__":
    main()
