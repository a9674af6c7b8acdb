"""One map, as it is assembled from the messages of its stream.

A stream is one plan, then tiles, then one summary; `receive` takes them in that order and answers
anything else with `Internal`. Every tile is checked against the plan before it is pasted, so a wrong
server cannot write outside the map. Nothing here does I/O.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vitrail.errors import Internal, InvalidArgument
from vitrail.methods import Method, from_message
from vitrail.v1 import explanation_pb2 as pb

if TYPE_CHECKING:
    import PIL.Image


@dataclass(frozen=True, slots=True)
class Target:
    """One element of the output that is explained."""

    index: int
    """Its position in the output."""
    label: str
    """Its name; empty if the model has no label file."""
    output: float
    """The output for the unperturbed image."""
    score: float
    """The objective for the unperturbed image."""
    output_name: str
    """The output that it is an element of."""

    def __str__(self) -> str:
        return f"{self.label} ({self.index})" if self.label else f"{self.output_name}[{self.index}]"


class Explanation:
    """The map of one image: growing while its tiles arrive, whole when its summary has.

    In a notebook it shows itself as the overlay of its first target.
    """

    def __init__(self, plan: pb.Plan, image: pb.Image | Callable[[], pb.Image]) -> None:
        """`image` is the one explained, or returns it when it is first asked for."""
        shape = tuple(plan.map_shape)
        if len(shape) not in (3, 4) or min(shape) < 1 or shape[0] != len(plan.targets):
            raise Internal(
                f"the server announced a map of shape {list(shape)} for {len(plan.targets)} targets; it must "
                "be [targets, height, width] or [targets, height, width, channels]"
            )
        self._plan = plan
        self._image = image
        try:
            self._values: NDArray[np.float32] = np.full(shape, np.nan, np.float32)
        except (MemoryError, ValueError):
            raise Internal(
                f"the server announced a map of shape {list(shape)}, which has no room here"
            ) from None
        self._targets = tuple(
            Target(target.index, target.label, target.output, target.score, plan.output_name)
            for target in plan.targets
        )
        self._method = _method_of(plan)
        self._summary: pb.Summary | None = None
        self._evaluations_done = 0
        self._tiles = 0

    @property
    def values(self) -> NDArray[np.float32]:
        """The map: (targets, height, width), or (targets, height, width, channels) without a reduction.

        NaN where no value has arrived, or where a partial map has none. The same array all along.
        """
        return self._values

    @property
    def targets(self) -> tuple[Target, ...]:
        """What is explained, in the order of the map's first dimension."""
        return self._targets

    @property
    def model(self) -> str:
        """The name of the model that answered."""
        return self._plan.model_name

    @property
    def model_version(self) -> int:
        """The version that computed all of the map."""
        return self._plan.model_version

    @property
    def method(self) -> Method:
        """The method with the parameters that were really used."""
        return self._method

    @property
    def image(self) -> pb.Image:
        """The image as it was sent."""
        if not isinstance(self._image, pb.Image):
            self._image = self._image()
        return self._image

    @property
    def plan(self) -> pb.Plan:
        """Everything the server announced before it began."""
        return self._plan

    @property
    def summary(self) -> pb.Summary | None:
        """How it went. None until the last message."""
        return self._summary

    @property
    def complete(self) -> bool:
        """Whether the map is whole; False while it grows, and for a map that ended PARTIAL."""
        return self._summary is not None and self._summary.completion == pb.Summary.COMPLETION_COMPLETE

    @property
    def evaluations_done(self) -> int:
        """How many of `plan.evaluations` are done, or skipped because they change nothing."""
        return self._evaluations_done

    @property
    def tiles(self) -> int:
        """How many tiles have arrived."""
        return self._tiles

    @property
    def progress(self) -> float:
        """The part of the announced evaluations that is done, from 0 to 1; 1 exactly where `complete`."""
        if self.complete:
            return 1.0
        return min(1.0, self._evaluations_done / max(1, self._plan.evaluations))

    def overlay(self, target: int = 0) -> "PIL.Image.Image":
        """Draw the map of one target over the image.

        `target` is a position in `targets`. Needs Pillow, which comes with ``vitrail[cli]``.

        Raises:
            IndexError: there is no such target.
            ImportError: Pillow is missing.

        """
        from vitrail.render import overlay

        chosen = self._targets[target]
        return overlay(
            self._values[target],
            self._plan,
            self.image,
            name=str(chosen),
            score=chosen.score,
            progress=self.progress,
        )

    def _repr_png_(self) -> bytes | None:
        try:
            from vitrail.render import png
        except ImportError:
            return None  # the notebook then shows the text below
        return png(self.overlay())

    def __repr__(self) -> str:
        return (
            f"<Explanation of {', '.join(map(str, self._targets))} by {self.model} version "
            f"{self.model_version}: {type(self._method).__name__.lower()}, {self.progress:.0%} done>"
        )

    def paste(self, tile: pb.Tile) -> None:
        """Write the values of `tile` over what was there.

        Raises:
            Internal: the tile does not fit the map.

        """
        targets, height, width, *channels = self._values.shape
        if not (
            0 < tile.target_count <= targets - tile.first_target
            and 0 < tile.height <= height - tile.row
            and 0 < tile.width <= width - tile.column
        ):
            raise Internal(
                f"the server sent a tile of {tile.target_count} targets from {tile.first_target} on, "
                f"{tile.height} rows from {tile.row} and {tile.width} columns from {tile.column}, which does "
                f"not fit its map of shape {list(self._values.shape)}"
            )
        shape = (tile.target_count, tile.height, tile.width, *channels)
        values = tile.values  # once: every look at it copies it
        if len(values) != 4 * math.prod(shape):
            raise Internal(
                f"the server sent a tile of shape {list(shape)} with {len(values)} bytes; it needs "
                f"{4 * math.prod(shape)}"
            )
        self._values[
            tile.first_target : tile.first_target + tile.target_count,
            tile.row : tile.row + tile.height,
            tile.column : tile.column + tile.width,
        ] = np.frombuffer(values, "<f4").reshape(shape)
        self._evaluations_done = max(self._evaluations_done, tile.evaluations_done)
        self._tiles += 1

    def finish(self, summary: pb.Summary) -> None:
        """Take in the last message."""
        self._summary = summary
        self._evaluations_done = summary.evaluations.done + summary.evaluations.skipped


