"""The main job on the sample models: the maps show what is known to decide the answer."""

import urllib.request
from typing import get_args

import numpy as np
import pytest
from numpy.typing import NDArray

import vitrail
from integration.conftest import ROOT, Served
from sample_models.silhouettes import Silhouette, draw
from vitrail.methods import Order

COFFEE = ROOT / "examples" / "photos" / "coffee.jpg"
NOTEBOOK = vitrail.Occlusion(patch=6, stride=6, fill=0.5, window_score="ABSOLUTE")


@pytest.fixture(scope="module")
def figures() -> list[Silhouette]:
    """Figures that the regressor was not trained on."""
    rng = np.random.default_rng(20_000)
    return [draw(rng) for _ in range(6)]


def assert_same(one: vitrail.Explanation, other: vitrail.Explanation) -> None:
    """Hold two maps to the same bits, or to rounding where a plan was made of their windows in between."""
    if one.plan.execution == other.plan.execution:
        np.testing.assert_array_equal(one.values, other.values)
    else:
        largest = max(abs(target.output) for target in one.targets)
        np.testing.assert_allclose(one.values, other.values, rtol=0, atol=1e-5 * largest)


def share(values: NDArray[np.float32], mask: NDArray[np.bool_]) -> float:
    """Return the part of a map's positive mass that lies on a mask."""
    positive = np.maximum(values, 0)
    return float(positive[mask].sum() / positive.sum())


def grown(mask: NDArray[np.bool_], pixels: int) -> NDArray[np.bool_]:
    """Return a mask with a margin around it, as wide as a patch smears the map."""
    result = mask.copy()
    for shift in range(-pixels, pixels + 1):
        result |= np.roll(mask, shift, 1)
    return result


def test_every_version_of_the_sample_models_is_available(client: vitrail.Client) -> None:
    available = {
        model.name: [each.version for each in model.versions if each.capabilities.gradient]
        for model in client.models()
    }

    assert available == {"efficientnet_lite0": [1], "silhouette_regressor": [1, 2]}


def test_espresso_is_found_in_the_cup(client: vitrail.Client) -> None:
    explanation = client.explain(
        COFFEE, model="efficientnet_lite0", method=vitrail.Occlusion(patch=32, stride=16)
    )

    [target] = explanation.targets
    assert target.label == "espresso"
    assert target.output > 0.5
    row, column = np.unravel_index(explanation.values[0].argmax(), (224, 224))
    assert 20 < row < 130, "the cup is in the upper middle"
    assert 60 < column < 170


def test_label_and_index_name_the_same_target(client: vitrail.Client) -> None:
    by_label = client.explain(COFFEE, model="efficientnet_lite0", targets=["espresso"])
    by_index = client.explain(COFFEE, model="efficientnet_lite0", targets=by_label.targets[0].index)

    np.testing.assert_array_equal(by_label.values, by_index.values)


@pytest.mark.parametrize("version", [1, 2])
def test_silhouette_regressor_measures_the_waist(
    client: vitrail.Client, figures: list[Silhouette], version: int
) -> None:
    for figure in figures:
        explanation = client.explain(figure.image, model="silhouette_regressor", version=version)

        assert explanation.model_version == version
        assert abs(explanation.targets[0].output - figure.waist_width) < 3, "centimetres"


@pytest.mark.parametrize("version", [1, 2])
def test_gradient_times_input_lands_on_the_torso(
    client: vitrail.Client, figures: list[Silhouette], version: int
) -> None:
    method = vitrail.Gradient(times_input=True, channel_reduction="SUM_ABS")
    shares = [
        share(
            client.explain(figure.image, model="silhouette_regressor", version=version, method=method).values[
                0
            ],
            figure.parts["torso"],
        )
        for figure in figures
    ]

    assert np.mean(shares) > 0.6, shares


