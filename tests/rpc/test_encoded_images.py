"""JPEG and PNG files, honest and hostile: what the model sees of them, and how the others are refused."""

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any, Literal

import grpc
import numpy as np
import pytest
import pytest_asyncio
from numpy.typing import NDArray
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from fakes.models import Linear, weights
from fakes.serving import Offer, Served, served
from vitrail.v1 import explanation_pb2 as pb
from vitrail_server.work import Kind

from .conftest import SHAPE
from .files import described, png_of_bits, saved
from .messages import Refusal, occlusion, refused, spec

pytestmark = pytest.mark.asyncio(loop_scope="module")

HEIGHT, WIDTH, _ = SHAPE
COLOURS = np.random.default_rng(0).integers(0, 256, SHAPE, np.uint8)
ORIENTATION = int(ExifTags.Base.Orientation)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gallery(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    descriptions = {
        "colour": described(SHAPE),
        "bytes": described(SHAPE, "UINT8"),
        "unit": described(SHAPE, image_range=(-1.0, 1.0)),
        "cropped": described(SHAPE, image_resize="CENTER_CROP"),
        "grey": described((HEIGHT, WIDTH, 1)),
        "alpha": described((HEIGHT, WIDTH, 4)),
        "infrared": described((HEIGHT, WIDTH, 5)),
        "free": replace(
            described((-1, -1, 1), image_sizes=((3, 4), (6, 8))),
        ),
    }
    offers = {
        name: Offer(
            model=Linear(weights(0, 1, (each.image_sizes[0][0], each.image_sizes[0][1], each.channels))),
            description=each,
        )
        for name, each in descriptions.items()
    }
    async with served(tmp_path_factory.mktemp("gallery"), offers) as running:
        yield running


async def seen(gallery: Served, model: str, file: bytes) -> tuple[NDArray[Any], pb.SourceBox]:
    """Return what the model sees of a file, and the part of it that the map covers."""
    what = spec(model, file, occlusion=occlusion(patch=1))
    answer = await gallery.explanations.Explain(pb.ExplainRequest(spec=what))
    return gallery.offers[model].program(Kind.FORWARD).subjects[-1].image, answer.plan.source_box


async def refuse(gallery: Served, file: bytes, model: str = "colour") -> Refusal:
    refusal = await refused(gallery.explanations.Explain(pb.ExplainRequest(spec=spec(model, file))))
    assert refusal.field == "spec.image.encoded"
    return refusal


def box(top: float, left: float, height: float, width: float) -> pb.SourceBox:
    return pb.SourceBox(top=top, left=left, height=height, width=width)


async def test_a_png_of_the_models_size_arrives_as_it_is(gallery: Served) -> None:
    image, covered = await seen(gallery, "colour", saved(COLOURS))

    assert image.dtype == np.float32
    assert np.array_equal(image, COLOURS)
    assert covered == box(0, 0, 6, 8)


async def test_values_are_scaled_to_the_models_range_and_type(gallery: Served) -> None:
    as_bytes, _ = await seen(gallery, "bytes", saved(COLOURS))
    between, _ = await seen(gallery, "unit", saved(COLOURS))

    assert as_bytes.dtype == np.uint8
    assert np.array_equal(as_bytes, COLOURS)
    assert np.allclose(between, COLOURS / 127.5 - 1, atol=1e-6)


async def test_a_picture_of_another_size_is_resized_and_its_whole_is_covered(gallery: Served) -> None:
    halves = np.zeros((60, 40, 3), np.uint8)
    halves[30:] = 200

    image, covered = await seen(gallery, "colour", saved(halves))

    assert covered == box(0, 0, 60, 40)
    assert (image[0] == 0).all()
    assert (image[5] == 200).all()


async def test_a_cropped_picture_says_what_is_left_of_it(gallery: Served) -> None:
    wide = np.zeros((12, 40, 3), np.uint8)
    wide[:, 12:28] = 90  # the centre with the proportions of 6 x 8
    wide[:, :4] = 255

    image, covered = await seen(gallery, "cropped", saved(wide))

    assert covered == box(0, 12, 12, 16)
    assert (image[:, 2:-2] == 90).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["PNG", "JPEG"])
async def test_an_orientation_tag_is_applied(
    gallery: Served, orientation: int, form: Literal["PNG", "JPEG"]
) -> None:
    upright = np.zeros((48, 64, 3), np.uint8)
    upright[:24, :32] = (200, 0, 0)
    upright[:24, 32:] = (0, 200, 0)
    upright[24:, :32] = (0, 0, 200)
    # How a camera that was held another way stores it: Exif 2.3 names where row 0 and column 0 lie.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: np.rot90(upright, 2).transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    how = {"quality": 100, "subsampling": 0} if form == "JPEG" else {}

    image, covered = await seen(
        gallery, "colour", saved(np.ascontiguousarray(stored), form, exif=exif, **how)
    )

    assert covered == box(0, 0, 48, 64)
    expected = upright[4::8, 4::8].astype(np.float32)
    assert np.abs(image - expected)[[0, 5]][:, [0, 7]].max() <= 3  # the corners, far from what is blurred


