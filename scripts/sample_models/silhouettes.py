"""Drawings of standing figures whose waist is known: training data, test data and the demo's picture.

A figure is white (1) on black (0), 224 by 224 pixels, seen from the front at a fixed distance: one
pixel is one centimetre. All measures of a body are drawn independently of each other, so the width
of the waist can be read at the waist and nowhere else. That makes the right explanation known: each
drawing comes with the masks of its parts. Pure numpy.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import cos, radians, sin
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

SIZE = 224
"""Height and width of a drawing in pixels, which are centimetres."""

WAIST_REACH = 10
"""The part `waist` is the torso up to this many pixels above and below the height of the waist."""

Mask: TypeAlias = NDArray[np.bool_]
Coordinates: TypeAlias = NDArray[np.float64]
Joint: TypeAlias = tuple[float, float, float]
"""Across, up and the radius of the limb around it."""


@dataclass(frozen=True, slots=True)
class Silhouette:
    """A drawn figure with what is known about it."""

    image: NDArray[np.float32]
    """[SIZE, SIZE, 1], 1 on the body and 0 beside it: the model's own units."""

    waist_width: float
    """The target, in centimetres."""

    parts: Mapping[str, Mask]
    """[SIZE, SIZE] each: head, torso, arms and legs, which make up the body; waist, a band of the torso."""


@dataclass(frozen=True, slots=True)
class Body:
    """The measures of a figure, in centimetres and degrees."""

    height: float
    head_length: float
    shoulder_width: float
    chest_width: float
    waist_width: float
    hip_width: float
    waist_level: float
    """Where the waist is between the shoulders (0) and the crotch (1)."""
    limb_width: float
    arm_angles: tuple[float, float]
    """Of the left and right upper arm, from hanging straight down (0) to horizontal (90)."""
    elbow_angles: tuple[float, float]
    """How far each forearm turns further outwards."""
    leg_angles: tuple[float, float]
    lean: float
    """Of the whole figure, clockwise."""
    centre: float
    """Column of the pelvis."""
    ground: float
    """Row of the soles."""


DEMO_BODY = Body(
    height=184,
    head_length=24,
    shoulder_width=46,
    chest_width=38,
    waist_width=32,
    hip_width=39,
    waist_level=0.56,
    limb_width=1.1,
    arm_angles=(34, 38),
    elbow_angles=(4, 8),
    leg_angles=(5, 6),
    lean=0,
    centre=112,
    ground=205,
)
"""The figure of examples/photos/silhouette.png."""


def draw(rng: np.random.Generator) -> Silhouette:
    """Return a random figure; the same state of the generator gives the same figure."""
    return render(random_body(rng))


def random_body(rng: np.random.Generator) -> Body:
    """Return random measures, independent of each other save that the figure fits into the picture."""
    height = rng.uniform(150, 195)
    return Body(
        height=height,
        head_length=rng.uniform(20, 27),
        shoulder_width=rng.uniform(40, 50),
        chest_width=rng.uniform(28, 40),
        waist_width=rng.uniform(22, 42),
        hip_width=rng.uniform(30, 42),
        waist_level=rng.uniform(0.5, 0.62),
        limb_width=rng.uniform(0.8, 1.2),
        arm_angles=(rng.uniform(28, 75), rng.uniform(28, 75)),
        elbow_angles=(rng.uniform(-10, 30), rng.uniform(-10, 30)),
        leg_angles=(rng.uniform(0, 14), rng.uniform(0, 14)),
        lean=rng.uniform(-4, 4),
        centre=SIZE / 2 + rng.uniform(-22, 22),
        ground=rng.uniform(height + 8, SIZE - 6),
    )


def render(body: Body) -> Silhouette:
    """Draw a figure of these measures."""
    figure = _Figure(body)
    parts = {"head": figure.head(), "torso": figure.torso(), "arms": figure.arms(), "legs": figure.legs()}
    image = np.any(list(parts.values()), axis=0).astype(np.float32)[..., None]
    return Silhouette(image, body.waist_width, {**parts, "waist": parts["torso"] & figure.waist_band()})


