"""The values whose changes are explained, as NumPy: one formula per objective.

The gradient program forms the derivatives of the same formulas in its graph (savedmodel/functions.py).
"""

import numpy as np
from numpy.typing import NDArray

from vitrail_server.work import Objective

LOSSES = frozenset({Objective.SQUARED_ERROR, Objective.CROSS_ENTROPY})
"""The objectives that grow when the model does worse."""


def score(
    objective: Objective,
    outputs: NDArray[np.float32],
    targets: NDArray[np.int32],
    values: NDArray[np.float32],
) -> NDArray[np.float64]:
    """Return (n, targets): the objective of each row of `outputs` (n, elements) for each target.

    `values` (targets,) are the true values for SQUARED_ERROR. Computed in float64, because maps are
    differences of scores that are nearly equal.
    """
    chosen = outputs[:, targets].astype(np.float64)
    match objective:
        case Objective.OUTPUT:
            return chosen
        case Objective.SQUARED_ERROR:
            return np.square(chosen - values.astype(np.float64))
        case Objective.CROSS_ENTROPY:
            # A probability that underflowed to 0 gives a large finite loss, not infinity.
            return -np.log(np.maximum(chosen, float(np.finfo(np.float32).tiny)))


def window_scores(
    objective: Objective,
    clean: NDArray[np.float64],
    occluded: NDArray[np.float64],
    *,
    absolute: bool,
) -> NDArray[np.float32]:
    """Return (n, targets): how much hiding each window hurts.

    `clean` (targets,) is the objective of the whole image, `occluded` (n, targets) that of the images
    with a window hidden. Positive means that hiding hurts: clean - occluded for a score, occluded -
    clean for a loss. `absolute` takes the absolute value.
    """
    with np.errstate(invalid="ignore", over="ignore"):  # what is not finite passes through, and is counted
        signed = occluded - clean if objective in LOSSES else clean - occluded
        return (np.abs(signed) if absolute else signed).astype(np.float32)
