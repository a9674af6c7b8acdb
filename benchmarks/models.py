"""The models that are measured: Keras applications with random weights, and the sample repository's own.

Random weights are as good as trained ones for speed, and need no download. They are written once, with a
fixed seed, and kept in `build/`, which is not under version control.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

PROJECT = Path(__file__).resolve().parents[1]
SAMPLES = PROJECT / "model_repository"
CACHE = PROJECT / "build" / "benchmark-models"

APPLICATIONS = {"mobilenet_v2": "MobileNetV2", "resnet50_v2": "ResNet50V2"}
"""The class in keras.applications of each model that is made here."""

Form = Literal["signature", "frozen"]
"""A model's graph as it was exported, with variables, or with constants in their place."""

CONFIG = """\
name: "{name}"
platform: "tensorflow_savedmodel"
parameters {{ key: "vitrail.image_range" value {{ string_value: "0,1" }} }}
parameters {{ key: "vitrail.fill" value {{ string_value: "0.5" }} }}
"""


@dataclass(frozen=True, slots=True)
class Model:
    """One model on disk."""

    name: str
    directory: Path
    """Its directory in a repository."""
    saved_model: Path
    """The SavedModel of its highest version."""
    application: str = ""
    """The class in keras.applications that it is made of. Empty: another network."""


def find(name: str) -> Model | None:
    """Return the model called `name`, or None if it has not been built.

    Raises:
        LookupError: there is no such model to build, either.

    """
    if name in APPLICATIONS:
        directory = CACHE / name
    elif (SAMPLES / name).is_dir():
        directory = SAMPLES / name
    else:
        raise LookupError(f"there is no model {name!r}")
    versions = [
        (int(path.parents[1].name), path.parent)
        for path in directory.glob("*/model.savedmodel/saved_model.pb")
        if path.parents[1].name.isdecimal()
    ]
    if not versions:
        return None
    return Model(name, directory, max(versions)[1], APPLICATIONS.get(name, ""))


@contextmanager
def repository_of(models: Sequence[Model]) -> Iterator[Path]:
    """Make a repository of just these models, until the block ends."""
    with TemporaryDirectory(prefix="benchmark-repository-") as directory:
        for model in models:
            Path(directory, model.name).symlink_to(model.directory, target_is_directory=True)
        yield Path(directory)
