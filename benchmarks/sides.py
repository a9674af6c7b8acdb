"""The sides that take turns on one core: TensorFlow alone, the server and the peers, with the same models."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from benchmarks.machine import Cores
from benchmarks.models import APPLICATIONS, PEBBLES, Entry, Model, find, repository_of
from benchmarks.process import Remote
from benchmarks.raw import Raw
from benchmarks.rivals import Rivals, installed
from benchmarks.scale import Case, Scale
from benchmarks.served import Served, server


@dataclass(frozen=True, slots=True)
class Needs:
    """What a suite measures with, beside TensorFlow alone."""

    plain: Callable[[Case], bool] | None = None
    """The cases whose models are served, every window evaluated in full. None: none of them."""
    incremental: Callable[[Case], bool] = lambda _: False
    """The cases whose models are served with incremental occlusions."""
    pebbles: bool = False
    """Whether the smallest network is served too."""
    libraries: bool = False
    """Whether the peers' libraries are wanted, where the scale has them."""


@dataclass(frozen=True, slots=True)
class Sides:
    """Everything that a suite measures with."""

    scale: Scale
    """With the cases whose models are there."""
    cores: Cores
    raw: Remote[Raw]
    shapes: Mapping[str, tuple[int, int, int]]
    """Height, width and channels of each model's image."""
    server: Served | None = None
    rivals: Remote[Rivals] | None = None
    """None where they are not wanted or not installed."""

    @property
    def served(self) -> Served:
        """The server; to be used by suites that need one."""
        if self.server is None:
            raise ValueError("this suite needs a server")
        return self.server

    def images(self, model: str, count: int) -> list[NDArray[np.float32]]:
        """Return random images of the model's size, the same ones every time.

        Random, so that no window shows its fill already, which the server would not evaluate.
        """
        generator = np.random.default_rng(0)
        return [generator.random(self.shapes[model], np.float32) for _ in range(count)]


@contextmanager
def sides(scale: Scale, cores: Cores, needs: Sequence[Needs]) -> Iterator[Sides]:
    """Make what is missing, load the models on all sides, and end them when the block ends."""
    with ExitStack() as stack:
        raw = stack.enter_context(Remote(Raw))
        # All load at the same time; there is nothing to be measured yet.
        raw.pin(cores.client)
        models = {name: model for name in scale.models if (model := _model(name, raw))}
        here = replace(scale, cases=tuple(case for case in scale.cases if case.model in models))
        entries = _entries(here, models, needs, raw)
        ready = None
        if entries:
            repository = stack.enter_context(repository_of(entries))
            ready = stack.enter_context(server(repository, cores))
        shapes = {}
        for model in models.values():
            say(f"loading {model.name}")
            shapes[model.name] = raw.call(Raw.load, model)
        rivals = None
        if scale.libraries and any(each.libraries for each in needs):
            if installed():
                rivals = stack.enter_context(Remote(Rivals))
                rivals.pin(cores.model)
            else:
                say("the peers' libraries are left out: they are not installed (scripts/peers installs them)")
        raw.pin(cores.model)
        if ready:
            say("waiting for the server")
        yield Sides(here, cores, raw, shapes, ready() if ready else None, rivals)


def say(text: str) -> None:
    """Tell whoever watches what is going on; the report itself goes to the standard output."""
    print(f"benchmarks: {text}", file=sys.stderr, flush=True)


def _entries(
    scale: Scale, models: Mapping[str, Model], needs: Sequence[Needs], raw: Remote[Raw]
) -> list[Entry]:
    """Return what has to be served."""
    wanted: dict[tuple[str, bool], Entry] = {}
    for case in scale.cases:
        model = models[case.model]
        if any(each.plain is not None and each.plain(case) for each in needs):
            wanted[model.name, False] = Entry(model, incremental=False)
        if any(each.incremental(case) for each in needs):
            wanted[model.name, True] = Entry(model, incremental=True)
    if any(each.pebbles for each in needs):
        pebbles = _model(PEBBLES, raw)
        assert pebbles  # noqa: S101 - it was made just now
        wanted[PEBBLES, False] = Entry(pebbles, incremental=False)
    return list(wanted.values())


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
