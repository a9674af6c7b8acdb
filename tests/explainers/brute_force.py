"""Occlusion by the definition, one window and one pixel after the other; nothing of the server is used."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Window = tuple[int, int, int, int]
"""top, left, bottom, right; the ends exclusive."""


def starts(size: int, patch: int, stride: int, edge: Literal["CLIP", "SHIFT"]) -> list[tuple[int, int]]:
    """Return start and end of every window along an axis."""
    count = math.ceil((size - patch) / stride) + 1
    if edge == "CLIP":
        return [(i * stride, min(i * stride + patch, size)) for i in range(count)]
    return [(min(i * stride, size - patch), min(i * stride, size - patch) + patch) for i in range(count)]


def grid(
    size: tuple[int, int], patch: tuple[int, int], stride: tuple[int, int], edge: Literal["CLIP", "SHIFT"]
) -> list[list[Window]]:
    """Return the windows of an image, row by row."""
    return [
        [(top, left, bottom, right) for left, right in starts(size[1], patch[1], stride[1], edge)]
        for top, bottom in starts(size[0], patch[0], stride[0], edge)
    ]


def score(objective: str, outputs: Floats, target: int, value: float) -> float:
    """Return the objective of one target."""
    y = float(np.float32(outputs[target]))
    return {
        "OUTPUT": lambda: y,
        "SQUARED_ERROR": lambda: (y - value) ** 2,
        "CROSS_ENTROPY": lambda: -math.log(y),
    }[objective]()


def window_scores(
    predict: Callable[[Floats], Floats],
    image: Floats,
    fill: Floats,
    windows: Sequence[Sequence[Window]],
    targets: Sequence[int],
    values: Sequence[float],
    objective: str,
    *,
    absolute: bool,
) -> Floats:
    """Return (targets, window rows, window columns)."""
    clean = predict(image)
    result = np.zeros((len(targets), len(windows), len(windows[0])))
    for i, row in enumerate(windows):
        for j, (top, left, bottom, right) in enumerate(row):
            occluded = image.copy()
            for y in range(top, bottom):
                for x in range(left, right):
                    occluded[y, x] = fill[y, x]
            outputs = predict(occluded)
            for k, (target, value) in enumerate(zip(targets, values, strict=True)):
                before, after = (
                    score(objective, clean, target, value),
                    score(objective, outputs, target, value),
                )
                hurt = before - after if objective == "OUTPUT" else after - before
                result[k, i, j] = abs(hurt) if absolute else hurt
    return result


def covering(windows: Sequence[Sequence[Window]], y: int, x: int) -> list[tuple[int, int]]:
    """Return the grid positions of the windows that cover a pixel."""
    return [
        (i, j)
        for i, row in enumerate(windows)
        for j, (top, left, bottom, right) in enumerate(row)
        if top <= y < bottom and left <= x < right
    ]


@dataclass(frozen=True)
class State:
    """What a client should see: values, where it has any, and what will not change."""

    values: Floats
    known: NDArray[np.bool_]
    final: NDArray[np.bool_]


def pixel_map(
    size: tuple[int, int],
    windows: Sequence[Sequence[Window]],
    scores: Floats,
    evaluated: NDArray[np.bool_] | None = None,
    *,
    progressive: bool = False,
) -> State:
    """Return the map of the windows that are evaluated (all, if None)."""
    if evaluated is None:
        evaluated = np.ones(scores.shape[1:], np.bool_)
    state = State(np.full((len(scores), *size), np.nan), np.zeros(size, np.bool_), np.zeros(size, np.bool_))
    for y in range(size[0]):
        for x in range(size[1]):
            cover = covering(windows, y, x)
            done = [place for place in cover if evaluated[place]]
            if not done and progressive:
                rows, columns = [i for i, _ in cover], [j for _, j in cover]
                middle = ((min(rows) + max(rows)) // 2, (min(columns) + max(columns)) // 2)
                done = stand_in(middle, evaluated)
            for k in range(len(scores) if done else 0):
                state.values[k, y, x] = sum(float(np.float32(scores[k][place])) for place in done) / len(done)
            state.known[y, x] = bool(done)
            state.final[y, x] = all(evaluated[place] for place in cover)
    return state


def stand_in(window: tuple[int, int], evaluated: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Return the nearest evaluated multiple of a step above and to the left, if there is one."""
    step = 2
    while step <= max(evaluated.shape) / 3:
        coarse = (window[0] - window[0] % step, window[1] - window[1] % step)
        if evaluated[coarse]:
            return [coarse]
        step *= 2
    return []


def blurred(image: Floats, sigma: float) -> Floats:
    """Return the image convolved in two dimensions with a Gaussian cut at 4 sigma, borders mirrored."""
    reach = max(1, round(4 * sigma))
    height, width, channels = image.shape
    result = np.zeros(image.shape)
    for y in range(height):
        for x in range(width):
            total = np.zeros(channels)
            mass = 0.0
            for dy in range(-reach, reach + 1):
                for dx in range(-reach, reach + 1):
                    weight = math.exp(-(dy * dy + dx * dx) / (2 * sigma * sigma))
                    total += weight * image[mirrored(y + dy, height), mirrored(x + dx, width)]
                    mass += weight
            result[y, x] = total / mass
    return result


def mirrored(position: int, size: int) -> int:
    """Return the pixel that stands at a position outside: ... 1 0 | 0 1 .. n-1 | n-1 n-2 ..."""
    while not 0 <= position < size:
        position = -1 - position if position < 0 else 2 * size - 1 - position
    return position
