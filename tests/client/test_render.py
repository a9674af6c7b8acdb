import io
import math
import sys

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from vitrail import Explanation
from vitrail.render import (
    BAR_HEIGHT,
    MARGIN,
    MIN_WIDTH,
    OPACITY,
    PANEL,
    Floats,
    Scale,
    _number,
    overlay,
    photograph,
    png,
    scale_of,
    strongest,
)
from vitrail.request import image_message
from vitrail.v1 import explanation_pb2 as pb

from .messages import gradient_plan, occlusion_plan, tile

GRAY = image_message(np.full((8, 8, 1), 128, np.uint8))


def floats(values: ArrayLike) -> Floats:
    return np.asarray(values, np.float32)


def drawn(
    values: ArrayLike, plan: pb.Plan | None = None, image: pb.Image = GRAY, name: str = "espresso (967)"
) -> NDArray[np.int64]:
    """Return the pixels (height, width, 3) of an overlay."""
    picture = overlay(
        np.asarray(values, np.float32), plan or occlusion_plan(), image, name=name, score=0.94, progress=1.0
    )
    return np.asarray(picture).astype(np.int64)


def panel_of(pixels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the part of an overlay of a square image that shows the image."""
    side = PANEL[0]
    bottom = len(pixels) - MARGIN - 48 - BAR_HEIGHT - 16
    return pixels[bottom - side : bottom, MARGIN : MARGIN + side]


def colours_in(pixels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the different colours among pixels (..., 3), one number each."""
    return np.unique(pixels @ np.array([1 << 16, 1 << 8, 1]))


def test_an_overlay_has_a_title_the_image_and_a_colour_bar_with_values() -> None:
    pixels = drawn([[0, 1], [2, 4]])

    height, width, _ = pixels.shape
    assert width == PANEL[0] + 2 * MARGIN
    title, bar = pixels[: MARGIN + 62], pixels[-MARGIN - 48 - BAR_HEIGHT :]
    assert (title < 80).all(-1).any()
    strip = bar[BAR_HEIGHT // 2, MARGIN : width - MARGIN]
    assert len(colours_in(strip)) > 100
    # From the gray of the image to pale yellow.
    assert np.ptp(strip[0]) <= 1
    assert strip[-1, 0] > strip[-1, 2] + 50
    assert (bar[BAR_HEIGHT + 7 :] < 80).all(-1).any()
    assert height > width


def test_the_title_names_the_target() -> None:
    one, other = drawn([[1.0]], name="espresso (967)"), drawn([[1.0]], name="cup (968)")

    assert (one[: MARGIN + 40] != other[: MARGIN + 40]).any()
    assert (one[MARGIN + 62 :] == other[MARGIN + 62 :]).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 400), (400, 1), (37, 224), (2000, 10)])
def test_every_image_gets_an_overlay_of_at_least_512_pixels(shape: tuple[int, int]) -> None:
    image = image_message(np.zeros((*shape, 3), np.float32))

    assert drawn(np.ones(shape), image=image).shape[1] >= MIN_WIDTH


def test_a_long_title_is_shortened_and_any_script_is_drawn() -> None:
    assert drawn([[1.0]], name="a label without end " * 30).shape == drawn([[1.0]]).shape
    assert drawn([[1.0]], name="café 珈琲 (3)").shape == drawn([[1.0]]).shape


