"""Builds the padded batch of a program where the model computes, for devices with memory of their own.

An image and its fill cross once; after that a batch costs sixteen bytes a row on the way there, and the
outputs on the way back, so there is nothing left to overlap with computing. On a CPU, where nothing crosses,
building rows in NumPy is faster (`rows.RowBuffer`); both give the same bits.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

import numpy as np
import tensorflow as tf

from vitrail_server.savedmodel.rows import RowLayout
from vitrail_server.work import OccludeRows, PredictRows, Rows, Subject

Tensor: TypeAlias = Any
"""A tf.Tensor; TensorFlow carries no types."""


@dataclass(frozen=True, slots=True)
class _Resident:
    """What of a subject is on the device."""

    image: Tensor
    fill: Tensor
    others: Mapping[str, Tensor]
    """Each with a batch dimension of 1."""


class ResidentRows:
    """Builds batches on the device of the calling thread: a `programs.RowSource`."""

    def __init__(self) -> None:
        self._residents: WeakKeyDictionary[Subject, _Resident] = WeakKeyDictionary()

    def __call__(self, layout: RowLayout, size: int, parts: Sequence[Rows]) -> dict[str, Tensor]:
        """Return one tensor per input of the model, the last row repeated to the end of the batch."""
        built = [self._built(layout, part) for part in parts]
        return {
            name: _padded(tf.concat([each[name] for each in built], 0), size)
            for name in (layout.image_input, *layout.others)
        }

    def _built(self, layout: RowLayout, part: Rows) -> dict[str, Tensor]:
        match part:
            case OccludeRows():
                resident = self._resident(layout, part.subject)
                images = _hidden(resident.image, resident.fill, tf.constant(part.windows))
                others = {name: tf.repeat(each, len(part), 0) for name, each in resident.others.items()}
                return {layout.image_input: images, **others}
            case PredictRows():
                names = (layout.image_input, *layout.others)
                return {name: tf.constant(part.inputs[name]) for name in names}
            case _:
                raise TypeError("a forward program takes OccludeRows and PredictRows")

    def _resident(self, layout: RowLayout, subject: Subject) -> _Resident:
        if subject not in self._residents:
            image = tf.constant(subject.image)
            # Without a fill nothing is hidden, so any will do.
            fill = image if subject.fill is None else np.broadcast_to(subject.fill, subject.image.shape)
            others = {name: tf.constant(subject.inputs[name])[None] for name in layout.others}
            self._residents[subject] = _Resident(image, tf.constant(fill), others)
        return self._residents[subject]


@tf.function(autograph=False, reduce_retracing=True)  # type: ignore[untyped-decorator]  # TensorFlow's
def _hidden(image: Tensor, fill: Tensor, windows: Tensor) -> Tensor:
    """Return (n, height, width, channels): the image with each of the windows (n, 4) showing the fill."""
    top, left, bottom, right = (windows[:, edge, None] for edge in range(4))
    row, column = tf.range(tf.shape(image)[0])[None], tf.range(tf.shape(image)[1])[None]
    rows, columns = (row >= top) & (row < bottom), (column >= left) & (column < right)
    return tf.where((rows[:, :, None] & columns[:, None, :])[..., None], fill, image)


def _padded(rows: Tensor, size: int) -> Tensor:
    return tf.concat([rows, tf.repeat(rows[-1:], size - rows.shape[0], 0)], 0)
