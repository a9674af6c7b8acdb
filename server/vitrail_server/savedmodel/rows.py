"""Builds the padded batch that a program feeds to the model, on the host, in arrays that are reused.

A hidden window is written into a copy of the image, never expressed as a mask: 0.1 ms for a 224 x 224
image, and less where a slot keeps its image, because then only the window that was hidden before is put
back. Pure NumPy; used on the device's thread only.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vitrail_server.work import Subject

Arrays = Mapping[str, NDArray[np.generic]]
"""One array per input of the model, by name; the first axis is the batch."""

Window = tuple[int, int, int, int]
"""top, left, bottom, right; the ends exclusive."""

NOTHING_HIDDEN: Window = (0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class InputLayout:
    """One row of one input: shape without the batch dimension, and type."""

    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]


@dataclass(frozen=True, slots=True)
class RowLayout:
    """What one row of a batch consists of: the image, (height, width, channels), and the other inputs."""

    image_input: str
    image: InputLayout
    others: Mapping[str, InputLayout]

    @property
    def nbytes(self) -> int:
        """The bytes of one row."""
        inputs = [self.image, *self.others.values()]
        return sum(int(np.prod(each.shape)) * each.dtype.itemsize for each in inputs)


class RowBuffer:
    """A batch of `size` rows, assembled in place."""

    def __init__(self, layout: RowLayout, size: int) -> None:
        self.size = size
        self.layout = layout
        self._images = np.zeros((size, *layout.image.shape), layout.image.dtype)
        self._others = {
            name: np.zeros((size, *each.shape), each.dtype) for name, each in layout.others.items()
        }
        self._arrays: Arrays = {layout.image_input: self._images, **self._others}
        self._slots: list[tuple[Subject, Window] | None] = [None] * size

    def fill(self, rows: Iterable[tuple[Subject, Window]]) -> Arrays:
        """Write the rows, repeat the last one to the end of the batch, and return the arrays.

        The arrays are written again by the next call. At least one row and at most `size` rows.
        """
        filled = 0
        subject, window = None, NOTHING_HIDDEN
        for filled, (subject, window) in enumerate(rows, 1):
            self._write(filled - 1, subject, window)
        if subject is None:
            raise ValueError("a batch needs at least one row")
        for slot in range(filled, self.size):
            self._write(slot, subject, window)
        return self._arrays

    def _write(self, slot: int, subject: Subject, window: Window) -> None:
        image = self._images[slot]
        held = self._slots[slot]
        if held is not None and held[0] is subject:
            top, left, bottom, right = held[1]
            image[top:bottom, left:right] = subject.image[top:bottom, left:right]
        else:
            image[...] = subject.image
            for name, array in self._others.items():
                array[slot] = subject.inputs[name]
        self._slots[slot] = (subject, window)
        top, left, bottom, right = window
        if top < bottom and left < right:
            fill = np.broadcast_to(_fill_of(subject), image.shape)
            image[top:bottom, left:right] = fill[top:bottom, left:right]


def _fill_of(subject: Subject) -> NDArray[np.generic]:
    if subject.fill is None:
        raise ValueError("a window is hidden, but the subject has no fill")
    return subject.fill