def receive(
    explanation: Explanation | None,
    event: pb.ExplainTilesResponse | pb.ExplainStreamResponse,
    image: pb.Image | Callable[[], pb.Image],
) -> Explanation:
    """Return the explanation after one more message: a new one for a plan, else the same one.

    `explanation` is what the messages before gave, None before the first; `image` is the one explained,
    or returns it.

    Raises:
        Internal: the message has no place here.

    """
    kind = event.WhichOneof("event")
    if explanation is None:
        if kind == "plan":
            return Explanation(event.plan, image)
        raise Internal(f"the server sent {_named(kind)} before the plan")
    if explanation.summary is not None:
        raise Internal(f"the server sent {_named(kind)} after the summary")
    if kind == "tile":
        explanation.paste(event.tile)
    elif kind == "summary":
        explanation.finish(event.summary)
    else:
        raise Internal(f"the server sent {_named(kind)} between the plan and the summary")
    return explanation


def ended(explanation: Explanation | None) -> None:
    """Check that a stream which has ended was whole.

    Raises:
        Internal: the summary is missing.

    """
    if explanation is None or explanation.summary is None:
        raise Internal("the server ended the stream without a summary")


def _named(kind: str | None) -> str:
    return f"a {kind}" if kind else "a message that this client does not know"


def _method_of(plan: pb.Plan) -> Method:
    kind = plan.WhichOneof("method")
    if kind is None:
        raise Internal("the server announced a method that this client does not know")
    try:
        return from_message(plan.gradient if kind == "gradient" else plan.occlusion)
    except InvalidArgument as error:
        raise Internal(f"the server announced a method that this client does not know: {error}") from None
