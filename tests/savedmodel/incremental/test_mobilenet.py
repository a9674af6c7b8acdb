"""MobileNetV2, with batch norms that do something, from its SavedModel's graph to a whole map."""

import random

import keras
import numpy as np
import pytest
from tensorflow.python.eager import context

from savedmodel.incremental.nets import Net, all_windows, differences, grid_of, net
from vitrail_server.savedmodel.compact import CompactFunction
from vitrail_server.savedmodel.passes import simplify

SIZE = (96, 96)


@pytest.fixture(scope="module")
def mobilenet() -> Net:
    random.seed(1)  # where Keras takes its initializers' seeds from
    network = keras.applications.MobileNetV2((*SIZE, 3), alpha=0.35, weights=None, classifier_activation=None)
    generator = np.random.default_rng(1)
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0  # the statistics become those of the next batch
            layer.gamma.assign(1 + 0.2 * generator.normal(size=layer.gamma.shape))
            layer.beta.assign(0.2 * generator.normal(size=layer.beta.shape))
    network(generator.normal(size=(4, *SIZE, 3)).astype(np.float32), training=True)
    return net(lambda image: network(image, training=False), SIZE, simplify=simplify)


@pytest.mark.parametrize(("fill", "patch", "stride"), [("constant", 16, 16), ("image", 12, 12)])
def test_every_window_of_a_map(mobilenet: Net, fill: str, patch: int, stride: int) -> None:
    grid = grid_of(SIZE, (patch, patch), (stride, stride))
    plan = mobilenet.plan(grid)
    subject, windows = mobilenet.subject(fill), all_windows(grid)
    found, expected = mobilenet.incrementally(plan, subject, windows), mobilenet.fully(subject, windows)

    assert plan.worthwhile
    assert len(plan.steps) > 40
    assert differences(found, expected) <= 1e-5
    [scores], [right] = ([each[0] - each[1:]] for each in (found["output_0"], expected["output_0"]))
    assert np.abs(right).max() > 0.01 * np.abs(expected["output_0"]).max()
    assert np.abs(scores - right).max() <= 1e-4 * np.ptp(right)


def test_its_weights_are_shared_and_not_copied_into_the_graphs(mobilenet: Net) -> None:
    plan = mobilenet.plan(grid_of(SIZE, (16, 16), (16, 16)))
    evaluator = mobilenet.evaluator(plan)
    weights = mobilenet.flat.constant_bytes
    for function in (evaluator._tables, evaluator._windows):
        assert isinstance(function, CompactFunction)
        assert context.context().get_function_def(function._name).ByteSize() < weights / 4
