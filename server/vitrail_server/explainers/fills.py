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
    with np.errstate(over="ignore"):  # far out the weight is 0
        kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    rows, columns = (_blurring(size, kernel / kernel.sum()) for size in image.shape[:2])
    return np.asarray(np.einsum("yi,ijc,xj->yxc", rows, image.astype(np.float64), columns, optimize=True))


def _blurring(size: int, kernel: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (size, size): the weight of every pixel (second axis) in every blurred one, along an axis."""
    sources = np.pad(np.arange(size), len(kernel) // 2, "symmetric")
    weights = np.zeros((size, size))
    pixels = np.arange(size)
    for offset, weight in enumerate(kernel):
        weights[pixels, sources[offset : offset + size]] += weight
    return weights


def _fitting(values: NDArray[np.generic], dtype: np.dtype[np.generic]) -> NDArray[np.generic]:
    """Return `values` in the image's type: rounded for integers, refused out of range."""
    wide = values.astype(np.float64)
    if not np.isfinite(wide).all():
        raise InvalidArgument(f"{FIELD} holds a value that is not finite", field=FIELD)
    if values.dtype == dtype or dtype == np.bool_:
        return values.astype(dtype)
    lowest: float
    highest: float
    if np.issubdtype(dtype, np.integer):
        wide = np.rint(wide)
        lowest, highest = np.iinfo(dtype.name).min, np.iinfo(dtype.name).max
    else:
        lowest, highest = float(np.finfo(dtype.name).min), float(np.finfo(dtype.name).max)
    # In Python's numbers, which compare exactly: the ends of 64-bit integers are no floats.
    low, high = float(wide.min()), float(wide.max())
    if low < lowest or high > highest:
        raise InvalidArgument(
            f"{FIELD} goes from {low:g} to {high:g}, but the model's image is {dtype.name}, "
            f"from {lowest:g} to {highest:g}",
            field=FIELD,
        )
    return wide.astype(dtype)
