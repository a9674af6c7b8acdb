"""Padded batches, assembled in arrays that are reused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from savedmodel.reference import occluded
from vitrail_server.savedmodel.rows import NOTHING_HIDDEN, InputLayout, RowBuffer, RowLayout, Window
from vitrail_server.work import Subject

HEIGHT, WIDTH, CHANNELS = 4, 6, 2
LAYOUT = RowLayout("image", InputLayout((HEIGHT, WIDTH, CHANNELS), np.dtype(np.uint8)), {})


def subject(seed: int) -> Subject:
    random = np.random.default_rng(seed)
    image = random.integers(0, 256, (HEIGHT, WIDTH, CHANNELS), np.uint8)
    return Subject(image, fill=random.integers(0, 256, image.shape, np.uint8))


SUBJECTS = [subject(0), subject(1), subject(2)]


def test_a_window_shows_the_fill_and_the_rest_the_image() -> None:
    image = np.arange(HEIGHT * WIDTH * CHANNELS, dtype=np.uint8).reshape(HEIGHT, WIDTH, CHANNELS)
    fill = np.array([200, 250], np.uint8)
    rows = RowBuffer(LAYOUT, 1).fill([(Subject(image, fill=fill), (1, 2, 3, 5))])["image"]
    expected = image.copy()
    expected[1:3, 2:5, 0] = 200
    expected[1:3, 2:5, 1] = 250
    np.testing.assert_array_equal(rows[0], expected)


def test_short_batches_repeat_their_last_row() -> None:
    rows = RowBuffer(LAYOUT, 4).fill([(SUBJECTS[0], NOTHING_HIDDEN), (SUBJECTS[1], (0, 0, 2, 2))])["image"]
    np.testing.assert_array_equal(rows[2], rows[1])
    np.testing.assert_array_equal(rows[3], rows[1])


def test_the_caller_s_image_is_left_alone() -> None:
    before = SUBJECTS[0].image.copy()
    RowBuffer(LAYOUT, 2).fill([(SUBJECTS[0], (0, 0, HEIGHT, WIDTH))])
    np.testing.assert_array_equal(SUBJECTS[0].image, before)


def test_other_inputs_are_stacked_row_by_row() -> None:
    layout = RowLayout("image", LAYOUT.image, {"age": InputLayout((3,), np.dtype(np.float32))})
    ages = [np.full(3, value, np.float32) for value in (1, 2)]
    subjects = [Subject(SUBJECTS[0].image, {"age": age}) for age in ages]
    buffer = RowBuffer(layout, 3)
    rows = buffer.fill([(subjects[0], NOTHING_HIDDEN), (subjects[1], NOTHING_HIDDEN)])
    np.testing.assert_array_equal(rows["age"], [ages[0], ages[1], ages[1]])
    rows = buffer.fill([(subjects[1], NOTHING_HIDDEN), (subjects[0], NOTHING_HIDDEN)])
    np.testing.assert_array_equal(rows["age"], [ages[1], ages[0], ages[0]])


def test_a_hidden_window_needs_a_fill() -> None:
    with pytest.raises(ValueError, match="no fill"):
        RowBuffer(LAYOUT, 1).fill([(Subject(SUBJECTS[0].image), (0, 0, 1, 1))])


def test_a_batch_needs_a_row() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        RowBuffer(LAYOUT, 1).fill([])


def test_a_row_counts_its_bytes() -> None:
    layout = RowLayout("image", LAYOUT.image, {"age": InputLayout((3,), np.dtype(np.float32))})
    assert layout.nbytes == 4 * 6 * 2 + 3 * 4


@st.composite
def windows(draw: st.DrawFn) -> Window:
    top = draw(st.integers(0, HEIGHT))
    left = draw(st.integers(0, WIDTH))
    return top, left, draw(st.integers(top, HEIGHT)), draw(st.integers(left, WIDTH))


rows_of_a_batch = st.lists(st.tuples(st.integers(0, len(SUBJECTS) - 1), windows()), min_size=1, max_size=3)


@settings(max_examples=100)
@given(batches=st.lists(rows_of_a_batch, min_size=1, max_size=6))
def test_a_reused_buffer_holds_what_a_new_one_would(batches: list[list[tuple[int, Window]]]) -> None:
    """Whatever was in a slot before, nothing of it is left."""
    buffer = RowBuffer(LAYOUT, 3)
    for batch in batches:
        filled = buffer.fill((SUBJECTS[which], window) for which, window in batch)["image"]
        expected = [
            occluded(SUBJECTS[which].image, window, np.asarray(SUBJECTS[which].fill))
            for which, window in batch
        ]
        expected += [expected[-1]] * (3 - len(expected))
        np.testing.assert_array_equal(filled, expected)