class _Figure:
    """Places the joints of a body in the picture and paints its parts.

    Body coordinates are (across, up) from the pelvis, in pixels, before the lean.
    """

    def __init__(self, body: Body) -> None:
        self.body = body
        self.leg_length = 0.47 * body.height
        self.neck_length = 0.035 * body.height
        self.torso_length = body.height - self.leg_length - body.head_length - self.neck_length
        self.lean = cos(radians(body.lean)), sin(radians(body.lean))
        self.pelvis = body.centre, body.ground - self.leg_length

    def _coordinates(self, rows: slice, columns: slice) -> tuple[Coordinates, Coordinates]:
        """Return (across, up) of the centres of these pixels."""
        right = np.arange(columns.start, columns.stop)[None, :] + 0.5 - self.pelvis[0]
        down = np.arange(rows.start, rows.stop)[:, None] + 0.5 - self.pelvis[1]
        cosine, sine = self.lean
        return right * cosine + down * sine, right * sine - down * cosine

    def head(self) -> Mask:
        half = self.body.head_length / 2
        centre = self.torso_length + self.neck_length + half
        mask = self._limb([(0, centre, 5), (0, self.torso_length - 2, 6)])
        box = self._box((0, centre, half))
        across, up = self._coordinates(*box)
        mask[box] |= (across / (0.76 * half)) ** 2 + ((up - centre) / half) ** 2 <= 1
        return mask

    def torso(self) -> Mask:
        """Paint an outline that runs smoothly through the widths from the neck to the crotch."""
        body = self.body
        levels = (-0.08, 0.07, 0.28, body.waist_level, 0.9, 1.04)
        widths = (
            0.3 * body.shoulder_width,
            body.shoulder_width,
            body.chest_width,
            body.waist_width,
            body.hip_width,
            0.8 * body.hip_width,
        )
        mask = np.zeros((SIZE, SIZE), np.bool_)
        box = self._box((0, -5, max(widths)), (0, self.torso_length + 5, max(widths)))
        across, up = self._coordinates(*box)
        level = 1 - up / self.torso_length
        width = _smooth(level, levels, widths)
        mask[box] = (np.abs(across) <= width / 2) & (level >= levels[0]) & (level <= levels[-1])
        return mask

    def waist_band(self) -> Mask:
        """Return the rows of the waist across the whole picture."""
        _across, up = self._coordinates(slice(0, SIZE), slice(0, SIZE))
        height = (1 - self.body.waist_level) * self.torso_length
        return np.abs(up - height) <= WAIST_REACH

    def arms(self) -> Mask:
        body, thick = self.body, self.body.limb_width
        length = 0.17 * body.height
        arms = np.zeros((SIZE, SIZE), np.bool_)
        for side, angle, elbow_angle in zip((-1, 1), body.arm_angles, body.elbow_angles, strict=True):
            shoulder = np.array([side * (body.shoulder_width / 2 - 5), self.torso_length - 6])
            elbow = shoulder + length * _downwards(side, angle)
            forearm = _downwards(side, angle + elbow_angle)
            wrist = elbow + 0.95 * length * forearm
            joints = ((shoulder, 5.5), (elbow, 4.2), (wrist, 3), (wrist + 7 * forearm, 3))
            arms |= self._limb([(*joint, radius * thick) for joint, radius in joints])
        return arms

    def legs(self) -> Mask:
        body, thick = self.body, self.body.limb_width
        legs = np.zeros((SIZE, SIZE), np.bool_)
        for side, angle in zip((-1, 1), body.leg_angles, strict=True):
            hip = np.array([side * body.hip_width / 4, 0.0])
            knee = hip + 0.5 * self.leg_length * _downwards(side, angle)
            ankle = hip + 0.96 * self.leg_length * _downwards(side, angle)
            toes = ankle + np.array([side * 5.0, -1.0])
            legs |= self._limb(
                [(*hip, body.hip_width / 4), (*knee, 5.5 * thick), (*ankle, 3.4 * thick), (*toes, 3)]
            )
        return legs

    def _limb(self, joints: Sequence[Joint]) -> Mask:
        """Paint what lies within the radius of a chain of joints; it changes evenly from joint to joint."""
        mask = np.zeros((SIZE, SIZE), np.bool_)
        for start, end in pairwise(joints):
            box = self._box(start, end)
            across, up = self._coordinates(*box)
            x, y, radius = (last - first for first, last in zip(start, end, strict=True))
            right, above = across - start[0], up - start[1]
            along = np.clip((right * x + above * y) / (x * x + y * y), 0, 1)
            mask[box] |= np.hypot(right - along * x, above - along * y) <= start[2] + along * radius
        return mask

    def _box(self, *joints: Joint) -> tuple[slice, slice]:
        """Return the rows and columns that hold all that is near these joints, so that little is computed."""
        cosine, sine = self.lean
        rows = [self.pelvis[1] + across * sine - up * cosine for across, up, _ in joints]
        columns = [self.pelvis[0] + across * cosine + up * sine for across, up, _ in joints]
        reach = max(radius for *_, radius in joints)
        box = [
            slice(max(int(min(ends) - reach), 0), max(min(int(max(ends) + reach) + 1, SIZE), 0))
            for ends in (rows, columns)
        ]
        return box[0], box[1]


def _downwards(side: int, angle: float) -> Coordinates:
    """Return the unit vector (across, up) that points down, turned outwards by an angle in degrees."""
    return np.array([side * sin(radians(angle)), -cos(radians(angle))])


def _smooth(x: Coordinates, knots: Sequence[float], values: Sequence[float]) -> NDArray[np.float64]:
    """Interpolate with half cosine waves: no slope at a knot, so that its value is held nearby."""
    position = np.interp(x, knots, range(len(knots)))
    below = np.floor(position)
    eased = below + (1 - np.cos(np.pi * (position - below))) / 2
    return np.interp(eased, range(len(knots)), values)
