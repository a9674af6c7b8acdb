from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from sample_models.silhouette_regressor import (
    BATCH,
    COVERED_SHARE,
    POOL,
    VERSIONS,
    TrainingFigure,
    batches,
    check,
)
from sample_models.silhouettes import SIZE, draw

MODEL = Path(__file__).parents[2] / "model_repository" / "silhouette_regressor"


@pytest.fixture(scope="module")
def figures() -> list[TrainingFigure]:
    rng = np.random.default_rng(11)
    return [TrainingFigure(draw(rng)) for _ in range(2 * BATCH)]


def test_a_halved_drawing_holds_the_means_of_two_by_two_pixels() -> None:
    silhouette = draw(np.random.default_rng(0))
    image = silhouette.image[..., 0]

    halved = TrainingFigure(silhouette).image[..., 0]

    np.testing.assert_array_equal(
        halved, (image[::2, ::2] + image[1::2, ::2] + image[::2, 1::2] + image[1::2, 1::2]) / 4
    )


def test_the_clear_box_holds_the_waist() -> None:
    silhouette = draw(np.random.default_rng(1))
    box = np.zeros((SIZE, SIZE), np.bool_)
    rows, columns = TrainingFigure(silhouette).waist
    box[rows.start * POOL : rows.stop * POOL, columns.start * POOL : columns.stop * POOL] = True

    assert not (silhouette.parts["waist"] & ~box).any()


def test_rectangles_cover_anything_but_the_waist(figures: list[TrainingFigure]) -> None:
    rng = np.random.default_rng(2)
    changed = np.zeros(figures[0].image.shape, np.bool_)
    for _ in range(300):
        covered = figures[0].covered(rng)
        assert covered.min() >= 0
        assert covered.max() <= 1
        changed |= covered != figures[0].image

    clear = np.zeros_like(changed)
    clear[figures[0].waist] = True
    assert not (changed & clear).any()
    assert changed[~clear].mean() > 0.95


def test_covering_leaves_the_drawing_as_it_is(figures: list[TrainingFigure]) -> None:
    before = figures[0].image.copy()
    figures[0].covered(np.random.default_rng(3))

    np.testing.assert_array_equal(figures[0].image, before)


def test_an_epoch_shows_every_figure_once_with_its_own_width(figures: list[TrainingFigure]) -> None:
    stream = batches(figures, np.random.default_rng(4))
    epochs = [[next(stream), next(stream)] for _ in range(2)]

    widths = [np.concatenate([widths for _, widths in epoch])[:, 0] for epoch in epochs]
    expected = np.sort(np.array([figure.waist_width for figure in figures], np.float32))
    for shown in widths:
        np.testing.assert_array_equal(np.sort(shown), expected)
    assert (widths[0] != widths[1]).any(), "each epoch has its own order"
    by_width = {np.float32(figure.waist_width): figure for figure in figures}
    for images, shown in epochs[0]:
        for image, [width] in zip(images, shown, strict=True):
            figure = by_width[width]
            np.testing.assert_array_equal(image[figure.waist], figure.image[figure.waist])


def test_some_figures_stay_uncovered(figures: list[TrainingFigure]) -> None:
    stream = batches(figures, np.random.default_rng(5))
    pictures = {figure.image.tobytes() for figure in figures}
    shown = [image.tobytes() for _ in range(20) for image in next(stream)[0]]

    uncovered = np.mean([image in pictures for image in shown])
    assert uncovered == pytest.approx(1 - COVERED_SHARE, abs=0.1), "a few rectangles cover nothing"


@pytest.mark.parametrize("version", VERSIONS)
def test_the_committed_version_passes_its_check(version: str) -> None:
    loaded = tf.saved_model.load(str(MODEL / version / "model.savedmodel"))
    predict = loaded.signatures["serving_default"]

    check(lambda images: predict(image=tf.constant(images))["waist_width"].numpy())


def test_the_check_refuses_a_network_that_always_says_the_mean() -> None:
    with pytest.raises(SystemExit, match="expected less than 1"):
        check(lambda images: np.full((len(images), 1), 32, np.float32))
