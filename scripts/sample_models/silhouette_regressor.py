"""A small CNN that reads the width of the waist, in centimetres, from a silhouette.

It is trained on the drawings of `silhouettes`, where nothing but the waist tells its width, so a good
explanation must land on the waist. Gray rectangles are painted over the rest of the training figures:
the network learns that they mean nothing, and so an occlusion map shows little beside the waist.
Training is seeded and takes one to three minutes on one core.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from sample_models.savedmodel import Predict, publish
from sample_models.silhouettes import SIZE, Silhouette, draw

FIGURES = 6000
BATCH = 32
LEARNING_RATE = 2e-3
WARMUP_STEPS = 100

POOL = 2
"""The network first halves the picture, and is trained on halved drawings."""

COVERED_SHARE = 0.7
"""Of the training figures, how many get gray rectangles."""

MOST_RECTANGLES = 4
RECTANGLE_SIDES = (2, 30)
CLEAR_ROWS, CLEAR_COLUMNS = 2, 5
"""What stays uncovered around the waist. These and the sides are pixels of a halved drawing."""


@dataclass(frozen=True, slots=True)
class Training:
    """What differs between the versions."""

    seed: int
    epochs: int


VERSIONS = {"1": Training(seed=1, epochs=4), "2": Training(seed=2, epochs=6)}


def build(version: Path) -> None:
    """Train the version of this directory's name and write it there."""
    publish(version, train(VERSIONS[version.name]), "waist_width", check)


def train(training: Training) -> keras.Model:
    """Return the trained network; the same on every run on the same machine."""
    keras.utils.set_random_seed(training.seed)
    tf.config.experimental.enable_op_determinism()
    rng = np.random.default_rng(training.seed)
    print(f"  drawing {FIGURES} silhouettes")
    figures = [TrainingFigure(draw(rng)) for _ in range(FIGURES)]
    steps = FIGURES // BATCH
    reader = build_reader()
    # A slow start: large first steps can silence the network for good.
    rate = keras.optimizers.schedules.CosineDecay(
        0.0, training.epochs * steps - WARMUP_STEPS, warmup_target=LEARNING_RATE, warmup_steps=WARMUP_STEPS
    )
    reader.compile(optimizer=keras.optimizers.Adam(rate), loss="mse")
    reader.fit(batches(figures, rng), steps_per_epoch=steps, epochs=training.epochs, shuffle=False, verbose=2)
    image = keras.Input((SIZE, SIZE, 1), name="image")
    return keras.Model(image, reader(keras.layers.AveragePooling2D(POOL)(image)), name="silhouette_regressor")


def build_reader() -> keras.Model:
    """Return the untrained network from a halved drawing to one width in centimetres.

    Convolutions find outlines; their sums over the columns say how wide the figure is in each row;
    convolutions along the rows find the waist in that profile, and the maximum keeps only it.
    """
    halved = keras.Input((SIZE // POOL, SIZE // POOL, 1))
    x = keras.layers.Conv2D(12, 5, strides=2, padding="same", activation="relu")(halved)
    x = keras.layers.Conv2D(24, 3, strides=2, padding="same", activation="relu")(x)
    x = keras.layers.Conv2D(32, 3, padding="same", activation="relu")(x)
    # An eighth of the sum is near 1, where training starts well; with the mean it may never start.
    x = keras.layers.Rescaling(1 / 8)(keras.ops.sum(x, axis=2))
    x = keras.layers.Conv1D(48, 5, padding="same", activation="elu")(x)
    x = keras.layers.Conv1D(48, 5, padding="same", activation="elu")(x)
    x = keras.layers.GlobalMaxPooling1D()(x)
    x = keras.layers.Dense(32, activation="elu")(x)
    x = keras.layers.Dense(1)(x)
    # The widths of the drawings are 32 cm, give or take 6.
    return keras.Model(halved, keras.layers.Rescaling(6.0, offset=32.0)(x))


class TrainingFigure:
    """A halved drawing, with the box around its waist that must stay uncovered."""

    def __init__(self, silhouette: Silhouette) -> None:
        half = SIZE // POOL
        self.image: NDArray[np.float32] = silhouette.image.reshape(half, POOL, half, POOL, 1).mean(
            axis=(1, 3)
        )
        self.waist_width = silhouette.waist_width
        rows, columns = (np.flatnonzero(silhouette.parts["waist"].any(axis)) // POOL for axis in (1, 0))
        self.waist = (
            slice(max(rows[0] - CLEAR_ROWS, 0), rows[-1] + 1 + CLEAR_ROWS),
            slice(max(columns[0] - CLEAR_COLUMNS, 0), columns[-1] + 1 + CLEAR_COLUMNS),
        )

    def covered(self, rng: np.random.Generator) -> NDArray[np.float32]:
        """Return the drawing with rectangles of random gray anywhere but around the waist."""
        image = self.image.copy()
        smallest, largest = np.log(RECTANGLE_SIDES)
        for _ in range(rng.integers(1, MOST_RECTANGLES + 1)):
            height, width = np.exp(rng.uniform(smallest, largest, size=2)).astype(int)
            top, left = rng.integers(1 - height, len(image)), rng.integers(1 - width, len(image))
            image[max(top, 0) : top + height, max(left, 0) : left + width] = rng.random()
        image[self.waist] = self.image[self.waist]
        return image


def batches(
    figures: list[TrainingFigure], rng: np.random.Generator
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Yield images and widths without end: all figures in a new order, then again."""
    while True:
        order = rng.permutation(len(figures))
        for start in range(0, len(order) - BATCH + 1, BATCH):
            chosen = [figures[index] for index in order[start : start + BATCH]]
            images = [
                figure.covered(rng) if rng.random() < COVERED_SHARE else figure.image for figure in chosen
            ]
            yield np.stack(images), np.array([[figure.waist_width] for figure in chosen], np.float32)


def check(predict: Predict) -> None:
    """Raise SystemExit unless the network is right to a centimetre on figures it never saw."""
    rng = np.random.default_rng(1000)
    figures = [draw(rng) for _ in range(200)]
    widths = predict(np.stack([figure.image for figure in figures]))[:, 0]
    error = float(np.abs(widths - [figure.waist_width for figure in figures]).mean())
    if not error < 1:
        raise SystemExit(f"the network errs by {error:.2f} cm on average; expected less than 1")
    print(f"  checked: errs by {error:.2f} cm on average over {len(figures)} new silhouettes")
