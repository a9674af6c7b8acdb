"""Occluded forwards of loaded models, against brute force."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from saved_models import IMAGE, OFFSETS, SUMS, Floats, numbers
from savedmodel import reference
from savedmodel.conftest import Load, Saved
from vitrail_server.servable import Servable
from vitrail_server.work import Kind, OccludeRows, Subject

WINDOWS = np.array(
    [[0, 0, 0, 0], [0, 0, 12, 10], [0, 0, 1, 1], [11, 9, 12, 10], [3, 2, 9, 5], [0, 4, 12, 6]], np.int32
)
"""Nothing, everything, two corners, a window in the middle, a stripe; for images of 12 x 10."""


def occlude_rows(
    image: NDArray[np.generic],
    windows: NDArray[np.int32],
    fill: NDArray[np.generic],
    output: str = "logits",
    **inputs: Floats,
) -> OccludeRows:
    return OccludeRows(Subject(image, inputs, fill), output, windows)


def outputs(model: Servable, *parts: OccludeRows) -> list[Floats]:
    height, width, _ = parts[0].subject.image.shape
    results = model.program(Kind.FORWARD, (height, width)).execute(parts)
    assert all(result.gradients is None for result in results)
    return [result.outputs for result in results]


@pytest.mark.parametrize(
    "fill",
    [
        np.array([0.5], np.float32),
        np.array([0.5, -1, 2], np.float32),
        numbers(12, 10, 3, seed=9),
    ],
    ids=["constant", "per channel", "image"],
)
def test_a_row_is_the_model_s_answer_to_the_occluded_image(saved: Saved, load: Load, fill: Floats) -> None:
    model = load(saved("convolutional"))
    image = numbers(12, 10, 3, seed=3)
    (found,) = outputs(model, occlude_rows(image, WINDOWS, fill))
    for row, window in zip(found, WINDOWS, strict=True):
        hidden = reference.occluded(image, window, fill).astype(np.float64)
        np.testing.assert_allclose(row, reference.logits(hidden), rtol=1e-5, atol=1e-6)


def test_hiding_part_of_a_linear_model_takes_that_part_of_the_sum_away(saved: Saved, load: Load) -> None:
    weights = numbers(5, 7, 3, 2)
    model = load(saved("linear", weights, np.zeros(2, np.float32)))
    image = numbers(*IMAGE, seed=3)
    windows = np.array([[0, 0, 0, 0], [1, 2, 4, 6]], np.int32)
    ((clean, hidden),) = outputs(model, occlude_rows(image, windows, np.zeros(1, np.float32), "y"))
    expected = np.tensordot(image[1:4, 2:6].astype(np.float64), weights[1:4, 2:6].astype(np.float64), 3)
    np.testing.assert_allclose(clean - hidden, expected, rtol=1e-5, atol=1e-5)


def test_images_of_bytes_are_occluded_in_bytes(saved: Saved, load: Load) -> None:
    model = load(saved("byte_pixels"))
    image = np.random.default_rng(3).integers(0, 256, IMAGE, np.uint8)
    fill = np.array([127], np.uint8)
    windows = np.array([[1, 1, 3, 4]], np.int32)
    (found,) = outputs(model, occlude_rows(image, windows, fill, "y"))
    hidden = reference.occluded(image, windows[0], fill)
    np.testing.assert_allclose(
        found[0], np.tensordot(hidden.astype(np.float64) / 255, SUMS, 3), rtol=1e-4, atol=1e-5
    )


def test_a_class_is_an_output_like_others(saved: Saved, load: Load) -> None:
    model = load(saved("argmax"))
    image = numbers(*IMAGE, seed=3)
    (found,) = outputs(model, occlude_rows(image, np.zeros((1, 4), np.int32), image, "class"))
    assert found.dtype == np.float32
    assert found.tolist() == [[np.argmax(np.tensordot(image, SUMS, 3))]]


def test_further_inputs_are_those_of_each_row(saved: Saved, load: Load) -> None:
    model = load(saved("two_inputs"))
    image = numbers(*IMAGE, seed=3)
    offsets = [np.array([1, 0], np.float32), np.array([0, 2], np.float32)]
    windows = np.zeros((1, 4), np.int32)
    found = outputs(model, *(occlude_rows(image, windows, image, "y", a_offset=each) for each in offsets))
    for offset, row in zip(offsets, found, strict=True):
        np.testing.assert_allclose(
            row[0], np.tensordot(image, SUMS, 3) + offset @ OFFSETS, rtol=1e-4, atol=1e-5
        )


def test_values_that_are_not_finite_pass_through(saved: Saved, load: Load) -> None:
    model = load(saved("not_a_number"))
    image = np.ones(IMAGE, np.float32)
    (found,) = outputs(model, occlude_rows(image, np.zeros((1, 4), np.int32), image, "y"))
    np.testing.assert_array_equal(found, [[np.nan, 105]])


def test_both_sizes_of_a_model_with_free_sizes_are_served(saved: Saved, load: Load) -> None:
    model = load(saved("convolutional", size=(None, None)), image_sizes=((12, 10), (8, 8)))
    for height, width in ((12, 10), (8, 8)):
        image = numbers(height, width, 3, seed=3)
        (found,) = outputs(model, occlude_rows(image, np.array([[2, 2, 6, 7]], np.int32), image * 0))
        hidden = reference.occluded(image, (2, 2, 6, 7), image * 0)
        np.testing.assert_allclose(
            found[0], reference.logits(hidden.astype(np.float64)), rtol=1e-5, atol=1e-6
        )


IMAGES = [numbers(12, 10, 3, seed=seed) for seed in range(3)]
window = st.tuples(st.integers(0, 5), st.integers(0, 4), st.integers(6, 12), st.integers(5, 10))
part = st.tuples(st.integers(0, 2), st.lists(window, min_size=1, max_size=3))


@settings(max_examples=30)
@given(parts=st.lists(part, min_size=1, max_size=3), order=st.permutations(range(3)))
def test_a_row_has_the_same_bits_in_any_company_order_and_padding(
    saved: Saved, load: Load, parts: list[tuple[int, list[tuple[int, int, int, int]]]], order: list[int]
) -> None:
    model = load(saved("convolutional"))
    assert model.program(Kind.FORWARD, (12, 10)).batch_size >= 9
    rows = [
        occlude_rows(IMAGES[which], np.array(windows, np.int32), np.zeros(1, np.float32))
        for which, windows in parts
    ]
    together = outputs(model, *rows)
    places = [place for place in order if place < len(rows)]
    shuffled = outputs(model, *(rows[place] for place in places))
    for position, place in enumerate(places):
        np.testing.assert_array_equal(shuffled[position], together[place])
    for row, expected in zip(rows, together, strict=True):
        np.testing.assert_array_equal(outputs(model, row)[0], expected)
        for single, expected_single in zip(row.windows, expected, strict=True):
            alone = OccludeRows(row.subject, row.output, single[None])
            np.testing.assert_array_equal(outputs(model, alone)[0], expected_single[None])
