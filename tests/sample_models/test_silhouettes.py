import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sample_models.silhouettes import DEMO_BODY, SIZE, WAIST_REACH, Silhouette, draw, random_body, render

PICTURE = Path(__file__).parents[2] / "examples" / "photos" / "silhouette.png"
UPRIGHT = dataclasses.replace(DEMO_BODY, lean=0.0)


@pytest.fixture(scope="module")
def figures() -> list[Silhouette]:
    rng = np.random.default_rng(42)
    return [draw(rng) for _ in range(40)]


def test_the_same_seed_gives_the_same_figure() -> None:
    first, second = (draw(np.random.default_rng(7)) for _ in range(2))

    assert first.waist_width == second.waist_width
    np.testing.assert_array_equal(first.image, second.image)


def test_a_figure_is_white_on_black_and_its_parts_are_all_of_it(figures: list[Silhouette]) -> None:
    for figure in figures:
        assert figure.image.shape == (SIZE, SIZE, 1)
        assert figure.image.dtype == np.float32
        union = np.any([figure.parts[name] for name in ("head", "torso", "arms", "legs")], axis=0)
        np.testing.assert_array_equal(figure.image[..., 0], union)


def test_head_torso_and_feet_are_inside_the_picture(figures: list[Silhouette]) -> None:
    for figure in figures:
        body = figure.parts["head"] | figure.parts["torso"] | figure.parts["legs"]
        inside = np.zeros_like(body)
        inside[1:-1, 1:-1] = True
        assert not (body & ~inside).any()


def test_the_waist_is_a_band_of_the_torso(figures: list[Silhouette]) -> None:
    for figure in figures:
        waist = figure.parts["waist"]
        assert waist.any()
        assert not (waist & ~figure.parts["torso"]).any()


@pytest.mark.parametrize("width", [22, 30, 38])
def test_the_waist_is_as_wide_as_the_target_says(width: int) -> None:
    """The figure stands upright, so its row of pixels at the height of the waist is the waist."""
    figure = render(dataclasses.replace(UPRIGHT, waist_width=width))

    rows = np.flatnonzero(figure.parts["waist"].any(axis=1))
    assert len(rows) == pytest.approx(2 * WAIST_REACH, abs=1)
    middle = round(rows.mean())
    assert figure.waist_width == width
    assert figure.parts["waist"][middle].sum() == pytest.approx(width, abs=1)


def test_the_waist_changes_nothing_but_the_torso_near_it() -> None:
    slim, stout = (render(dataclasses.replace(UPRIGHT, waist_width=width)) for width in (24, 34))

    for name in ("head", "arms", "legs"):
        np.testing.assert_array_equal(slim.parts[name], stout.parts[name])
    changed = np.flatnonzero((slim.image != stout.image).any(axis=(1, 2)))
    rows = np.flatnonzero(slim.parts["torso"].any(axis=1))
    assert rows[0] + 0.25 * len(rows) < changed[0]
    assert changed[-1] < rows[0] + 0.95 * len(rows)


def test_arms_leave_the_waist_free(figures: list[Silhouette]) -> None:
    """Else its outline could not be seen."""
    for figure in figures:
        assert not (figure.parts["arms"] & figure.parts["waist"]).any()


def test_all_measures_are_independent_of_the_waist() -> None:
    rng = np.random.default_rng(3)
    bodies = [random_body(rng) for _ in range(4000)]
    waist = [body.waist_width for body in bodies]

    for name in (
        "height",
        "head_length",
        "shoulder_width",
        "chest_width",
        "hip_width",
        "waist_level",
        "limb_width",
    ):
        correlation = np.corrcoef(waist, [getattr(body, name) for body in bodies])[0, 1]
        assert abs(correlation) < 0.06, f"{name}: four standard errors are 0.063"


def test_the_demo_picture_is_the_demo_body() -> None:
    with Image.open(PICTURE) as picture:
        assert picture.mode == "L"
        np.testing.assert_array_equal(np.asarray(picture) / 255, render(DEMO_BODY).image[..., 0])
