import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from explainers import brute_force
from fakes.models import picture
from fakes.properties import examples
from vitrail.errors import InvalidArgument
from vitrail_server.explainers.fills import (
    MAX_SIGMA,
    Blur,
    Constant,
    Fill,
    GivenImage,
    ImageMean,
    blurred,
    filled,
)
from vitrail_server.servable import DTYPES

RGB = np.array([[[0, 10, 1], [1, 20, 1]], [[2, 30, 1], [3, 40, 2]]], np.float32)


def test_one_value_fills_every_channel() -> None:
    effective, values = filled(Constant((0.5,)), RGB)
    assert effective == Constant((0.5,))
    assert values.dtype == np.float32
    assert np.broadcast_to(values, RGB.shape).tolist() == np.full(RGB.shape, 0.5).tolist()


def test_one_value_per_channel() -> None:
    _, values = filled(Constant((1.0, 2.0, 3.0)), RGB)
    assert np.broadcast_to(values, RGB.shape)[1, 0].tolist() == [1, 2, 3]


def test_the_mean_is_per_channel_and_told() -> None:
    effective, values = filled(ImageMean(), RGB)
    assert effective == ImageMean((1.5, 25.0, 1.25))
    assert values.tolist() == [1.5, 25.0, 1.25]


def test_means_sent_in_a_request_are_ignored() -> None:
    assert filled(ImageMean((9.0,)), RGB)[0] == ImageMean((1.5, 25.0, 1.25))


def test_an_image_of_the_callers() -> None:
    _, values = filled(GivenImage(RGB[::-1].astype(np.float64)), RGB)
    assert values.dtype == np.float32
    assert values.tolist() == RGB[::-1].tolist()


def test_a_blur_of_one_bright_pixel_is_the_gaussian() -> None:
    image = np.zeros((1, 9, 1))
    image[0, 4] = 1
    weights = np.exp(-0.5 * np.arange(-4, 5) ** 2.0)
    np.testing.assert_allclose(blurred(image, 1.0)[0, :, 0], weights / weights.sum(), atol=1e-12)


def test_a_blur_leaves_a_plain_image_as_it_is() -> None:
    image = np.full((5, 7, 2), 0.3)
    np.testing.assert_allclose(blurred(image, 3.0), image, rtol=1e-12)


@given(
    st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(1, 2)), st.sampled_from([0.1, 0.4, 1.0, 2.3])
)
@examples(12)
def test_a_blur_is_the_convolution_in_two_dimensions(shape: tuple[int, int, int], sigma: float) -> None:
    """Also where the kernel is far wider than the image, so that the border is mirrored again and again."""
    image = picture(1, shape)
    np.testing.assert_allclose(
        blurred(image, sigma), brute_force.blurred(image.astype(np.float64), sigma), rtol=1e-9
    )


@pytest.mark.parametrize("sigma", [5e-324, 1e-200, 1e-3, MAX_SIGMA])
def test_every_sigma_allowed_works(sigma: float) -> None:
    image = picture(2, (4, 3, 1))
    result = blurred(image, sigma)
    assert np.isfinite(result).all()
    if sigma <= 1e-3:
        np.testing.assert_array_equal(result, image)
    else:
        np.testing.assert_allclose(result, image.mean(), atol=0.01)


@pytest.mark.parametrize("sigma", [0.0, -1.0, 100.5, float("nan"), float("inf")])
def test_a_sigma_out_of_range_is_refused(sigma: float) -> None:
    with pytest.raises(
        InvalidArgument, match=f"blur.sigma is {sigma:g}; it must be above 0 and at most 100"
    ) as caught:
        filled(Blur(sigma), RGB)
    assert caught.value.field == "spec.occlusion.fill.blur.sigma"


@pytest.mark.parametrize("count", [0, 2, 4])
def test_as_many_values_as_channels_or_one(count: int) -> None:
    with pytest.raises(
        InvalidArgument, match=f"has {count} values, but the image has 3 channels: give one"
    ) as caught:
        filled(Constant((1.0,) * count), RGB)
    assert caught.value.field == "spec.occlusion.fill.channels"


@pytest.mark.parametrize("shape", [(2, 2), (2, 2, 1), (2, 3, 3)])
def test_a_fill_image_has_the_images_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidArgument, match=r"but the image has \[2, 2, 3\]") as caught:
        filled(GivenImage(np.zeros(shape)), RGB)
    assert caught.value.field == "spec.occlusion.fill.image"


@pytest.mark.parametrize(
    "fill",
    [
        Constant((float("nan"),)),
        Constant((0.0, float("inf"), 0.0)),
        GivenImage(np.where(RGB == 3, np.nan, RGB)),
    ],
)
def test_values_that_are_not_finite_are_refused(fill: Fill) -> None:
    with pytest.raises(InvalidArgument, match="not finite") as caught:
        filled(fill, RGB)
    assert caught.value.field == "spec.occlusion.fill"


@pytest.mark.parametrize(
    ("value", "rounded"), [(0.5, 0), (1.5, 2), (2.6, 3), (-0.4, 0), (254.6, 255), (255.4, 255)]
)
def test_integers_are_rounded_to_the_nearest(value: float, rounded: int) -> None:
    _, values = filled(Constant((value,)), RGB.astype(np.uint8))
    assert values.dtype == np.uint8
    assert values.tolist() == [rounded]


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        (256.0, "u1", "from 256 to 256, but the model's image is uint8, from 0 to 255"),
        (-1.0, "u1", "from -1 to -1, but the model's image is uint8, from 0 to 255"),
        (200.0, "i1", "int8, from -128 to 127"),
        (2.0**31, "i4", "int32"),
        (2.0**63, "i8", "int64"),
        (2.0**64, "u8", "uint64"),
        (1e6, "f2", "float16, from -65504 to 65504"),
        (-1e39, "f4", "float32"),
    ],
)
def test_values_out_of_the_types_range_are_refused(value: float, dtype: str, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message) as caught:
        filled(Constant((value,)), RGB.astype(dtype))
    assert caught.value.field == "spec.occlusion.fill"


@pytest.mark.parametrize("datatype", DTYPES)
def test_every_fill_has_the_images_type(datatype: str) -> None:
    image = np.array([[[0], [1]], [[1], [1]]]).astype(DTYPES[datatype])
    for fill in (Constant((1.0,)), ImageMean(), Blur(0.5), GivenImage(image[::-1])):
        assert filled(fill, image)[1].dtype == image.dtype


@pytest.mark.parametrize("dtype", ["u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8"])
def test_an_image_at_the_ends_of_its_type_can_be_its_own_fill(dtype: str) -> None:
    limits = np.iinfo(dtype) if np.issubdtype(dtype, np.integer) else np.finfo(dtype)
    image = np.array([limits.min, limits.max], dtype).reshape(1, 2, 1)
    assert (filled(GivenImage(image), image)[1] == image).all()


@pytest.mark.parametrize("value", [255, 254, 7])
def test_the_blur_of_a_plain_integer_image_is_that_image(value: int) -> None:
    image = np.full((6, 5, 3), value, np.uint8)
    assert (filled(Blur(1.7), image)[1] == image).all()


@pytest.mark.parametrize("dtype", ["f2", "f4"])
def test_the_blur_of_the_brightest_image_there_is_stays_in_range(dtype: str) -> None:
    image = np.full((6, 5, 1), np.finfo(dtype).max, dtype)
    assert (filled(Blur(1.7), image)[1] == image).all()
