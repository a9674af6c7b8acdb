"""What a hidden pixel shows: every fill becomes an array that broadcasts to the image."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vitrail.errors import InvalidArgument

MAX_SIGMA = 100.0
"""The widest blur, in pixels."""


@dataclass(frozen=True, slots=True)
class Constant:
    """One value for every channel, or one per channel, in the model's units."""

    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class ImageMean:
    """The mean of the image, per channel."""

    values: tuple[float, ...] = ()
    """The means, in an effective fill; empty in a request."""


@dataclass(frozen=True, slots=True)
class Blur:
    """The image itself, blurred by a Gaussian of this standard deviation in pixels."""

    sigma: float


@dataclass(frozen=True, slots=True, eq=False)
class GivenImage:
    """An image (height, width, channels) of the caller's."""

    image: NDArray[np.generic]


Fill = Constant | ImageMean | Blur | GivenImage

FIELD = "spec.occlusion.fill"


def filled(fill: Fill, image: NDArray[np.generic]) -> tuple[Fill, NDArray[np.generic]]:
    """Return the effective fill, and its values in the image's type that broadcast to `image` (h, w, c).

    Raises:
        InvalidArgument: values that are not finite or do not fit the image, or a blur out of range.

    """
    match fill:
        case Constant(values=values):
            if len(values) not in (1, image.shape[2]):
                raise InvalidArgument(
                    f"{FIELD} has {len(values)} values, but the image has {image.shape[2]} channels: give "
                    "one value, or one per channel",
                    field=f"{FIELD}.channels",
                )
            return fill, _fitting(np.array(values, np.float64), image.dtype)
        case ImageMean():
            mean = image.mean((0, 1), dtype=np.float64)
            return ImageMean(tuple(mean.tolist())), _fitting(mean, image.dtype)
        case Blur(sigma=sigma):
            if not 0 < sigma <= MAX_SIGMA:
                raise InvalidArgument(
                    f"{FIELD}.blur.sigma is {sigma:g}; it must be above 0 and at most {MAX_SIGMA:g} pixels",
                    field=f"{FIELD}.blur.sigma",
                )
            return fill, _fitting(blurred(image, sigma), image.dtype)
        case GivenImage(image=given):
            if given.shape != image.shape:
                raise InvalidArgument(
                    f"{FIELD}.image has the shape {list(given.shape)}, but the image has {list(image.shape)}",
                    field=f"{FIELD}.image",
                )
            return fill, _fitting(given, image.dtype)


def blurred(image: NDArray[np.generic], sigma: float) -> NDArray[np.float64]:
    """Return the image (h, w, c) convolved with a Gaussian of `sigma` pixels, cut at 4 sigma.

    Borders are mirrored with the border pixel repeated (d c b a | a b c d | d c b a).
    """
    radius = max(1, round(4 * sigma))
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    result = image.astype(np.float64)
    for axis in (0, 1):
        padding = [(radius, radius) if each == axis else (0, 0) for each in range(3)]
        padded = np.pad(result, padding, "symmetric")
        size = result.shape[axis]
        result = np.zeros_like(result)
        for offset, weight in enumerate(kernel):
            result += weight * np.take(padded, np.arange(offset, offset + size), axis)
    return result


def _fitting(values: NDArray[np.generic], dtype: np.dtype[np.generic]) -> NDArray[np.generic]:
    """Return `values` in the image's type: rounded for integers, refused out of range."""
    wide = values.astype(np.float64)
    if not np.isfinite(wide).all():
        raise InvalidArgument(f"{FIELD} holds a value that is not finite", field=FIELD)
    if np.issubdtype(dtype, np.integer):
        wide = np.rint(wide)
        lowest, highest = float(np.iinfo(dtype.name).min), float(np.iinfo(dtype.name).max)
    elif np.issubdtype(dtype, np.floating):
        highest = float(np.finfo(dtype.name).max)
        lowest = -highest
    else:
        return values.astype(dtype)
    if wide.min() < lowest or wide.max() > highest:
        raise InvalidArgument(
            f"{FIELD} goes from {wide.min():g} to {wide.max():g}, but the model's image is {dtype.name}, "
            f"from {lowest:g} to {highest:g}",
            field=FIELD,
        )
    return wide.astype(dtype)
