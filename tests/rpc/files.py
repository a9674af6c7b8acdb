"""Image files to send, and descriptions of the models that they are sent to."""

import io
import struct
import zlib
from dataclasses import replace
from typing import Any, Literal

from numpy.typing import NDArray
from PIL import Image

from fakes.servables import describe
from vitrail_server.servable import Description

SIGNATURE = b"\x89PNG\r\n\x1a\n"


def described(shape: tuple[int, int, int], dtype: str = "FP32", **settings: Any) -> Description:
    """Return the description of a model with one output and these settings."""
    description = describe(shape, 1, dtype=dtype)
    return replace(description, settings=replace(description.settings, **settings))


def saved(
    picture: Image.Image | NDArray[Any], form: Literal["PNG", "JPEG", "GIF"] = "PNG", **how: Any
) -> bytes:
    """Return a picture as a file."""
    file = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(file, form, **how)
    return file.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    """Return a chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of_bits(width: int, height: int, pixels: bytes) -> bytes:
    """Return a PNG of one bit per pixel, without making the picture."""
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(pixels, 1)), (b"IEND", b""))
    return SIGNATURE + b"".join(chunk(*each) for each in parts)
