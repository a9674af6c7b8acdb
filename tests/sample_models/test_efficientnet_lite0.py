from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from numpy.typing import NDArray

from sample_models.efficientnet_lite0 import CHECK_CLASS, build_network, layer_name, set_weights

LABELS = Path(__file__).parents[2] / "model_repository" / "efficientnet_lite0" / "labels.txt"


@pytest.fixture(scope="module")
def network() -> keras.Model:
    return build_network()


def test_there_is_one_label_per_class_and_each_is_unique() -> None:
    labels = LABELS.read_text().splitlines()

    assert len(labels) == len(set(labels)) == 1000
    assert labels[0] == "tench"
    assert labels[CHECK_CLASS] == "espresso"
    assert labels[999] == "toilet tissue"


@pytest.mark.parametrize(
    ("torch_name", "name"),
    [("_conv_stem", "conv_stem"), ("_blocks.3._depthwise_conv", "blocks_3_depthwise_conv"), ("_fc", "fc")],
)
def test_layers_have_the_names_of_the_weights_without_leading_underscores(torch_name: str, name: str) -> None:
    assert layer_name(torch_name) == name


def test_the_network_has_the_published_size(network: keras.Model) -> None:
    """4.65 million weights (Liu, 2020), and the two running statistics of each normalised channel."""
    normalised = sum(
        2 * layer.gamma.shape[0]
        for layer in network.layers
        if isinstance(layer, keras.layers.BatchNormalization)
    )

    assert network.count_params() == 4_694_024
    assert network.count_params() - normalised == pytest.approx(4.65e6, rel=0.01)
    assert network.input_shape == (None, 224, 224, 3)
    assert network.output_shape == (None, 1000)


def test_weights_are_turned_from_torchs_order_of_axes(network: keras.Model) -> None:
    """A tensor that holds its own indices shows where each of them went."""
    stem = _indices(32, 3, 3, 3)
    depthwise = _indices(32, 1, 3, 3)
    dense = _indices(1000, 1280)
    statistics = {part: np.full(16, value, np.float32) for value, part in enumerate(_NORMALISATION)}

    set_weights(
        network,
        {
            "_conv_stem.weight": stem,
            "_blocks.0._depthwise_conv.weight": depthwise,
            **{f"_blocks.0._bn2.{part}": values for part, values in statistics.items()},
            "_blocks.0._bn2.num_batches_tracked": np.array([9]),
            "_fc.weight": dense,
            "_fc.bias": np.arange(1000, dtype=np.float32),
        },
    )

    [stem_kernel] = network.get_layer("conv_stem").get_weights()
    assert stem_kernel[2, 1, 0, 31] == stem[31, 0, 2, 1]
    [depthwise_kernel] = network.get_layer("blocks_0_depthwise_conv").get_weights()
    assert depthwise_kernel[2, 1, 31, 0] == depthwise[31, 0, 2, 1]
    kernel, bias = network.get_layer("fc").get_weights()
    assert kernel[1279, 999] == dense[999, 1279]
    assert bias[999] == 999
    gamma, beta, mean, variance = network.get_layer("blocks_0_bn2").get_weights()
    assert (gamma[0], beta[0], mean[0], variance[0]) == (0, 1, 2, 3)


def test_a_tensor_without_a_layer_is_an_error(network: keras.Model) -> None:
    with pytest.raises(ValueError, match="conv_tail"):
        set_weights(network, {"_conv_tail.weight": np.zeros((1, 1, 1, 1))})


_NORMALISATION = ("weight", "bias", "running_mean", "running_var")


def _indices(*shape: int) -> NDArray[Any]:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
