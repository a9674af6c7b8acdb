"""The models that are measured: Keras applications with random weights, and the sample repository's own.

Random weights are as good as trained ones for speed, if no bias is zero, and need no download. They are
written once, with a fixed seed, and kept in `build/`, which is not under version control.
"""

import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

PROJECT = Path(__file__).resolve().parents[1]
SAMPLES = PROJECT / "model_repository"
CACHE = PROJECT / "build" / "benchmark-models"

PEBBLES = "pebbles"
"""A network so small that a map of tens of thousands of windows takes seconds."""
PEBBLES_SHAPE = (160, 160, 3)
PEBBLES_OUTPUTS = 64

APPLICATIONS = {
    "mobilenet_v2": "MobileNetV2",
    "resnet50_v2": "ResNet50V2",
    "vgg16": "VGG16",
    PEBBLES: "",
}
"""The class in keras.applications of each model that is made here. Empty: a network of our own."""

GRAY = 0.5
"""What windows are hidden with: the middle of the models' range."""

IMAGE_INPUT = "image"
"""What every model here calls its image."""

Form = Literal["signature", "frozen", "bf16", "xla"]
"""A model's graph as it was exported, with variables, or optimised, with constants in their place; of the
latter, what multiplies in bfloat16, and what XLA compiles."""

CONFIG_FILE = "config.pbtxt"

INCREMENTAL = "_incremental"
"""What is added to the name of a model that is served with incremental occlusions."""

CONFIG = """\
name: "{name}"
platform: "tensorflow_savedmodel"
parameters {{ key: "vitrail.image_range" value {{ string_value: "0,1" }} }}
parameters {{ key: "vitrail.fill" value {{ string_value: "0.5" }} }}
"""

PARAMETER = 'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n'


@dataclass(frozen=True, slots=True)
class Model:
    """One model on disk."""

    name: str
    directory: Path
    """Its directory in a repository."""
    saved_model: Path
    """The SavedModel of its highest version."""


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
    return Model(name, directory, max(versions)[1])


@dataclass(frozen=True, slots=True)
class Entry:
    """One model of a repository that is served."""

    model: Model
    incremental: bool
    """Whether occlusions are incremental where that pays; otherwise every window is evaluated in full."""

    @property
    def name(self) -> str:
        """What it is called in the repository."""
        return f"{self.model.name}{INCREMENTAL if self.incremental else ''}"

    def write(self, directory: Path) -> None:
        """Make its directory in a repository: the model's own, with another name and one parameter more."""
        directory.mkdir()
        for path in self.model.directory.iterdir():
            if path.is_dir():
                (directory / path.name).symlink_to(path, target_is_directory=True)
            elif path.name != CONFIG_FILE:
                shutil.copy(path, directory)  # the server takes no link out of a model's directory
        config = (self.model.directory / CONFIG_FILE).read_text("utf-8")
        config = re.sub(r"(?m)^name:.*$", f'name: "{self.name}"', config)
        switch = PARAMETER.format(key="vitrail.incremental", value="AUTO" if self.incremental else "OFF")
        (directory / CONFIG_FILE).write_text(config + switch, "utf-8")


@contextmanager
def repository_of(entries: Sequence[Entry]) -> Iterator[Path]:
    """Make a repository of just these models, until the block ends."""
    with TemporaryDirectory(prefix="benchmark-repository-") as directory:
        for entry in entries:
            entry.write(Path(directory, entry.name))
        yield Path(directory)
