"""Closed-form image models in NumPy: outputs and derivatives by formula, one image at a time.

Every row is computed alone, so its bits do not depend on its company in a batch, as a fixed padded
shape guarantees on a real device.
"""

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Shape = tuple[int, int, int]


class Model(Protocol):
    """A function of an image (h, w, c) with `elements` outputs."""

    shape: Shape
    elements: int

    def outputs(self, image: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return (elements,)."""

    def derivatives(self, image: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return (elements, h, w, c)."""


class Linear:
    """y_k = sum of w_k x, plus b_k."""

    def __init__(self, weights: NDArray[np.float64], bias: NDArray[np.float64] | None = None) -> None:
        self.weights = weights
        self.bias = np.zeros(len(weights)) if bias is None else bias
        self.shape: Shape = (weights.shape[1], weights.shape[2], weights.shape[3])
        self.elements = len(weights)

    def outputs(self, image: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray((self.weights * image).sum((1, 2, 3)) + self.bias)

    def derivatives(self, image: NDArray[np.float64]) -> NDArray[np.float64]:
        return self.weights


class Quadratic:
    """y_k = sum of a_k x^2."""

    def __init__(self, weights: NDArray[np.float64]) -> None:
        self.weights = weights
        self.shape: Shape = (weights.shape[1], weights.shape[2], weights.shape[3])
        self.elements = len(weights)

    def outputs(self, image: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray((self.weights * image**2).sum((1, 2, 3)))

    def derivatives(self, image: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(2 * self.weights * image)


class Softmax:
    """The softmax of a linear model: every pixel's influence depends on all the others."""

    def __init__(self, weights: NDArray[np.float64]) -> None:
        self.logits = Linear(weights)
        self.shape = self.logits.shape
        self.elements = self.logits.elements

    def outputs(self, image: NDArray[np.float64]) -> NDArray[np.float64]:
        logits = self.logits.outputs(image)
        powers = np.exp(logits - logits.max())
        return np.asarray(powers / powers.sum())

    def derivatives(self, image: NDArray[np.float64]) -> NDArray[np.float64]:
        p = self.outputs(image)
        jacobian = np.diag(p) - np.outer(p, p)
        return np.tensordot(jacobian, self.logits.weights, 1)


class Rule:
    """Answers whatever a test's function says, finite or not; its derivative is 0."""

    def __init__(
        self, shape: Shape, elements: int, answer: Callable[[NDArray[np.float64]], list[float]]
    ) -> None:
        self.shape = shape
        self.elements = elements
        self._answer = answer

    def outputs(self, image: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.array(self._answer(image))

    def derivatives(self, image: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.zeros((self.elements, *self.shape))


def weights(seed: int, elements: int, shape: Shape) -> NDArray[np.float64]:
    """Return (elements, h, w, c) between -1 and 1."""
    return np.random.default_rng(seed).uniform(-1, 1, (elements, *shape))


def picture(seed: int, shape: Shape) -> NDArray[np.float32]:
    """Return an image (h, w, c) between 0 and 1."""
    return np.random.default_rng(seed).uniform(0, 1, shape).astype(np.float32)
