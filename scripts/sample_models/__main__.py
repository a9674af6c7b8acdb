"""Builds the versions of the sample models that are missing: all of them, or those of the models named."""

import argparse
import importlib
import os
import time
from pathlib import Path

REPOSITORY = Path(__file__).parents[2] / "model_repository"

SAMPLES = {"efficientnet_lite0": ("1",), "silhouette_regressor": ("1", "2")}
"""The versions of each model. The module of the same name has `build(version directory)`."""


def main() -> None:
    """Parse the command line and build."""
    parser = argparse.ArgumentParser(prog="scripts/models", description=__doc__)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"{' or '.join(SAMPLES)}; otherwise all")
    parser.add_argument("--force", action="store_true", help="also replace the versions that are there")
    arguments = parser.parse_args()
    if unknown := set(arguments.models) - set(SAMPLES):
        parser.error(f"there is no sample model {', '.join(sorted(unknown))}; there are {', '.join(SAMPLES)}")
    # TensorFlow reads it when it is imported, and then says nothing about the processor.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    for model in arguments.models or SAMPLES:
        for version in SAMPLES[model]:
            build(model, version, force=arguments.force)


def build(model: str, version: str, *, force: bool) -> None:
    """Build one version unless it is there."""
    directory = REPOSITORY / model / version
    if directory.exists() and not force:
        print(f"{model} version {version} is there")
        return
    print(f"building {model} version {version}")
    began = time.monotonic()
    importlib.import_module(f"sample_models.{model}").build(directory)
    print(f"  done in {time.monotonic() - began:.0f} s: {directory.relative_to(REPOSITORY.parent)}")


if __name__ == "__main__":
    main()
