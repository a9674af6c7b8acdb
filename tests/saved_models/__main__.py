"""Writes one of the models in a process of its own: `python -m saved_models NAME PATH`."""

import sys
from pathlib import Path

import saved_models

if __name__ == "__main__":
    _, name, path = sys.argv
    getattr(saved_models, name)(Path(path))
