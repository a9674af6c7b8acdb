"""The two sides that take turns on one core: TensorFlow alone and the server, both with the same models."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from benchmarks.machine import Cores
from benchmarks.models import APPLICATIONS, Model, find, repository_of
from benchmarks.process import Remote
from benchmarks.raw import Raw
from benchmarks.scale import Scale
from benchmarks.served import Served, server


@dataclass(frozen=True, slots=True)
class Sides:
    """Everything that a suite measures with."""

    scale: Scale
    """With the cases whose models are there."""
    raw: Remote[Raw]
    served: Served | None
    """None where no suite asked for it."""
    shapes: Mapping[str, tuple[int, int, int]]
    """Height, width and channels of each model's image."""

    def images(self, model: str, count: int) -> list[NDArray[np.float32]]:
        """Return random images of the model's size, the same ones every time.

        Random, so that no window shows its fill already, which the server would not evaluate.
        """
        generator = np.random.default_rng(0)
        return [generator.random(self.shapes[model], np.float32) for _ in range(count)]


@contextmanager
def sides(scale: Scale, cores: Cores, *, serve: bool) -> Iterator[Sides]:
    """Make what is missing, load the models on both sides, and end both when the block ends.

    Without `serve` there is no server.
    """
    with Remote(Raw) as raw:
        # While the server loads on the model's core, the raw side loads on the client's.
        raw.pin(cores.client)
        models = {name: model for name in scale.models if (model := _model(name, raw))}
        here = replace(scale, cases=tuple(case for case in scale.cases if case.model in models))
        if not serve:
            yield Sides(here, raw, None, _load(raw, models, cores))
            return
        with repository_of(list(models.values())) as repository, server(repository, cores) as ready:
            shapes = _load(raw, models, cores)
            say("waiting for the server")
            yield Sides(here, raw, ready(), shapes)


def say(text: str) -> None:
    """Tell whoever watches what is going on; the report itself goes to the standard output."""
    print(f"benchmarks: {text}", file=sys.stderr, flush=True)


def _load(raw: Remote[Raw], models: Mapping[str, Model], cores: Cores) -> dict[str, tuple[int, int, int]]:
    shapes = {}
    for model in models.values():
        say(f"loading {model.name}")
        shapes[model.name] = raw.call(Raw.load, model)
    raw.pin(cores.model)
    return shapes


def _model(name: str, raw: Remote[Raw]) -> Model | None:
    """Return a model, made if it can be made here; None if another command makes it."""
    model = find(name)
    if model is None and name in APPLICATIONS:
        say(f"making {name}")
        raw.call(Raw.write, name)
        model = find(name)
    if model is None:
        say(f"{name} is left out: it has not been built (scripts/models builds it)")
    return model
