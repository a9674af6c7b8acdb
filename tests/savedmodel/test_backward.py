"""The passes over a gradient: every output keeps its bits, and every slope its value, with less work."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from saved_models import numbers
from savedmodel.conftest import DeviceThread, Saved, load_model
from vitrail_server.savedmodel import backward, backward_convolutions, prepared
from vitrail_server.savedmodel.backward import cheapen
from vitrail_server.savedmodel.flat import FlatGraph
from vitrail_server.savedmodel.flatten import flatten
from vitrail_server.savedmodel.functions import flat_gradient
from vitrail_server.savedmodel.loader import LoadedModel
from vitrail_server.savedmodel.prepared import ConstantsReader, pack

HEIGHT, WIDTH, CHANNELS, MAPS = 9, 8, 3, 4
KERNEL = numbers(3, 3, CHANNELS, MAPS)
FACTOR, OFFSET = numbers(MAPS, seed=2), numbers(MAPS, seed=3)

Network = Callable[[Any], Any]


def convolved(
    image: Any, kernel: Any = KERNEL, padding: Any = "SAME", stride: int = 1, reach: int = 1
) -> Any:
    return tf.nn.conv2d(image, kernel, stride, padding, dilations=reach)


def scaled(maps: Any) -> Any:
    """Return a batch normalisation as Keras exports it, and a nonlinearity."""
    return tf.nn.relu6(maps * tf.constant(FACTOR) + tf.constant(OFFSET))


def cheapened(network: Network, *, free: bool = False) -> tuple[FlatGraph, FlatGraph]:
    """Return the graph of a network's output and gradient before and after the passes, which must agree.

    The size of the image is `free` or fixed.
    """

    def explain(image: Any) -> list[Any]:
        with tf.GradientTape() as tape:
            tape.watch(image)
            y = tf.reshape(network(image), (tf.shape(image)[0], -1))
            score = tf.reduce_sum(y * tf.cast(tf.range(tf.shape(y)[1]), y.dtype), 1)
        return [y, tape.gradient(score, image)]

    spec = tf.TensorSpec((None, *((None, None) if free else (HEIGHT, WIDTH)), CHANNELS), tf.float32)
    graph = flatten(tf.function(explain, autograph=False).get_concrete_function(spec))
    after = cheapen(graph)
    image = tf.constant(numbers(2, HEIGHT, WIDTH, CHANNELS, seed=5))
    (y, *_, slopes), (same_y, *_, same_slopes) = (
        [each.numpy() for each in flat_gradient(each, ["image"], ["y"], ["y"]).concrete(image)]
        for each in (graph, after)
    )
    assert y.tobytes() == same_y.tobytes()
    np.testing.assert_allclose(same_slopes, slopes, rtol=0, atol=2e-6 * np.abs(slopes).max())
    assert np.abs(slopes).max() > 0
    return graph, after


def count(graph: FlatGraph, *operations: str) -> Sequence[int]:
    found = [node.op for node in graph.nodes.values()]
    return [found.count(each) for each in operations]


@pytest.mark.parametrize(
    "network",
    [
        lambda image: convolved(image),
        lambda image: convolved(image, padding="VALID"),
        lambda image: convolved(image, numbers(2, 4, CHANNELS, MAPS)),
        lambda image: convolved(image, numbers(1, 1, CHANNELS, MAPS)),
        lambda image: convolved(image, numbers(5, 2, CHANNELS, MAPS), "VALID"),
        lambda image: convolved(image, padding=[[0, 0], [2, 1], [0, 2], [0, 0]]),
        lambda image: convolved(image, reach=2),
        lambda image: convolved(image, numbers(2, 3, CHANNELS, MAPS), "VALID", reach=3),
    ],
)
def test_the_derivative_of_a_convolution_becomes_a_convolution(network: Network) -> None:
    before, after = cheapened(network)
    assert count(before, "Conv2D", "Conv2DBackpropInput") == [1, 1]
    assert count(after, "Conv2D", "Conv2DBackpropInput") == [2, 0]


@pytest.mark.parametrize("padding", ["SAME", "VALID", [[0, 0], [1, 2], [0, 1], [0, 0]]])
@pytest.mark.parametrize(
    ("size", "stride"), [((3, 3), 2), ((7, 5), 2), ((2, 3), 2), ((4, 4), 3), ((3, 7), 4)]
)
def test_the_derivative_by_an_image_becomes_a_convolution_too(
    padding: Any, size: tuple[int, int], stride: int
) -> None:
    """Where the kernel's positions leave no pixel out."""
    kernel = numbers(*size, CHANNELS, MAPS)
    _, after = cheapened(lambda image: convolved(image, kernel, padding, stride))
    covered = all(-(-each // stride) * stride >= each + stride - 1 for each in size)
    assert count(after, "DepthToSpace", "Conv2DBackpropInput") == [int(covered), int(not covered)]


@pytest.mark.parametrize(("padding", "left"), [("VALID", 0), ("SAME", 1)])
def test_where_an_image_of_any_size_is_padded_depends_on_it(padding: str, left: int) -> None:
    _, after = cheapened(lambda image: convolved(image, padding=padding, stride=2), free=True)
    assert count(after, "Conv2DBackpropInput") == [left]


@pytest.mark.parametrize(
    "network",
    [
        # Of a map with more channels than an image has.
        lambda image: convolved(tf.tile(image, (1, 1, 1, 2)), numbers(3, 3, CHANNELS * 2, MAPS), stride=2),
        lambda image: convolved(image, numbers(3, 3, 1, CHANNELS * 2), stride=2),
        lambda image: tf.nn.conv2d(image, KERNEL, (2, 1), "SAME"),
        lambda image: convolved(image, numbers(3, 3, 1, CHANNELS * 2)),  # in groups of one channel
        # The other convolution would have to leave out rows that this one made up.
        lambda image: convolved(image, padding=[[0, 0], [3, 0], [0, 0], [0, 0]]),
    ],
)
def test_other_derivatives_of_convolutions_stay(network: Network) -> None:
    _, after = cheapened(network)
    assert count(after, "Conv2DBackpropInput") == [1]


@pytest.mark.parametrize(
    ("network", "derivatives"),
    [
        (lambda image: scaled(convolved(image)), 0),
        (lambda image: scaled(convolved(image, stride=2)), 0),
        (lambda image: tf.nn.relu(convolved(image) * 3.0), 0),
        (lambda image: tf.nn.depthwise_conv2d(image, KERNEL[..., :2], [1] * 4, "SAME") * numbers(6), 1),
    ],
)
def test_a_scale_moves_into_the_kernel_of_the_derivative(network: Network, derivatives: int) -> None:
    before, after = cheapened(network)
    [products], [remaining] = (count(each, "Mul") for each in (before, after))
    assert remaining == products - 1
    assert (
        sum(count(after, backward_convolutions.CONVOLUTION, backward_convolutions.DEPTHWISE)) == derivatives
    )


@pytest.mark.parametrize(
    "network",
    [
        lambda image: convolved(image) * numbers(HEIGHT, WIDTH, MAPS),  # another one for each pixel
        lambda image: convolved(image) * convolved(image),
        lambda image: convolved(image) * numbers(WIDTH, 1),  # another one for each column
    ],
)
def test_what_is_not_one_factor_per_channel_stays(network: Network) -> None:
    before, after = cheapened(network)
    assert count(before, "Mul") == count(after, "Mul")


def test_a_scale_of_two_branches_moves_into_both_kernels() -> None:
    def branches(image: Any) -> Any:
        both = [convolved(image), convolved(image, numbers(1, 1, CHANNELS, MAPS))]
        return tf.add_n(both) * tf.constant(FACTOR)

    before, after = cheapened(branches)
    [products], [remaining] = (count(each, "Mul") for each in (before, after))
    assert remaining == products - 1


def test_slopes_that_are_needed_elsewhere_keep_their_scale() -> None:
    """Through the sum the image has slopes of its own."""

    def branches(image: Any) -> Any:
        both = [convolved(image, numbers(1, 1, CHANNELS, CHANNELS)), image]
        return tf.add_n(both) * tf.constant(FACTOR[:CHANNELS])

    before, after = cheapened(branches)
    assert count(before, "Mul") == count(after, "Mul")


@pytest.mark.parametrize("training", [False, True])
def test_a_batch_normalisation_of_an_exported_model_is_a_product(training: bool) -> None:
    def network(image: Any) -> Any:
        normalised, *_ = tf.compat.v1.nn.fused_batch_norm(
            convolved(image),
            FACTOR,
            OFFSET,
            None if training else OFFSET,
            None if training else np.abs(FACTOR),
            is_training=training,
        )
        return tf.nn.relu(normalised)

    before, after = cheapened(network)
    assert count(before, backward.BATCH_NORM) == [1]
    assert count(after, backward.BATCH_NORM) == [int(training)]
    if not training:
        assert count(after, "Conv2DBackpropInput") == [0]


def test_a_transposed_convolution_of_the_forward_half_stays() -> None:
    """Though it is the derivative of a convolution: what is turned round differs in the last bits."""

    def network(image: Any) -> Any:
        maps = scaled(convolved(image, stride=2))
        shape = tf.stack([tf.shape(image)[0], HEIGHT, WIDTH, CHANNELS])
        return tf.nn.conv2d_transpose(
            tf.nn.conv2d_transpose(maps, KERNEL, shape, 2) * FACTOR[:CHANNELS], KERNEL[..., :3], shape, 1
        )

    before, after = cheapened(network)
    assert count(before, "Conv2DBackpropInput") == [3]
    assert count(after, "Conv2DBackpropInput") == [2]


def test_a_large_kernel_is_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backward_convolutions, "LARGEST_COPY", KERNEL.nbytes - 1)
    before, after = cheapened(lambda image: scaled(convolved(image)))
    assert count(before, "Mul", "Conv2DBackpropInput") == count(after, "Mul", "Conv2DBackpropInput")


def test_a_small_network_has_no_derivative_left_that_is_not_a_convolution() -> None:
    def network(image: Any) -> Any:
        maps = scaled(convolved(image))
        maps += scaled(convolved(maps, numbers(3, 3, MAPS, MAPS, seed=7)))
        deep = tf.nn.depthwise_conv2d(maps, numbers(3, 3, MAPS, 1), [1] * 4, "SAME")
        return tf.reduce_mean(scaled(deep), (1, 2)) @ numbers(MAPS, 2)

    _, after = cheapened(network)
    assert count(after, "Conv2DBackpropInput", backward_convolutions.DEPTHWISE) == [0, 1]


def packed(saved: Saved, device: DeviceThread) -> FlatGraph:
    """Return the gradient that a process which prepares a model hands over."""
    model = load_model(saved("convolutional"), device.run)
    assert isinstance(model, LoadedModel)
    with TemporaryFile() as constants:
        gradient = pack(model, constants).gradient
        assert gradient is not None
        return ConstantsReader(constants).read(gradient.graph)


def test_a_cheaper_gradient_is_handed_over(saved: Saved, device: DeviceThread) -> None:
    assert count(packed(saved, device), "Conv2DBackpropInput") == [0]


def doubled(graph: FlatGraph) -> FlatGraph:
    constants = {
        name: value * 2 if value.ndim == 4 else value for name, value in cheapen(graph).constants.items()
    }
    return replace(cheapen(graph), constants=constants)


def failing(graph: FlatGraph) -> FlatGraph:
    raise ValueError("an operation of a kind not seen before")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [(doubled, "has other values and is not used"), (failing, "cannot be used: ValueError: an operation")],
)
def test_a_cheaper_gradient_that_is_wrong_is_not_handed_over(
    saved: Saved,
    device: DeviceThread,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    wrong: Callable[[FlatGraph], FlatGraph],
    message: str,
) -> None:
    monkeypatch.setattr(prepared, "cheapen", wrong)
    assert count(packed(saved, device), "Conv2DBackpropInput") == [2]
    assert message in caplog.text
