"""The model `saved_models.convolutional` again, in NumPy and float64, and occluded images by the book."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from saved_models import KERNELS

Doubles = NDArray[np.float64]


def logits(image: Doubles) -> Doubles:
    """Return (4,) for one image (height, width, 3)."""
    first, second, head = (kernel.astype(np.float64) for kernel in KERNELS)
    features = softplus(convolved(image, first))
    height, width, channels = features.shape
    pooled = features[: height // 2 * 2, : width // 2 * 2].reshape(height // 2, 2, width // 2, 2, channels)
    return np.asarray(softplus(convolved(pooled.mean((1, 3)), second)).mean((0, 1)) @ head)


def probabilities(image: Doubles) -> Doubles:
    """Return (4,) for one image."""
    powers = np.exp(logits(image))
    return np.asarray(powers / powers.sum())


def convolved(image: Doubles, kernel: Doubles) -> Doubles:
    """Return the convolution with a 3x3 kernel and zeros around the image."""
    padded = np.pad(image, ((1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (0, 1))
    return np.asarray(np.einsum("hwcij,ijck->hwk", windows, kernel))


def softplus(values: Doubles) -> Doubles:
    return np.logaddexp(values, 0)


def differences(
    function: Callable[[Doubles], Doubles], image: Doubles, pixel: Sequence[int], step: float = 1e-5
) -> Doubles:
    """Return the central difference of a function of the image by one pixel."""
    up, down = image.copy(), image.copy()
    up[tuple(pixel)] += step
    down[tuple(pixel)] -= step
    return np.asarray((function(up) - function(down)) / (2 * step))


def occluded(
    image: NDArray[np.generic], window: Sequence[int], fill: NDArray[np.generic]
) -> NDArray[np.generic]:
    """Return a copy of the image with the window hidden, pixel by pixel."""
    top, left, bottom, right = window
    hidden = image.copy()
    whole_fill = np.broadcast_to(fill, image.shape)
    for row in range(top, bottom):
        for column in range(left, right):
            hidden[row, column] = whole_fill[row, column]
    return hidden
