"""Encoded images: decoded, resized and scaled as the model's configuration says."""

import io
import struct
import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.Image import Transpose

from vitrail.errors import FailedPrecondition, InvalidArgument, ResourceExhausted
from vitrail_server.servable import Description

FIELD = "spec.image.encoded"
FORMATS = ("JPEG", "PNG")
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""Pillow's mode for each number of channels that an encoded image can have."""

MAX_SIDE = 65535
"""The most pixels along a side: what a JPEG can have."""

START_OF_SCAN = b"\xff\xda"
MAX_SCANS = 100
"""The most scans of a JPEG, each of which goes over the whole image; a progressive one has about ten."""

ORIENTATIONS = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
"""What brings an image upright, by its orientation tag (Exif 2.3, section 4.6.4); 1 is upright."""

DAMAGE = (
    ArithmeticError,
    EOFError,
    LookupError,
    OSError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)
"""What Pillow's readers raise for files that are not what they seem to be."""


@dataclass(frozen=True, slots=True)
class SourceBox:
    """A rectangle of the image as it was given, in its pixels; its sides may fall between pixels."""

    top: float
    left: float
    height: float
    width: float


def decode(
    encoded: bytes, description: Description, max_pixels: int
) -> tuple[NDArray[np.generic], SourceBox]:
    """Return the image (height, width, channels) in the model's units and type, and what it shows.

    The size is read and checked before any pixel is decoded. An orientation tag is applied. Where the
    model serves several sizes, the first one is used.

    Raises:
        InvalidArgument: not a JPEG or PNG, or a damaged one.
        ResourceExhausted: more than `max_pixels` pixels.
        FailedPrecondition: the model's image is not one that a JPEG or PNG can hold.

    """
    mode = MODES.get(description.channels)
    if mode is None:
        raise FailedPrecondition(
            f"the model's image has {description.channels} channels, which no JPEG or PNG has: send "
            "spec.image.tensor",
            field=FIELD,
        )
    try:
        picture = _upright(_opened(encoded, max_pixels))
        grey16 = picture.mode.startswith("I")
        picture = picture.convert("F" if grey16 else mode)
    except DAMAGE as error:
        raise InvalidArgument(
            f"{FIELD} is damaged: {str(error).partition(chr(10))[0][:200]}", field=FIELD
        ) from error

    size = description.image_sizes[0]
    box = source_box(
        picture.height, picture.width, size, crop=description.settings.image_resize == "CENTER_CROP"
    )
    corners = (box.left, box.top, box.left + box.width, box.top + box.height)
    pixels = np.asarray(
        picture.resize((size[1], size[0]), Image.Resampling.BICUBIC, corners), np.float64
    ).reshape(*size, -1)
    if grey16:
        pixels = np.repeat(pixels * (255 / 65535), description.channels, axis=2)
    low, high = description.settings.image_range
    return _typed(low + np.clip(pixels, 0, 255) * ((high - low) / 255), description), box


def source_box(height: int, width: int, size: tuple[int, int], *, crop: bool) -> SourceBox:
    """Return what of an image of this height and width the model sees.

    With `crop` the largest centred rectangle with the proportions of `size` (height, width), else all.
    """
    if not crop:
        return SourceBox(0.0, 0.0, float(height), float(width))
    # One side is taken whole and the other is one rounded quotient, so that rounding never leads out.
    if height * size[1] <= width * size[0]:
        tall, wide = float(height), height * size[1] / size[0]
    else:
        tall, wide = width * size[0] / size[1], float(width)
    return SourceBox((height - tall) / 2, (width - wide) / 2, tall, wide)


def _opened(encoded: bytes, max_pixels: int) -> Image.Image:
    """Open an image and check its size; its pixels are not decoded yet."""
    try:
        picture = Image.open(io.BytesIO(encoded), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise InvalidArgument(
            f"{FIELD} is neither a JPEG nor a PNG ({len(encoded)} bytes); other formats can be sent as "
            "spec.image.tensor",
            field=FIELD,
        ) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(str(error), max_pixels) from error
    if picture.width * picture.height > max_pixels or max(picture.size) > MAX_SIDE:
        raise _too_large(f"{picture.width} x {picture.height} pixels", max_pixels)
    if picture.format != "PNG" and encoded.count(START_OF_SCAN) > MAX_SCANS:
        raise ResourceExhausted(
            f"{FIELD} has more than {MAX_SCANS} scans, which take very long to decode: save it again",
            field=FIELD,
        )
    return picture


def _upright(picture: Image.Image) -> Image.Image:
    """Return the picture as its orientation tag says that it is to be seen."""
    method = ORIENTATIONS.get(picture.getexif().get(ExifTags.Base.Orientation, 1))
    return picture if method is None else picture.transpose(method)


def _too_large(what: str, max_pixels: int) -> ResourceExhausted:
    return ResourceExhausted(
        f"{FIELD} is too large ({what}); at most {max_pixels} pixels are decoded, {MAX_SIDE} along a side: "
        "send a smaller image",
        field=FIELD,
    )


def _typed(values: NDArray[np.float64], description: Description) -> NDArray[np.generic]:
    dtype = description.image_dtype
    return (np.rint(values) if np.issubdtype(dtype, np.integer) else values).astype(dtype)
