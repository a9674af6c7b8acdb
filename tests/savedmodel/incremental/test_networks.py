"""Whole networks: branches, cuts, several inputs and outputs, types, fills and edges."""

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from savedmodel.incremental.nets import (
    Tensor,
    all_windows,
    check,
    differences,
    grid_of,
    is_regional,
    kernel,
    net,
    numbers,
)
from vitrail_server.savedmodel.incremental.plan import LARGEST_REGION
from vitrail_server.savedmodel.passes import simplify

SIZE = (24, 20)


def convolved(x: Tensor, channels: int, seed: int = 1, stride: int = 1, size: int = 3) -> Tensor:
    return tf.nn.conv2d(x, kernel(size, size, x.shape[3], channels, seed=seed), stride, "SAME")


def scores(x: Tensor) -> Tensor:
    return tf.reduce_mean(x, [1, 2]) @ tf.constant(numbers(x.shape[3], 5, seed=9))


def test_a_residual_network() -> None:
    """Shortcuts see less of a window than what they are added to."""

    def predict(image: Tensor) -> Tensor:
        x = convolved(image, 6)
        for block in range(3):
            shortcut = convolved(x, 6, seed=20, stride=1 + block % 2, size=1)
            y = tf.nn.relu(convolved(x, 6, seed=2 + block, stride=1 + block % 2))
            x = convolved(y, 6, seed=5 + block) + shortcut
        return scores(x)

    plan = check(net(predict, SIZE), patch=(2, 2), every=True)

    assert is_regional(plan, "AddV2")
    assert any(len(step.crops) == 1 and step.node.op == "AddV2" for step in plan.steps)


def test_branches_that_are_joined() -> None:
    """As in Inception: towers of different reach, an average among them, and a pooling at the borders."""

    def predict(image: Tensor) -> Tensor:
        x = tf.nn.relu(convolved(image, 4, stride=1))
        towers = [
            convolved(x, 3, size=1),
            convolved(convolved(x, 3, size=1), 4, size=5),
            convolved(tf.nn.avg_pool2d(x, 3, 1, "SAME"), 2, size=1),
            tf.nn.max_pool2d(x, 3, 1, "SAME"),
        ]
        return scores(tf.nn.max_pool2d(tf.concat(towers, -1), 3, 2, "VALID"))

    plan = check(net(predict, SIZE), patch=(3, 2), every=True)

    assert is_regional(plan, "ConcatV2")
    assert is_regional(plan, "AvgPool")


def test_squeeze_and_excite_is_a_cut() -> None:
    def predict(image: Tensor) -> Tensor:
        x = tf.nn.relu(convolved(image, 6))
        squeezed = tf.sigmoid(tf.reduce_mean(x, [1, 2], keepdims=True) * 3)
        return scores(convolved(x * squeezed, 4))

    plan = check(net(predict, SIZE), patch=(3, 3), every=True)

    assert list(plan.cuts) == [plan.steps[-1].node.name]
    assert plan.steps[-1].node.op == "Relu"
    assert "Mean" in plan.obstacle


WHOLE: dict[str, Any] = {
    "Transpose": lambda x: tf.transpose(x, [0, 2, 1, 3]),
    "Reshape": lambda x: tf.reshape(tf.reshape(x, (-1, SIZE[0] * SIZE[1], 4)), tf.shape(x)),
    "ResizeNearestNeighbor": lambda x: tf.image.resize(x, (SIZE[0] * 2, SIZE[1] * 2), "nearest"),
    "MirrorPad": lambda x: tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]], "REFLECT"),
    "ReverseV2": lambda x: tf.concat([x, tf.reverse(x, [1])], -1),
    "ConcatV2": lambda x: tf.concat([x, x], 1),
    "AddV2": lambda x: x + tf.constant(numbers(*SIZE, 1)),
    "Mean": lambda x: x - tf.reduce_mean(x, [1, 2], keepdims=True),
    "Shape": lambda x: x * tf.cast(tf.shape(x)[1], tf.float32),
    "Split": lambda x: tf.split(x, 2, -1)[1],
    "Cumsum": lambda x: tf.cumsum(x, 1),
    "LRN": tf.nn.local_response_normalization,
    "Conv2DBackpropInput": lambda x: tf.nn.conv2d_transpose(
        x, kernel(3, 3, 2, 4), (tf.shape(x)[0], SIZE[0] * 2, SIZE[1] * 2, 2), 2
    ),
    "StridedSlice": lambda x: x[:, 1:],
}


@pytest.mark.parametrize("part", range(2))
def test_what_is_not_known_is_a_cut(part: int) -> None:
    operations = list(WHOLE)[part::2]

    def predict(image: Tensor) -> list[Tensor]:
        features = [tf.nn.relu(convolved(image, 4, seed=seed)) for seed in range(len(operations))]
        return [scores(convolved(WHOLE[each](x), 3)) for each, x in zip(operations, features, strict=True)]

    plan = check(net(predict, SIZE), patch=(4, 3))

    assert [each for each in operations if is_regional(plan, each)] == []
    assert sum(step.node.op == "Relu" for step in plan.steps) == len(operations)
    assert len(plan.cuts) == len(operations)


def test_a_loop_is_a_cut() -> None:
    def predict(image: Tensor) -> Tensor:
        return scores(tf.map_fn(tf.nn.relu, convolved(image, 4)))

    plan = check(net(predict, SIZE), patch=(4, 3))

    assert [step.node.op for step in plan.steps] == ["Conv2D"]


def test_an_image_that_is_only_needed_whole() -> None:
    """The cut is the image itself."""
    plan = check(net(lambda image: tf.reduce_max(image, [1, 2]), SIZE), patch=(4, 4), every=True)

    assert not plan.steps
    assert plan.gain == 1