def test_what_has_no_value_is_transparent() -> None:
    """The right half has no value and shows the gray image alone; the left half is coloured."""
    panel = panel_of(drawn([[1.0, np.nan]]))

    left, right = panel[:, : PANEL[0] // 2], panel[:, PANEL[0] // 2 :]
    assert len(colours_in(right)) == 1
    assert np.ptp(right[0, 0]) <= 1
    assert np.ptp(left[0, 0]) > 50


def test_the_values_0_and_none_look_alike_and_the_strongest_keeps_some_of_the_image() -> None:
    panel = panel_of(drawn([[0.0, np.nan, 4.0]]))

    assert (panel[0, 0] == panel[0, PANEL[0] // 2]).all()
    assert Scale(1, diverging=False, clipped=False).colours(floats([1.0]))[0, 3] == np.float32(OPACITY)


def test_maps_with_both_signs_are_blue_and_red_around_0() -> None:
    panel = panel_of(drawn([[-2.0, 0.0, 2.0]]))

    negative, zero, positive = panel[0, 50], panel[0, PANEL[0] // 2], panel[0, -50]
    assert negative[2] > negative[0] + 50
    assert positive[0] > positive[2] + 50
    assert np.ptp(zero) <= 1


def test_windows_have_sharp_edges_and_gradients_are_smooth() -> None:
    values = np.arange(16, dtype=np.float32).reshape(4, 4)

    windows = panel_of(drawn(values, occlusion_plan((1, 4, 4))))
    gradient = panel_of(drawn(values, gradient_plan((1, 4, 4))))

    assert len(colours_in(windows)) == 16
    assert len(colours_in(gradient)) > 100


def test_only_the_source_box_of_the_image_is_shown() -> None:
    """The left half of the image is white, the right half black; the map covers the right one."""
    image = np.zeros((4, 8, 3), np.uint8)
    image[:, :4] = 255
    plan = occlusion_plan()
    plan.source_box.CopyFrom(pb.SourceBox(top=0, left=4, height=4, width=4))

    panel = panel_of(drawn(np.zeros((4, 4)), plan, image_message(image)))

    assert panel.max() < 40


def test_channels_are_reduced_to_the_strongest_with_its_sign() -> None:
    values = floats([[[1.0, -3.0, 2.0], [np.nan] * 3, [0.0, np.nan, -1.0]]])

    np.testing.assert_array_equal(strongest(values), [[-3, np.nan, -1]])


def test_a_scale_ends_at_the_largest_size_or_at_the_percentile() -> None:
    values = floats([0, 1, 2, -4])

    assert scale_of(values, 100.0) == Scale(4.0, diverging=True, clipped=False)
    assert scale_of(np.abs(values), 50.0) == Scale(1.5, diverging=False, clipped=True)


def test_a_map_of_one_single_value_is_not_clipped_away() -> None:
    values = np.zeros((100, 100), np.float32)
    values[3, 4] = 7

    assert scale_of(values, 99.0) == Scale(7.0, diverging=False, clipped=False)


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_a_map_without_anything_has_a_scale_all_the_same(value: float) -> None:
    assert scale_of(np.full((2, 2), value, np.float32), 99.0) == Scale(1.0, diverging=False, clipped=False)


def test_infinite_values_get_the_last_colour() -> None:
    scale = scale_of(floats([1, 2, np.inf]), 100.0)

    assert scale == Scale(2.0, diverging=False, clipped=True)
    np.testing.assert_array_equal(scale.positions(floats([1, np.inf])), floats([0.5, 1]))


MAPS = hnp.arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 4)), elements=st.floats(width=32))


@settings(max_examples=10)
@example(np.zeros((3, 3), np.float32))
@example(np.full((3, 3), 7, np.float32))
@example(np.full((1, 1), np.nan, np.float32))
@example(floats([[-np.inf, np.inf]]))
@example(floats([[3e38, -1e-45]]))
@given(MAPS)
def test_no_map_is_beyond_drawing(values: Floats) -> None:
    assert drawn(values).shape[1] >= MIN_WIDTH
    assert drawn(values, gradient_plan((1, *values.shape))).shape[1] >= MIN_WIDTH


@pytest.mark.parametrize("method", [occlusion_plan, gradient_plan])
@pytest.mark.parametrize("kind", pb.Objective.Kind.values())
def test_every_objective_has_its_words(method: object, kind: pb.Objective.Kind.ValueType) -> None:
    plan = occlusion_plan() if method is occlusion_plan else gradient_plan()
    plan.objective.kind = kind

    assert drawn([[1.0]], plan).shape[1] >= MIN_WIDTH


@pytest.mark.parametrize(
    ("array", "pixel"),
    [
        (np.full((2, 2, 3), [10, 20, 30], np.uint8), (10, 20, 30)),
        (np.full((1, 2, 2, 3), [10, 20, 30], np.uint8), (10, 20, 30)),
        (np.full((2, 2), 0.5, np.float32), (128, 128, 128)),
        (np.full((2, 2, 1), 1, np.float32), (255, 255, 255)),
        (np.full((2, 2, 2), 0.0, np.float64), (0, 0, 0)),
        (np.full((2, 2, 4), [0, 1, 0, 1], np.float16), (0, 255, 0)),
        (np.full((2, 2, 3), [-1, 0, 1], np.float32), (0, 128, 255)),
        (np.full((2, 2, 3), -5, np.int32), (0, 0, 0)),
        (np.full((2, 2), fill_value=True), (255, 255, 255)),
    ],
)
def test_a_tensor_is_shown_in_the_range_it_uses(
    array: NDArray[np.generic], pixel: tuple[int, int, int]
) -> None:
    picture = photograph(image_message(array))

    assert picture.size == (2, 2)
    assert picture.getpixel((0, 0)) == pixel


def test_a_photo_is_shown_upright() -> None:
    photo = Image.new("RGB", (4, 2))
    buffer = io.BytesIO()
    photo.getexif()[0x0112] = 6
    photo.save(buffer, "JPEG", exif=photo.getexif())

    assert photograph(pb.Image(encoded=buffer.getvalue())).size == (2, 4)


def test_a_photo_of_16_bits_keeps_its_levels() -> None:
    levels = np.array([[0, 32896, 65535]], np.uint16)

    shown = np.asarray(photograph(image_message(Image.fromarray(levels))))

    assert shown[0, :, 0].tolist() == [0, 128, 255]


def explanation() -> Explanation:
    growing = Explanation(occlusion_plan((1, 2, 2)), GRAY)
    growing.paste(tile(0, 0, [[1, 2]], done=3))
    return growing


def test_an_explanation_draws_itself() -> None:
    picture = explanation().overlay()

    assert picture.width >= MIN_WIDTH
    with pytest.raises(IndexError):
        explanation().overlay(1)


def test_a_notebook_gets_a_png() -> None:
    shown = explanation()._repr_png_()

    assert shown == png(explanation().overlay())
    assert shown is not None
    assert Image.open(io.BytesIO(shown)).format == "PNG"


def test_without_pillow_a_notebook_gets_the_text_and_others_get_the_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(sys.modules, "vitrail.render")
    monkeypatch.setitem(sys.modules, "PIL", None)

    assert explanation()._repr_png_() is None
    with pytest.raises(ImportError, match=r'pip install "vitrail\[cli\]"'):
        explanation().overlay()


def test_numbers_are_short_and_0_has_no_sign() -> None:
    assert [_number(value) for value in (0.0, -0.0, 0.12345, 123456.0, math.inf)] == [
        "0",
        "0",
        "0.123",
        "1.23e+05",
        "inf",
    ]
