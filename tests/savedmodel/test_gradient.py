"""Gradients of loaded models, against formulas and against finite differences."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray

from saved_models import IMAGE, OFFSETS, SUMS, Floats, numbers
from savedmodel import reference
from savedmodel.conftest import Load, Saved
from vitrail.errors import FailedPrecondition
from vitrail_server.servable import Servable
from vitrail_server.work import GradientRows, Kind, Objective, Result, Subject

LINEAR = numbers(5, 7, 3, 2)
BIAS = numbers(2, seed=2)


def gradient_rows(
    image: NDArray[np.generic],
    *targets: int,
    output: str = "y",
    objective: Objective = Objective.OUTPUT,
    values: tuple[float, ...] = (),
    **inputs: Floats,
) -> GradientRows:
    return GradientRows(
        Subject(image, inputs),
        output,
        np.array(targets, np.int32),
        objective,
        np.array(values or [0.0] * len(targets), np.float32),
    )


def computed(model: Servable, *parts: GradientRows) -> list[tuple[Floats, Floats]]:
    """Return outputs and gradients of each part."""
    height, width, _ = parts[0].subject.image.shape
    return [_pair(each) for each in model.program(Kind.GRADIENT, (height, width)).execute(parts)]


def _pair(result: Result) -> tuple[Floats, Floats]:
    assert result.gradients is not None
    assert result.outputs.dtype == result.gradients.dtype == np.float32
    return result.outputs, result.gradients


@pytest.mark.parametrize("channels", [1, 3])
def test_the_gradient_of_a_linear_model_is_its_weights(saved: Saved, load: Load, channels: int) -> None:
    weights = LINEAR[:, :, :channels]
    model = load(saved("linear", weights, BIAS))
    image = numbers(5, 7, channels, seed=3)
    ((outputs, gradients),) = computed(model, gradient_rows(image, 1, 0))
    np.testing.assert_allclose(gradients, np.moveaxis(weights, -1, 0)[[1, 0]], rtol=1e-6)
    y = np.tensordot(image.astype(np.float64), weights.astype(np.float64), 3) + BIAS
    np.testing.assert_allclose(outputs, [y, y], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("column", [False, True])
def test_the_gradient_of_a_quadratic_model_is_2ax(saved: Saved, load: Load, column: bool) -> None:
    """Whether its scalar head is (N,) or (N, 1)."""
    coefficients = numbers(5, 7, 1)
    model = load(saved("quadratic", coefficients, column=column))
    image = numbers(5, 7, 1, seed=3)
    ((outputs, gradients),) = computed(model, gradient_rows(image, 0))
    np.testing.assert_allclose(gradients[0], 2 * coefficients * image, rtol=1e-6)
    np.testing.assert_allclose(outputs, [[(coefficients * image**2).sum()]], rtol=1e-5)


def test_the_gradient_of_a_squared_error_is_twice_the_residual_times_the_output_s(
    saved: Saved, load: Load
) -> None:
    model = load(saved("linear", LINEAR, BIAS))
    image = numbers(5, 7, 3, seed=3)
    y = np.tensordot(image, LINEAR, 3) + BIAS
    rows = gradient_rows(image, 0, 1, objective=Objective.SQUARED_ERROR, values=(y[0] - 1.5, y[1] + 0.25))
    ((_, gradients),) = computed(model, rows)
    np.testing.assert_allclose(gradients[0], 2 * 1.5 * LINEAR[..., 0], rtol=1e-5)
    np.testing.assert_allclose(gradients[1], -2 * 0.25 * LINEAR[..., 1], rtol=1e-4)


def test_the_gradient_of_a_cross_entropy_is_minus_the_probability_s_over_the_probability(
    saved: Saved, load: Load
) -> None:
    model = load(saved("convolutional"))
    image = numbers(12, 10, 3, seed=3)
    loss = gradient_rows(image, 2, output="probabilities", objective=Objective.CROSS_ENTROPY)
    (outputs, gradients), (_, plain) = computed(model, loss, gradient_rows(image, 2, output="probabilities"))
    np.testing.assert_allclose(gradients[0], -plain[0] / outputs[0, 2], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
    ("output", "function"), [("logits", reference.logits), ("probabilities", reference.probabilities)]
)
def test_the_gradient_of_a_network_is_its_finite_difference(
    saved: Saved, load: Load, output: str, function: Callable[[reference.Doubles], reference.Doubles]
) -> None:
    model = load(saved("convolutional"))
    image = numbers(12, 10, 3, seed=3)
    ((outputs, gradients),) = computed(model, gradient_rows(image, 0, 1, 2, 3, output=output))
    np.testing.assert_allclose(outputs[0], function(image.astype(np.float64)), rtol=1e-5, atol=1e-6)
    for pixel in [(0, 0, 0), (11, 9, 2), (5, 0, 1), (3, 7, 2), (6, 4, 0)]:
        expected = reference.differences(function, image.astype(np.float64), pixel)
        np.testing.assert_allclose(
            gradients[:, *pixel], expected, rtol=1e-4, atol=1e-6 * np.abs(gradients).max()
        )


def test_a_rank_names_the_element_with_that_place(saved: Saved, load: Load) -> None:
    weights = np.zeros((1, 3, 1, 4), np.float32)
    weights[0, :, 0, :] = [[1, 0, 0, 3], [0, 2, 0, 0], [0, 0, 2, 0]]
    model = load(saved("linear", weights, np.zeros(4, np.float32)))
    image = np.ones((1, 3, 1), np.float32)
    ((outputs, gradients),) = computed(model, gradient_rows(image, -1, -2, -3, -4))
    assert outputs[0].tolist() == [1, 2, 2, 3]
    assert gradients[:, 0, :, 0].tolist() == [[3, 0, 0], [0, 2, 0], [0, 0, 2], [1, 0, 0]], "ties: lower first"


def test_ranks_are_found_per_row(saved: Saved, load: Load) -> None:
    model = load(saved("linear", LINEAR, np.zeros(2, np.float32)))
    first = numbers(5, 7, 3, seed=3)
    tops = [int(np.argmax(np.tensordot(image, LINEAR, 3))) for image in (first, -first)]
    assert tops[0] != tops[1]
    (_, one), (_, other) = computed(model, gradient_rows(first, -1), gradient_rows(-first, -1))
    np.testing.assert_allclose(one[0], LINEAR[..., tops[0]], rtol=1e-6)
    np.testing.assert_allclose(other[0], LINEAR[..., tops[1]], rtol=1e-6)


def test_nan_ranks_last(saved: Saved, load: Load) -> None:
    model = load(saved("not_a_number"))
    image = np.ones(IMAGE, np.float32)
    ((outputs, gradients),) = computed(model, gradient_rows(image, -1, -2))
    assert np.isnan(outputs[:, 0]).all()
    assert (gradients[0] == 1).all()
    assert (gradients[1] == 0).all()


def test_a_batch_may_mix_runs_outputs_targets_and_objectives(saved: Saved, load: Load) -> None:
    """Every row has the bits that it has alone, padded or full, and in another order."""
    model = load(saved("convolutional"))
    image, other = numbers(12, 10, 3, seed=3), numbers(12, 10, 3, seed=4)
    parts = [
        gradient_rows(image, 3, output="logits"),
        gradient_rows(other, -1, output="probabilities"),
        gradient_rows(image, 0, output="probabilities", objective=Objective.CROSS_ENTROPY),
        gradient_rows(other, 2, output="logits", objective=Objective.SQUARED_ERROR, values=(0.5,)),
    ]
    assert model.program(Kind.GRADIENT, (12, 10)).batch_size >= len(parts)
    together = computed(model, *parts)
    backwards = computed(model, *parts[::-1])[::-1]
    alone = [computed(model, part)[0] for part in parts]
    for each, reversed_, lonely in zip(together, backwards, alone, strict=True):
        for one, two, three in zip(each, reversed_, lonely, strict=True):
            np.testing.assert_array_equal(one, two)
            np.testing.assert_array_equal(one, three)


def test_further_inputs_are_those_of_each_row(saved: Saved, load: Load) -> None:
    model = load(saved("two_inputs"))
    image = numbers(*IMAGE, seed=3)
    offsets = [np.array([1, 0], np.float32), np.array([0, 2], np.float32)]
    results = computed(model, *(gradient_rows(image, 1, a_offset=offset) for offset in offsets))
    for offset, (outputs, gradients) in zip(offsets, results, strict=True):
        np.testing.assert_allclose(
            outputs[0], np.tensordot(image, SUMS, 3) + offset @ OFFSETS, rtol=1e-5, atol=1e-5
        )
        np.testing.assert_allclose(gradients[0], SUMS[..., 1], rtol=1e-6)


@pytest.mark.parametrize(("output", "factor", "relative"), [("half", 1 / 64, 2e-3), ("double", 2.0, 1e-6)])
def test_outputs_of_other_precisions_have_gradients(
    saved: Saved, load: Load, output: str, factor: float, relative: float
) -> None:
    model = load(saved("many_outputs"))
    ((outputs, gradients),) = computed(model, gradient_rows(numbers(*IMAGE, seed=3), 1, output=output))
    expected = factor * np.tensordot(numbers(*IMAGE, seed=3), SUMS, 3)
    np.testing.assert_allclose(outputs[0], expected, rtol=relative, atol=1e-5)
    np.testing.assert_allclose(gradients[0], factor * SUMS[..., 1], rtol=relative)


def test_a_dense_output_is_explained_element_by_element(saved: Saved, load: Load) -> None:
    """Element 8 of the map (5, 7) is the pixel in row 1, column 1."""
    model = load(saved("many_outputs"))
    assert model.description.output_elements["map"] == 35
    ((outputs, gradients),) = computed(model, gradient_rows(numbers(*IMAGE, seed=3), 8, output="map"))
    np.testing.assert_allclose(outputs[0].reshape(5, 7), numbers(*IMAGE, seed=3).sum(-1), rtol=1e-5)
    expected = np.zeros(IMAGE)
    expected[1, 1] = 1
    np.testing.assert_array_equal(gradients[0], expected)


def test_a_whole_number_beside_other_outputs_is_refused_by_name(saved: Saved, load: Load) -> None:
    model = load(saved("many_outputs"))
    with pytest.raises(FailedPrecondition, match=r"output 'count' does not hold.*explain double, half, map"):
        computed(model, gradient_rows(numbers(*IMAGE), 0, output="count"))


@pytest.mark.parametrize(
    ("dtype", "relative"), [(tf.float16, 2e-3), (tf.float64, 1e-6)], ids=["float16", "float64"]
)
def test_images_of_other_precisions_have_float32_gradients(
    saved: Saved, load: Load, dtype: tf.DType, relative: float
) -> None:
    model = load(saved("linear", LINEAR, BIAS, dtype=dtype))
    image = numbers(5, 7, 3, seed=3).astype(dtype.as_numpy_dtype)
    ((_, gradients),) = computed(model, gradient_rows(image, 1))
    np.testing.assert_allclose(gradients[0], LINEAR[..., 1], rtol=relative, atol=1e-4)


def test_a_fixed_batch_is_filled_up(saved: Saved, load: Load) -> None:
    model = load(saved("linear", LINEAR, BIAS, batch=4))
    program = model.program(Kind.GRADIENT, (5, 7))
    assert (program.batch_size, program.halve()) == (4, False)
    ((_, gradients),) = computed(model, gradient_rows(numbers(5, 7, 3, seed=3), 0))
    np.testing.assert_allclose(gradients[0], LINEAR[..., 0], rtol=1e-6)


def test_images_in_a_dependent_batch_keep_their_own_gradients(saved: Saved, load: Load) -> None:
    """Run one at a time: in a batch, the statistics of one image would lead to another."""
    model = load(saved("batch_normalised"))
    program = model.program(Kind.GRADIENT, (5, 7))
    assert program.batch_size == 1
    image = numbers(*IMAGE, seed=3).astype(np.float64)

    def predict(image: reference.Doubles) -> reference.Doubles:
        mean, variance = image.mean((0, 1)), image.var((0, 1))
        return np.asarray(np.tensordot((image - mean) / np.sqrt(variance + 1e-3), SUMS.astype(np.float64), 3))

    results = [computed(model, gradient_rows(image.astype(np.float32), k))[0] for k in range(3)]
    gradients = np.concatenate([gradient for _, gradient in results])
    np.testing.assert_allclose(results[0][0][0], predict(image), rtol=1e-5, atol=1e-5)
    for pixel in [(0, 0, 0), (4, 6, 2), (2, 3, 1)]:
        expected = reference.differences(predict, image, pixel)
        np.testing.assert_allclose(gradients[:, *pixel], expected, rtol=1e-4, atol=1e-5)


def test_a_model_without_gradient_says_why(swish: Path, load: Load) -> None:
    model = load(swish)
    with pytest.raises(FailedPrecondition, match="custom gradients"):
        model.program(Kind.GRADIENT, (5, 7))