@pytest.mark.parametrize("orientation", [0, 9, 65535])
async def test_an_orientation_that_does_not_exist_changes_nothing(gallery: Served, orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation

    image, _ = await seen(gallery, "colour", saved(COLOURS, exif=exif))

    assert np.array_equal(image, COLOURS)


async def test_grey_becomes_colour_and_colour_grey(gallery: Served) -> None:
    flat = np.arange(48, dtype=np.uint8).reshape(6, 8)
    coloured, _ = await seen(gallery, "colour", saved(flat))
    assert np.array_equal(coloured, np.repeat(flat[:, :, None], 3, 2))

    grey, _ = await seen(gallery, "grey", saved(COLOURS))
    luma = COLOURS @ np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
    assert grey.shape == (6, 8, 1)
    assert np.abs(grey[:, :, 0] - luma).max() <= 1


async def test_the_alpha_channel_is_left_out_unless_the_model_has_one(gallery: Served) -> None:
    see_through = np.dstack([COLOURS, np.arange(48, dtype=np.uint8).reshape(6, 8)])

    opaque, _ = await seen(gallery, "colour", saved(see_through))
    whole, _ = await seen(gallery, "alpha", saved(see_through))
    filled, _ = await seen(gallery, "alpha", saved(COLOURS))

    assert np.array_equal(opaque, COLOURS)
    assert np.array_equal(whole, see_through)
    assert (filled[:, :, 3] == 255).all()


async def test_sixteen_bits_of_grey_keep_their_precision(gallery: Served) -> None:
    deep = np.linspace(0, 65535, 48).astype(np.uint16).reshape(6, 8)

    grey, _ = await seen(gallery, "grey", saved(deep))
    coloured, _ = await seen(gallery, "colour", saved(deep))

    assert np.allclose(grey[:, :, 0], deep / 257, atol=1e-4)
    assert np.array_equal(coloured, np.repeat(grey, 3, 2))


@pytest.mark.parametrize("mode", ["1", "P", "LA", "CMYK"])
async def test_rare_kinds_of_pixels_are_read(gallery: Served, mode: str) -> None:
    picture = Image.new("L", (8, 6), 255).convert(mode)

    image, _ = await seen(gallery, "colour", saved(picture, "JPEG" if mode == "CMYK" else "PNG"))

    assert (image >= 254).all()


async def test_the_first_size_is_used_where_a_model_serves_several(gallery: Served) -> None:
    image, _ = await seen(gallery, "free", saved(COLOURS))

    assert image.shape == (3, 4, 1)


async def test_a_file_that_is_no_jpeg_or_png(gallery: Served) -> None:
    bitmap = b"BM" + bytes(100)
    for file in (b"", b"\x89PNG", b"hello", saved(COLOURS, "GIF"), bitmap, b"\xff\xd8", b"\xff\xd8\xff\xe0"):
        refusal = await refuse(gallery, file)

        assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT
        assert refusal.message.startswith(
            f"spec.image.encoded is neither a JPEG nor a PNG ({len(file)} bytes); other formats can be sent"
        )


async def test_a_damaged_file(gallery: Served) -> None:
    png, jpeg = saved(COLOURS), saved(np.tile(COLOURS, (20, 20, 1)), "JPEG")
    flipped = bytearray(png)
    flipped[-20] ^= 1
    for file in (bytes(flipped), png[:-30], jpeg[: len(jpeg) // 2], jpeg[:700]):
        refusal = await refuse(gallery, file)

        assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT
        assert refusal.message.startswith("spec.image.encoded is damaged: ")


async def test_a_picture_of_no_pixels(gallery: Served) -> None:
    for width, height in ((0, 8), (8, 0), (0, 0)):
        refusal = await refuse(gallery, png_of_bits(width, height, b""))

        assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("width", "height"),
    [
        (60_000, 60_000),
        (2**31 - 1, 2**31 - 1),
        (20_000, 20_000),
        (10_000, 10_000),
        (5_001, 5_000),
        (65_536, 1),
    ],
)
async def test_a_decompression_bomb_is_refused_by_its_header(
    gallery: Served, width: int, height: int
) -> None:
    # 20,000 x 20,000 is really there: 50 MB of zeros in 50 KB.
    pixels = bytes(height * (width // 8 + 1)) if width == 20_000 else b""

    refusal = await refuse(gallery, png_of_bits(width, height, pixels))

    assert refusal.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert refusal.message.startswith("spec.image.encoded is too large (")
    assert "at most 25000000 pixels are decoded, 65535 along a side: send a smaller image" in refusal.message


async def test_text_that_decompresses_to_very_much_is_refused(gallery: Served) -> None:
    notes = PngInfo()
    notes.add_text("note", "a" * (1 << 24), zip=True)

    refusal = await refuse(gallery, saved(COLOURS, pnginfo=notes))

    assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT
    assert refusal.message.startswith("spec.image.encoded is damaged: ")


async def test_a_jpeg_of_very_many_scans_is_refused(gallery: Served) -> None:
    jpeg = saved(COLOURS, "JPEG", progressive=True)
    last = jpeg.rindex(b"\xff\xda")
    assert jpeg.count(b"\xff\xda") <= 12

    refusal = await refuse(gallery, jpeg[:-2] + jpeg[last:-2] * 100 + jpeg[-2:])

    assert refusal.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "has more than 100 scans" in refusal.message


async def test_a_model_whose_image_no_file_can_hold(gallery: Served) -> None:
    refusal = await refuse(gallery, saved(COLOURS), "infrared")

    assert refusal.code is grpc.StatusCode.FAILED_PRECONDITION
    assert refusal.message == (
        "the model's image has 5 channels, which no JPEG or PNG has: send spec.image.tensor"
    )
