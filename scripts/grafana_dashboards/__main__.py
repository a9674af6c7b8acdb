"""Writes the dashboards to deploy/grafana, or checks that they are what this code makes."""

import argparse
import sys
from pathlib import Path

from grafana_dashboards import models, overview
from grafana_dashboards.board import Board

DIRECTORY = Path(__file__).parents[2] / "deploy" / "grafana"

BOARDS: dict[str, Board] = {"overview.json": overview.BOARD, "models.json": models.BOARD}


def main() -> None:
    """Parse the command line and write or check."""
    parser = argparse.ArgumentParser(prog="scripts/dashboards", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a file is out of date")
    check = parser.parse_args().check
    for name, board in BOARDS.items():
        path = DIRECTORY / name
        if not check:
            path.write_text(board.json(), "utf-8")
        elif path.read_text("utf-8") != board.json():
            sys.exit(f"deploy/grafana/{name} is out of date: run scripts/dashboards")


if __name__ == "__main__":
    main()