def test_the_notebooks_occlusion_has_every_window_and_lands_on_the_torso(
    client: vitrail.Client, figures: list[Silhouette]
) -> None:
    shares = []
    for figure in figures[:2]:
        explanation = client.explain(figure.image, model="silhouette_regressor", method=NOTEBOOK)
        assert explanation.plan.window_grid.rows * explanation.plan.window_grid.columns == 1444
        assert explanation.plan.evaluations == 1445
        assert np.isfinite(explanation.values).all(), "the notebook leaves a NaN border"
        torso = grown(figure.parts["torso"], 6)
        shares.append(share(explanation.values[0], torso))
        assert torso[np.unravel_index(explanation.values[0].argmax(), torso.shape)], "the strongest window"

    assert np.mean(shares) > 0.4, f"{shares}, where the torso is a twentieth of the picture"


def test_raster_and_progressive_give_the_same_bits(client: vitrail.Client, figures: list[Silhouette]) -> None:
    raster, progressive = (
        client.explain(
            figures[0].image,
            model="silhouette_regressor",
            method=vitrail.Occlusion(patch=32, stride=16, order=order),
        )
        for order in get_args(Order)
    )

    assert_same(raster, progressive)


def test_company_does_not_change_a_map(client: vitrail.Client, figures: list[Silhouette]) -> None:
    """Many at once share batches; each map has the bits it has alone."""
    method = vitrail.Occlusion(patch=64, stride=32)
    images = [figure.image for figure in figures]
    alone = [client.explain(image, model="silhouette_regressor", method=method) for image in images]
    together = dict(client.explain_many(images, model="silhouette_regressor", method=method, in_flight=6))

    for position, explanation in enumerate(alone):
        result = together[position]
        assert isinstance(result, vitrail.Explanation)
        assert_same(result, explanation)


def test_occlusion_agrees_with_the_model_itself(client: vitrail.Client, figures: list[Silhouette]) -> None:
    """A brute-force loop over the SavedModel's own signature, one window at a time."""
    import tensorflow as tf

    image, patch = figures[0].image, 56
    explanation = client.explain(
        image, model="silhouette_regressor", version=2, method=vitrail.Occlusion(patch=patch, fill=0.5)
    )
    path = ROOT / "model_repository" / "silhouette_regressor" / "2" / "model.savedmodel"
    loaded = tf.saved_model.load(str(path))
    signature = loaded.signatures["serving_default"]

    def answer(x: NDArray[np.float32]) -> float:
        [output] = signature(tf.constant(x[None])).values()
        return float(output[0, 0])

    clean = answer(image)
    expected = np.zeros((224, 224), np.float32)
    for row in range(0, 224, patch):
        for column in range(0, 224, patch):
            hidden = image.copy()
            hidden[row : row + patch, column : column + patch] = 0.5
            expected[row : row + patch, column : column + patch] = clean - answer(hidden)

    scale = np.abs(expected).max()
    np.testing.assert_allclose(explanation.values[0], expected, atol=1e-5 * max(scale, abs(clean)))


def test_metrics_count_what_was_asked(
    client: vitrail.Client, served: Served, figures: list[Silhouette]
) -> None:
    before = _counted(served)
    client.explain(figures[0].image, model="silhouette_regressor", version=1)
    with pytest.raises(vitrail.InvalidArgument):
        client.explain(figures[0].image[:9], model="silhouette_regressor", version=1)
    after = _counted(served)

    assert after["complete"] - before["complete"] == 1
    assert after["invalid_argument"] - before["invalid_argument"] == 1


def _counted(served: Served) -> dict[str, float]:
    with urllib.request.urlopen(served.metrics_url) as response:
        lines = response.read().decode().splitlines()
    counts = {"complete": 0.0, "invalid_argument": 0.0}
    for line in lines:
        for outcome in counts:
            if line.startswith("vitrail_explanations_total") and f'outcome="{outcome}"' in line:
                counts[outcome] += float(line.rpartition(" ")[2])
    return counts


def test_paths_in_requests_lead_nowhere(client: vitrail.Client) -> None:
    for name in ("../model_repository/efficientnet_lite0", "/etc", "efficientnet_lite0/1", "..", "."):
        with pytest.raises(vitrail.NotFound, match="efficientnet_lite0"):
            client.explain(COFFEE, model=name)
