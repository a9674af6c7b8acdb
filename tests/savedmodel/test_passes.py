"""The passes: each computes the same with fewer operations, and leaves alone what it does not understand."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from saved_models import numbers
from vitrail_server.savedmodel import passes
from vitrail_server.savedmodel.flat import FlatGraph
from vitrail_server.savedmodel.flatten import flatten
from vitrail_server.savedmodel.functions import flat_forward
from vitrail_server.savedmodel.passes import (
    bias_adds,
    fold_constants,
    fold_pads,
    fold_scales,
    simplify,
    skip_identities,
    spell_out_batch_norms,
)

KERNEL = numbers(3, 3, 3, 4)
DEPTHWISE = numbers(3, 3, 3, 2)
VECTOR = numbers(4, seed=2)
SIX = numbers(6, seed=3)

Pass = Callable[[FlatGraph], FlatGraph]


def convolved(image: Any, kernel: Any = KERNEL, padding: Any = "SAME", stride: int = 1) -> Any:
    return tf.nn.conv2d(image, kernel, stride, padding)


def rewritten(predict: Any, *applied: Pass) -> tuple[FlatGraph, FlatGraph]:
    """Return the graph of a function of images before and after the passes, which must agree."""
    spec = tf.TensorSpec((None, 7, 6, 3), tf.float32)
    concrete = tf.function(predict, autograph=False).get_concrete_function(spec)
    before = after = skip_identities(flatten(concrete)).needed()
    for each in applied:
        after = each(after).needed()
    image = tf.constant(numbers(2, 7, 6, 3, seed=5))
    [found] = flat_forward(after, ["image"], ["y"]).concrete(image)
    [expected] = tf.nest.flatten(concrete(image))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    return before, after


def operations(graph: FlatGraph) -> list[str]:
    return sorted(node.op for node in graph.nodes.values() if node.op != "Placeholder")


@pytest.mark.parametrize(
    ("predict", "left"),
    [
        (lambda image: image * tf.math.rsqrt(tf.constant(VECTOR[:3] ** 2) + 0.1), ["Mul"]),
        (lambda image: image + tf.split(tf.exp(tf.constant(SIX)), 2)[1], ["AddV2"]),
        # What came out larger than anything there is would only take memory.
        (lambda image: image[:, 0, 0, :1] + tf.fill((1, passes.LARGEST_FOLDED), tf.constant(2.0)), None),
        (lambda image: image + tf.random.stateless_uniform((3,), (1, 2)) * tf.random.uniform((3,)), None),
    ],
)
def test_constants_are_computed_once(predict: Any, left: list[str] | None) -> None:
    if left is None:
        spec = tf.TensorSpec((None, 7, 6, 3), tf.float32)
        graph = flatten(tf.function(predict, autograph=False).get_concrete_function(spec))
        remaining = operations(fold_constants(graph).needed())
        assert {"Fill", "RandomUniform"} & set(remaining)
    else:
        assert operations(rewritten(predict, fold_constants)[1]) == left


@pytest.mark.parametrize("shape", [None, (None, 3)])
def test_lists_of_tensors_stay_while_the_numbers_beside_them_are_computed(shape: Any) -> None:
    def predict(image: Any) -> Any:
        scale = tf.math.rsqrt(tf.constant(VECTOR[:3] ** 2) + 0.1)
        each = tf.TensorArray(tf.float32, 3, element_shape=shape)
        _, each = tf.while_loop(
            lambda row, _: row < 3, lambda row, to: (row + 1, to.write(row, image[:, row, 0])), (0, each)
        )
        return each.stack() * scale

    before, after = rewritten(predict, fold_constants)
    assert "Rsqrt" in operations(before)
    assert "Rsqrt" not in operations(after)
    assert "TensorListReserve" in operations(after)


def test_identities_are_skipped_also_in_a_row_and_before_an_output() -> None:
    before, after = rewritten(lambda image: tf.identity(tf.stop_gradient(tf.identity(image) * 2)))
    assert operations(before) == operations(after) == ["Mul"]


@pytest.mark.parametrize(
    "constant", [VECTOR, VECTOR[None, None, None], np.full(1, 3, np.float32), np.float32(3)]
)
def test_a_vector_added_to_a_convolution_is_its_bias(constant: Any) -> None:
    for predict in (lambda image: convolved(image) + constant, lambda image: constant + convolved(image)):
        assert operations(rewritten(predict, bias_adds)[1]) == ["BiasAdd", "Conv2D"]


def test_a_vector_taken_from_a_convolution_is_its_bias_but_not_the_other_way_round() -> None:
    assert operations(rewritten(lambda image: convolved(image) - VECTOR, bias_adds)[1]) == [
        "BiasAdd",
        "Conv2D",
    ]
    assert operations(rewritten(lambda image: VECTOR - convolved(image), bias_adds)[1]) == ["Conv2D", "Sub"]


def test_two_biases_are_one_unless_the_first_is_used_twice() -> None:
    _, after = rewritten(lambda image: tf.nn.bias_add(convolved(image), VECTOR) + VECTOR, bias_adds)
    assert operations(after) == ["BiasAdd", "Conv2D"]

    def twice(image: Any) -> Any:
        biased = tf.nn.bias_add(convolved(image), VECTOR)
        return tf.nn.relu(biased) * (biased + VECTOR)

    assert operations(rewritten(twice, bias_adds)[1]) == ["BiasAdd", "BiasAdd", "Conv2D", "Mul", "Relu"]


@pytest.mark.parametrize(
    "added",
    [numbers(6, 4), numbers(7, 1, 1), numbers(2, 1, 1, 4)],
    ids=["per pixel", "per row", "per image"],
)
def test_what_is_not_a_vector_is_added_as_before(added: Any) -> None:
    assert operations(rewritten(lambda image: convolved(image) + added, bias_adds)[1]) == [
        "AddV2",
        "Conv2D",
    ]


def test_a_vector_added_to_something_else_is_added_as_before() -> None:
    assert operations(rewritten(lambda image: tf.nn.relu(image) + VECTOR[:3], bias_adds)[1]) == [
        "AddV2",
        "Relu",
    ]


@pytest.mark.parametrize(
    ("predict", "left"),
    [
        (lambda image: convolved(image) * VECTOR, ["Conv2D"]),
        (lambda image: VECTOR * convolved(image), ["Conv2D"]),
        (lambda image: convolved(image) * 3.0, ["Conv2D"]),
        (lambda image: tf.nn.bias_add(convolved(image), VECTOR) * VECTOR, ["BiasAdd", "Conv2D"]),
        (lambda image: convolved(image) * VECTOR * VECTOR, ["Conv2D"]),
        (
            lambda image: tf.nn.depthwise_conv2d(image, DEPTHWISE, [1, 1, 1, 1], "SAME") * SIX,
            ["DepthwiseConv2dNative"],
        ),
        (lambda image: (tf.reduce_mean(image, [1, 2]) @ KERNEL[0, 0]) * VECTOR, ["MatMul", "Mean"]),
        (
            lambda image: (
                tf.linalg.matmul(tf.reduce_mean(image, [1, 2]), KERNEL[0, 0].T, transpose_b=True) * VECTOR
            ),
            ["MatMul", "Mean"],
        ),
        # Not per channel.
        (lambda image: convolved(image) * numbers(6, 1), ["Conv2D", "Mul"]),
    ],
)
def test_a_factor_per_channel_becomes_part_of_the_kernel(predict: Any, left: list[str]) -> None:
    assert operations(rewritten(predict, fold_scales)[1]) == left


def test_a_convolution_that_something_else_needs_keeps_its_kernel() -> None:
    def shared(image: Any) -> Any:
        features = convolved(image)
        return features * VECTOR + tf.nn.relu(features)

    assert operations(rewritten(shared, fold_scales)[1]) == ["AddV2", "Conv2D", "Mul", "Relu"]

    def biased(image: Any) -> Any:
        features = convolved(image)
        return tf.nn.bias_add(features, VECTOR) * VECTOR + tf.nn.relu(features)

    assert operations(rewritten(biased, fold_scales)[1]) == ["AddV2", "BiasAdd", "Conv2D", "Mul", "Relu"]


def test_one_kernel_of_two_convolutions_is_scaled_for_each_alone() -> None:
    def siamese(image: Any) -> Any:
        kernel = tf.constant(KERNEL)
        return convolved(image, kernel) * VECTOR + convolved(-image, kernel)

    _, after = rewritten(siamese, fold_scales)
    assert operations(after) == ["AddV2", "Conv2D", "Conv2D", "Neg"]


def batch_norm(x: Any, training: bool = False) -> Any:
    statistics = tf.constant(VECTOR), tf.constant(VECTOR + 1), tf.constant(VECTOR), tf.constant(VECTOR**2)
    return tf.compat.v1.nn.fused_batch_norm(x, *statistics, epsilon=0.01, is_training=training)[0]


def test_a_batch_norm_after_a_convolution_becomes_part_of_it() -> None:
    _, after = rewritten(
        lambda image: batch_norm(convolved(image)), spell_out_batch_norms, bias_adds, fold_scales, bias_adds
    )
    assert operations(after) == ["BiasAdd", "Conv2D"]


def test_a_batch_norm_elsewhere_stays() -> None:
    _, after = rewritten(
        lambda image: batch_norm(tf.nn.relu(convolved(image))), spell_out_batch_norms, fold_scales
    )
    assert operations(after) == ["Conv2D", "FusedBatchNormV3", "Relu"]


def test_a_batch_norm_in_training_stays() -> None:
    _, after = rewritten(lambda image: batch_norm(convolved(image), training=True), spell_out_batch_norms)
    assert operations(after) == ["Conv2D", "FusedBatchNormV3"]


def padded(image: Any, *paddings: tuple[int, int], value: float = 0) -> Any:
    return tf.pad(image, [(0, 0), *paddings, (0, 0)], constant_values=value)


@pytest.mark.parametrize(
    "predict",
    [
        lambda image: convolved(padded(image, (1, 2), (0, 3)), padding="VALID"),
        lambda image: convolved(padded(image, (1, 2), (0, 3)), padding="VALID", stride=2),
        lambda image: convolved(padded(image, (1, 0), (0, 1)), padding=[(0, 0), (1, 1), (2, 0), (0, 0)]),
    ],
)
def test_a_convolution_pads_for_itself(predict: Any) -> None:
    before, after = rewritten(predict, fold_pads)
    assert operations(before) == ["Conv2D", "Pad"]
    assert operations(after) == ["Conv2D"]


@pytest.mark.parametrize(
    "predict",
    [
        lambda image: convolved(padded(image, (1, 2), (0, 3)), padding="SAME"),
        lambda image: convolved(padded(image, (1, 2), (0, 3), value=1), padding="VALID"),
        lambda image: convolved(tf.pad(image, [(0, 1), (0, 1), (0, 0), (0, 0)]), padding="VALID"),
        lambda image: tf.nn.depthwise_conv2d(padded(image, (1, 2), (0, 3)), DEPTHWISE, [1, 1, 1, 1], "VALID"),
        lambda image: convolved(tf.pad(image, [(0, 0), (1, 1), (1, 1), (0, 0)], "REFLECT"), padding="VALID"),
    ],
    ids=["size unknown", "not zero", "batch", "depthwise", "mirrored"],
)
def test_other_paddings_stay(predict: Any) -> None:
    before, after = rewritten(predict, fold_pads)
    assert operations(before) == operations(after)


def test_together_they_leave_a_keras_block_as_three_operations() -> None:
    """As Keras exports it: a batch normalisation of a dozen operations, and a layer that pads."""
    gamma, beta, mean, variance = (tf.Variable(numbers(6, seed=seed) ** 2) for seed in range(4))

    def block(image: Any) -> Any:
        features = tf.nn.depthwise_conv2d(image, DEPTHWISE, [1, 1, 1, 1], "SAME")
        scale = tf.math.rsqrt(variance + 0.001) * gamma
        return tf.identity(tf.nn.relu6(features * scale + (beta - mean * scale)))

    _, after = rewritten(block, simplify)
    assert operations(after) == ["BiasAdd", "DepthwiseConv2dNative", "Relu6"]
