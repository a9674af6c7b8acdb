"""What the programs are given."""

from pathlib import Path

import numpy as np
import PIL.Image
import pytest

PHOTO_SHAPE = (12, 16, 3)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A small picture in a file."""
    pixels = np.random.default_rng(0).integers(0, 256, PHOTO_SHAPE, np.uint8)
    path = tmp_path / "photo.png"
    PIL.Image.fromarray(pixels).save(path)
    return path
