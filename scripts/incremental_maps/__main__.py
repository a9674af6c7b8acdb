"""Runs the proof, one network after the other, each in a process of its own so that its memory comes back."""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

NETWORKS = (
    *("VGG16", "ResNet50V2", "DenseNet121", "InceptionV3", "MobileNetV2"),
    *("EfficientNetB0", "EfficientNetLite0", "ViT"),
)


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="scripts/incremental", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "networks", nargs="*", metavar="NETWORK", help=f"{', '.join(NETWORKS)} (default: all)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was found to FILE as well")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    for name in given.networks:
        if name not in NETWORKS:
            parser.error(f"there is no network {name!r}; there are {', '.join(NETWORKS)}")
    if given.alone:
        print(json.dumps(findings(given.networks[0])))
        return 0
    found = []
    for name in given.networks or NETWORKS:
        command = [sys.executable, "-m", "incremental_maps", "--alone", name]
        part = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        for each in part:
            print(line(each), flush=True)
        found += part
    if given.json is not None:
        given.json.write_text(json.dumps(found, indent=2) + "\n", "utf-8")
    return 0 if all(each["holds"] for each in found) else 1


def findings(name: str) -> list[Any]:
    """Return what is found of one network, in this process."""
    from incremental_maps.proof import CASES, Proof, use_one_thread

    use_one_thread()
    proof = Proof(name)
    return [proof.finding(case).as_json() for case in CASES]


def line(found: dict[str, Any]) -> str:
    """Return a finding for people."""
    return (
        f"{found['network']:18} {found['patch']:3} x {found['patch']:<3} {found['fill']:14} "
        f"difference {found['largest_difference']:.1e} (noise {found['largest_noise']:.1e}, of the map "
        f"{found['largest_difference_of_map']:.1e}) {'holds' if found['holds'] else 'DOES NOT HOLD'}; "
        f"{found['multiplications_saved']:.2f} times fewer multiplications, "
        f"{found['speedup']:.2f} times as fast"
        f"{'' if found['worthwhile'] else ', left to the full forward'}"
    )


if __name__ == "__main__":
    sys.exit(main())
