"""`vitrail-server` with fakes for TensorFlow's models, for tests of a whole process.

Run as `python -m fakes.server_process` with the arguments of `vitrail-server`. Every model of the repository
is the sum of a 4 x 4 image; a batch of one row is computed for every byte on standard input, and prints a
dot when it is asked for.
"""

import functools
import sys

import numpy as np

import vitrail_server.server
from fakes.models import Linear
from fakes.serving import Gate, Offer
from vitrail_server.cli import main
from vitrail_server.repository.source import VersionSource
from vitrail_server.servable import Servable
from vitrail_server.server import Server


class StandardInput(Gate):
    """A gate that lets one batch through per byte of standard input."""

    def __init__(self) -> None:
        pass  # it has no state, and is made on another thread than the event loop's

    def pass_through(self) -> None:
        print(".", end="", flush=True)  # noqa: T201 - this is how the test learns of it
        sys.stdin.buffer.read(1)


class Loader:
    """Makes the same servable of whatever is in the repository."""

    def load(self, source: VersionSource) -> Servable:
        offer = Offer(model=Linear(np.ones((1, 4, 4, 1))), batch_size=1, gate=StandardInput())
        return offer.load(source)


if __name__ == "__main__":
    vitrail_server.server.Server = functools.partial(Server, loader=Loader())  # type: ignore[assignment,misc]
    main()
