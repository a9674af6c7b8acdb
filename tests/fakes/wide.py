"""A model without weights, for images and outputs too large to write formulas for."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fakes.models import Shape


@dataclass
class Plain:
    """y_k = k, whatever the image; the derivative is 1 everywhere, so that its maps are not 0."""

    shape: Shape
    elements: int

    def outputs(self, image: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.arange(self.elements, dtype=np.float64)

    def derivatives(self, image: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.broadcast_to(np.float64(1), (self.elements, *self.shape))
