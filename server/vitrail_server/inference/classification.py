"""Triton's classification extension: an output as its highest elements, each `value:index[:label]`."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def classified(
    output: NDArray[np.generic], count: int, labels: Sequence[str], *, batched: bool
) -> NDArray[np.generic]:
    """Return the `count` highest elements of every row as BYTES (rows, count), highest first.

    Ties go to the lower index. Without a batch dimension the whole output is one row, and so is the result.
    """
    rows = output.reshape(len(output), -1) if batched else output.reshape(1, -1)
    count = min(count, rows.shape[1])
    texts = np.empty((len(rows), count), object)
    for place, row in enumerate(rows):
        values = row.astype(np.float64) if row.dtype.kind not in "iu" else row
        highest = _highest(values, count)
        texts[place] = [_text(row[index], int(index), labels) for index in highest]
    return texts if batched else texts[0]


def _highest(values: NDArray[np.generic], count: int) -> NDArray[np.intp]:
    # Reversed twice, so that a stable sort puts the lower index first among equals; NaN sorts last.
    order = np.argsort(values[::-1], kind="stable")[::-1]
    order = len(values) - 1 - order
    missing = np.isnan(values[order]) if values.dtype.kind == "f" else np.zeros(len(order), np.bool_)
    return np.concatenate([order[~missing], order[missing]])[:count]


def _text(value: np.generic, index: int, labels: Sequence[str]) -> bytes:
    shown = f"{int(value)}" if value.dtype.kind in "iub" else f"{float(value):f}"
    label = f":{labels[index]}" if index < len(labels) else ""
    return f"{shown}:{index}{label}".encode()