def test_windows_that_hide_nearly_everything() -> None:
    plan = check(net(lambda image: scores(convolved(image, 4)), SIZE), patch=(23, 19), every=True)

    assert not plan.steps
    assert list(plan.cuts) == ["inputs_0"]


def test_from_a_certain_size_on_regions_are_put_together() -> None:
    """The map shrinks by strides until a region would be most of it."""

    def predict(image: Tensor) -> Tensor:
        x = image
        for layer in range(6):
            x = convolved(x, 4, seed=layer, stride=1 + layer % 2)
        return scores(x)

    plan = check(net(predict, (48, 40)), patch=(16, 16))

    assert 0 < len(plan.steps) < 6
    assert all(region.part <= LARGEST_REGION for region in plan.regions.values())
    assert plan.gain > 1


def test_several_outputs_one_of_them_a_map() -> None:
    def predict(image: Tensor) -> list[Tensor]:
        x = tf.nn.relu(convolved(image, 4))
        return [scores(x), x, tf.sigmoid(convolved(x, 1)), tf.argmax(scores(x), -1)]

    plan = check(net(predict, SIZE, simplify=simplify), patch=(3, 3), every=True)

    assert len(plan.cuts) == 2


def test_an_output_that_is_the_image_or_a_constant() -> None:
    check(net(lambda image: [image, scores(image)], SIZE), patch=(3, 3), every=True)


def test_further_inputs_are_taken_whole() -> None:
    """One is added to the features at every pixel, which makes a cut; another only before the scores."""

    def predict(image: Tensor, shift: Tensor, last: Tensor) -> Tensor:
        x = tf.nn.relu(convolved(image, 4))
        return scores(convolved(x + shift[:, None, None], 4)) + last

    plan = check(net(predict, SIZE, others={"shift": (4,), "last": (5,)}), patch=(3, 4), every=True)

    assert is_regional(plan, "Relu")
    assert not is_regional(plan, "AddV2")


@pytest.mark.parametrize(
    ("fill", "dtype"), [("channels", tf.float32), ("image", tf.uint8), ("constant", tf.float16)]
)
def test_fills_and_types(fill: str, dtype: Any) -> None:
    """Pixels may be bytes that the model scales itself."""

    def predict(image: Tensor) -> Tensor:
        x = (tf.cast(image, tf.float32) - 100) / 20
        return scores(tf.nn.relu(convolved(convolved(x, 6, stride=2), 4)))

    plan = check(net(predict, SIZE, dtype=dtype), patch=(4, 3), fill=fill, every=True)

    assert is_regional(plan, "Cast") == (dtype != tf.float32)
    assert is_regional(plan, "Conv2D")


@pytest.mark.parametrize(
    ("edge", "patch", "stride"),
    [
        ("CLIP", (5, 7), (5, 7)),
        ("SHIFT", (5, 7), (5, 7)),
        ("SHIFT", (5, 7), (2, 3)),
        ("CLIP", (1, 1), (1, 1)),
    ],
)
def test_edges_and_strides(edge: Any, patch: tuple[int, int], stride: tuple[int, int]) -> None:
    def predict(image: Tensor) -> Tensor:
        return scores(tf.nn.relu(convolved(convolved(image, 3), 3, stride=2)))

    check(net(predict, (13, 17)), patch=patch, stride=stride, edge=edge, every=True)


def test_the_clean_image_is_a_window_that_shows_the_image() -> None:
    tested = net(lambda image: scores(tf.nn.relu(convolved(image, 4))), SIZE)
    plan = tested.plan(grid_of(SIZE, (4, 4), (4, 4)))
    nothing = np.zeros((2, 4), np.int32)
    subject = tested.subject()

    assert differences(tested.incrementally(plan, subject, nothing), tested.fully(subject, nothing)) < 1e-6


def test_rows_do_not_depend_on_their_company() -> None:
    """Any order of the windows, and an image with another fill, through the same functions."""
    tested = net(lambda image: scores(tf.nn.relu(convolved(image, 4))), SIZE)
    grid = grid_of(SIZE, (4, 4), (4, 4))
    windows = all_windows(grid)
    shuffled = np.random.default_rng(0).permutation(len(windows))
    evaluator = tested.evaluator(tested.plan(grid))
    for seed in (1, 2):
        subject = tested.subject("image", seed)
        tables = evaluator.tables(subject)
        here = evaluator.outputs(tables, subject, windows, ["output_0"])["output_0"]
        there = evaluator.outputs(tables, subject, windows[shuffled], ["output_0"])["output_0"]
        assert np.allclose(here[shuffled], there, rtol=1e-5, atol=1e-6)
        assert differences({"output_0": here}, tested.fully(subject, windows)) <= 1e-5  # type: ignore[dict-item]


def test_a_network_whose_graph_was_simplified() -> None:
    """Batch norms folded into kernels, pads into convolutions."""

    def predict(image: Tensor) -> Tensor:
        x = tf.pad(image, [[0, 0], [0, 1], [0, 1], [0, 0]])
        x = tf.nn.conv2d(x, kernel(3, 3, 3, 6), 2, "VALID") * numbers(6) + numbers(6, seed=3)
        x = tf.nn.depthwise_conv2d(tf.nn.relu6(x), kernel(3, 3, 6, 1), (1, 1, 1, 1), "SAME") * numbers(6)
        return scores(tf.nn.relu(x + numbers(6, seed=4)))

    plan = check(net(predict, SIZE, simplify=simplify), patch=(4, 4), every=True)

    assert is_regional(plan, "DepthwiseConv2dNative")
    assert not is_regional(plan, "Mul")
