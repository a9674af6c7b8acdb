"""Plays scheduler, device and client for one Run: any sizes, any order, some rows given back."""

from dataclasses import dataclass, field

import numpy as np

from fakes.canvas import Canvas
from fakes.models import Model
from fakes.servables import compute
from vitrail_server.explainers.run import Explanation, Work


@dataclass
class Driver:
    """Moves a Run on by random steps; the client's canvas is drained now and then."""

    run: Explanation
    model: Model
    seed: int = 0
    most_rows: int = 8
    drains: float = 0.5
    """How likely the client reads after a step; 0: only at the end."""
    give_backs: int = 3
    """How many times at most rows are given back."""
    out: list[Work] = field(default_factory=list)
    canvas: Canvas | None = None
    computed: list[int] = field(default_factory=list)
    """The tags of all rows that were absorbed, in order."""

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)

    def step(self) -> bool:
        """Hand out, absorb or give back some rows; False once nothing is left to do."""
        moves = ["absorb"] * 2 * bool(self.out) + ["give back"] * bool(self.out and self.give_backs)
        if len(self.out) < 4 and not self.run.finished:
            moves += ["take"] * 2
        while moves:
            move = moves[int(self.rng.integers(len(moves)))]
            if move != "take":
                work = self.out.pop(int(self.rng.integers(len(self.out))))
                if move == "absorb":
                    self.absorb(work)
                else:
                    self.give_backs -= 1
                    self.run.give_back(work)
            elif not self.take():
                moves = [move for move in moves if move != "take"]
                continue
            if self.rng.random() < self.drains:
                self.drain()
            return True
        return False

    def take(self) -> bool:
        """Take some rows, if there are any."""
        wanted = int(self.rng.integers(1, self.most_rows + 1))
        work = self.run.take(wanted)
        if isinstance(work, Work):
            assert 1 <= len(work.tag) == len(work.rows) <= wanted
            self.out.append(work)
        return isinstance(work, Work)

    def absorb(self, work: Work) -> None:
        """Compute rows and let the Run absorb them."""
        self.run.absorb(work, compute(self.model, work.rows))
        self.computed += work.tag.tolist()

    def drain(self) -> None:
        """Paste what is new."""
        if self.run.plan is None:
            assert not self.run.tiles()
            return
        if self.canvas is None:
            self.canvas = Canvas(self.run.plan.map_shape)
        self.canvas.paste_all(self.run.tiles())

    def finish(self) -> Canvas:
        """Go on to the end and return the map as the client has it."""
        while self.step():
            pass
        assert self.run.finished
        self.drain()
        assert self.canvas is not None
        assert not self.run.tiles()
        return self.canvas


def planned(run: Explanation) -> bool:
    """Whether the Run has a plan."""
    return run.plan is not None
