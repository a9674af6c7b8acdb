"""The main job from start to end: a server, real models, real pictures, maps that arrive tile by tile.

Starts a server on free ports with the sample repository, explains a photo with both methods and a
silhouette with the parameters of the notebook that Vitrail replaces, and leaves overlays and `demo.json`
in `demo-output/`. `scripts/demo` runs it.
"""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import vitrail

PROJECT = Path(__file__).resolve().parents[1]
OUTPUT = PROJECT / "demo-output"
PHOTOS = PROJECT / "examples" / "photos"
STARTUP_SECONDS = 300.0
"""How long loading the models may take on a slow machine."""

SHOWN_METRICS = (
    "vitrail_explanations_total",
    "vitrail_explanation_evaluations_total",
    "vitrail_explanation_first_tile_seconds_sum",
    "vitrail_batch_rows_sum",
)


@dataclass(frozen=True)
class Job:
    """One map to make."""

    name: str
    image: Path
    model: str
    method: vitrail.Gradient | vitrail.Occlusion
    why: str


JOBS = (
    Job(
        "coffee-gradient",
        PHOTOS / "coffee.jpg",
        "efficientnet_lite0",
        vitrail.Gradient(),
        "gradient saliency: which pixels move the answer",
    ),
    Job(
        "coffee-occlusion",
        PHOTOS / "coffee.jpg",
        "efficientnet_lite0",
        vitrail.Occlusion(patch=32, stride=16),
        "occlusion: which parts of the picture the answer needs",
    ),
    Job(
        "silhouette-occlusion",
        PHOTOS / "silhouette.png",
        "silhouette_regressor",
        vitrail.Occlusion(patch=6, stride=6, fill=0.5, window_score="ABSOLUTE"),
        "the notebook's own occlusion: gray 6-pixel patches, absolute error, every window",
    ),
)


def main() -> None:
    """Run the demo."""
    OUTPUT.mkdir(exist_ok=True)
    with serving(PROJECT / "model_repository") as (address, metrics_url):
        with vitrail.Client(address) as client:
            describe(client)
            results = [explain(client, job) for job in JOBS]
        show_metrics(metrics_url)
    report = OUTPUT / "demo.json"
    report.write_text(json.dumps(results, indent=2) + "\n", "utf-8")
    print(f"\nThe overlays and {report.relative_to(PROJECT)} are in {OUTPUT.relative_to(PROJECT)}/.")


@contextmanager
def serving(repository: Path) -> Iterator[tuple[str, str]]:
    """Run a server until the block ends; give its address and the URL of its metrics."""
    grpc_port, metrics_port = free_ports()
    log_path = OUTPUT / "server.log"
    print(f"Starting vitrail-server on port {grpc_port} (its log: {log_path.relative_to(PROJECT)})")
    command = [
        *(sys.executable, "-m", "vitrail_server"),
        *("--model-repository", str(repository)),
        *("--grpc-address", "127.0.0.1", "--grpc-port", str(grpc_port)),
        *("--metrics-address", "127.0.0.1", "--metrics-port", str(metrics_port)),
    ]
    with log_path.open("w") as log, subprocess.Popen(command, stderr=log, env=os.environ) as server:
        try:
            wait_until_ready(f"127.0.0.1:{grpc_port}", server)
            yield f"127.0.0.1:{grpc_port}", f"http://127.0.0.1:{metrics_port}/metrics"
        finally:
            server.terminate()
            print(f"\nStopped the server (exit status {server.wait(timeout=60)})")


def free_ports() -> tuple[int, int]:
    """Return two ports that nothing listens on."""
    with socket.socket() as first, socket.socket() as second:
        first.bind(("127.0.0.1", 0))
        second.bind(("127.0.0.1", 0))
        return first.getsockname()[1], second.getsockname()[1]


def wait_until_ready(address: str, server: "subprocess.Popen[bytes]") -> None:
    """Wait until the server has loaded its models."""
    print("Loading the models and measuring their batch sizes", end="", flush=True)
    began = time.monotonic()
    with vitrail.Client(address) as client:
        while time.monotonic() - began < STARTUP_SECONDS and server.poll() is None:
            try:
                if client.ready(timeout=1.0):
                    print(f" ({time.monotonic() - began:.0f} s)")
                    return
            except vitrail.VitrailError:
                pass  # the port is not open yet
            print(".", end="", flush=True)
            time.sleep(1.0)
    raise SystemExit("\nThe server did not become ready; see demo-output/server.log")


def describe(client: vitrail.Client) -> None:
    """Print what is served."""
    for model in client.models():
        versions = ", ".join(str(each.version) for each in model.versions)
        print(f"  {model.name}: {f'version {versions}' if versions else model.reason}")


def explain(client: vitrail.Client, job: Job) -> dict[str, object]:
    """Make one map, showing its progress, and return its line of demo.json."""
    print(f"\n{job.image.name} by {job.model}, {job.why}")
    began = time.monotonic()
    first_tile = None
    for explanation in client.explain_tiles(job.image, model=job.model, method=job.method, timeout=600):
        if first_tile is None and explanation.tiles:
            first_tile = time.monotonic() - began
        show_progress(explanation)
    seconds = time.monotonic() - began
    if not explanation.complete or explanation.summary is None:
        raise SystemExit(f"\n{job.name} is not complete")
    target = explanation.targets[0]
    png = OUTPUT / f"{job.name}.png"
    explanation.overlay().save(png)
    evaluations = explanation.summary.evaluations
    print(f"\n  {target}: score {target.score:.4g}, {evaluations.done} evaluations in {seconds:.1f} s")
    return {
        "model": explanation.model,
        "version": explanation.model_version,
        "method": "occlusion" if isinstance(job.method, vitrail.Occlusion) else "gradient",
        "image": job.image.name,
        "target": target.index,
        "label": target.label,
        "score": target.score,
        "evaluations": evaluations.done,
        "tiles": explanation.tiles,
        "first_tile_seconds": round(first_tile or seconds, 4),
        "seconds": round(seconds, 4),
        "png": str(png.relative_to(PROJECT)),
    }


def show_progress(explanation: vitrail.Explanation) -> None:
    """Redraw the progress bar, or where nobody watches print its last state only."""
    if sys.stdout.isatty() or explanation.complete:
        filled = round(40 * explanation.progress)
        print(
            f"\r  [{'#' * filled}{'.' * (40 - filled)}] {explanation.evaluations_done} of "
            f"{explanation.plan.evaluations} evaluations, {explanation.tiles} tiles",
            end="",
            flush=True,
        )


def show_metrics(url: str) -> None:
    """Print a few lines of what Prometheus sees, without the zeros."""
    print(f"\nSome of {url}:")
    with urllib.request.urlopen(url) as response:  # noqa: S310 - our own server's address
        for line in response.read().decode().splitlines():
            if line.startswith(SHOWN_METRICS) and not line.endswith(" 0.0"):
                print(f"  {line}")


if __name__ == "__main__":
    main()
