"""Flattening: the same numbers without variables and calls, and what cannot be flattened says why."""

import gc
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from saved_models import numbers
from vitrail_server.savedmodel.flat import FlatGraph
from vitrail_server.savedmodel.flatten import NotFlat, flatten
from vitrail_server.savedmodel.functions import EMBEDDED, flat_forward

IMAGE = tf.TensorSpec((None, 4, 3), tf.float32)


def traced(predict: Any, *specs: Any) -> Any:
    return tf.function(predict, autograph=False).get_concrete_function(*(specs or [IMAGE]))


def flat_outputs(concrete: Any, *tensors: Any) -> list[Any]:
    return [each.numpy() for each in flat_forward(flatten(concrete), [], []).concrete(*tensors)]


def test_a_loop_outlives_what_it_was_made_of() -> None:
    concrete = traced(lambda image: [tf.map_fn(tf.nn.relu, image)])
    graph = flatten(concrete)
    first, second = flat_forward(graph, [], []), flat_forward(graph, [], [])
    image = tf.constant(numbers(5, 4, 3))
    expected = concrete(image)[0].numpy()

    del concrete, first
    gc.collect()

    assert graph.library.function
    np.testing.assert_array_equal(second.concrete(image)[0].numpy(), expected)


def operations(graph: FlatGraph) -> list[str]:
    return sorted(node.op for node in graph.nodes.values())


def test_calls_are_inlined_and_variables_read() -> None:
    weights = tf.Variable(numbers(3, 2))
    layer = tf.function(lambda x: tf.nn.relu(x @ weights) + weights[0], autograph=False)
    concrete = traced(lambda image: [layer(image), layer(image)[:, 0]])
    graph = flatten(concrete)
    assert not {"PartitionedCall", "StatefulPartitionedCall", "ReadVariableOp"} & set(operations(graph))
    assert not graph.library.function
    image = tf.constant(numbers(5, 4, 3, seed=2))
    for found, expected in zip(flat_outputs(concrete, image), concrete(image), strict=True):
        np.testing.assert_allclose(found, expected.numpy(), rtol=1e-6)


def test_the_values_are_those_at_the_time() -> None:
    weights = tf.Variable(1.0)
    concrete = traced(lambda image: [image * weights])
    weights.assign(3.0)
    image = numbers(1, 4, 3)
    [found] = flat_outputs(concrete, tf.constant(image))
    np.testing.assert_array_equal(found, image * 3)


def test_rows_gathered_from_a_variable_are_gathered_from_a_constant() -> None:
    table = tf.Variable(numbers(6, 2))
    concrete = traced(lambda rows: [tf.gather(table, rows)], tf.TensorSpec((None,), tf.int32))
    assert "ResourceGather" not in operations(flatten(concrete))
    [found] = flat_outputs(concrete, tf.constant([4, 1, 1]))
    np.testing.assert_array_equal(found, table.numpy()[[4, 1, 1]])


def test_a_tensor_from_outside_is_a_constant() -> None:
    outside = tf.constant(numbers(3, 3))
    concrete = traced(lambda image: [image @ outside])
    image = numbers(2, 4, 3, seed=2)
    [found] = flat_outputs(concrete, tf.constant(image))
    np.testing.assert_allclose(found, image @ outside.numpy(), rtol=1e-5)


def test_what_was_waited_for_only_to_read_variables_is_left_out() -> None:
    weights = tf.Variable(2.0)

    def predict(image: Any) -> list[Any]:
        with tf.control_dependencies([weights.read_value(), tf.no_op()]):
            return [tf.identity(image) * weights]

    assert operations(flatten(traced(predict))) == ["Identity", "Identity", "Mul", "Placeholder"]


def test_an_assertion_stays() -> None:
    def predict(image: Any) -> list[Any]:
        with tf.control_dependencies([tf.debugging.Assert(tf.reduce_all(image >= 0), ["negative"])]):
            return [tf.identity(image)]

    concrete = traced(predict)
    image = np.ones((1, 4, 3), np.float32)
    np.testing.assert_array_equal(flat_outputs(concrete, tf.constant(image))[0], image)
    with pytest.raises(tf.errors.InvalidArgumentError, match="negative"):
        flat_outputs(concrete, tf.constant(-image))


def test_a_loop_stays_whole() -> None:
    def predict(image: Any) -> list[Any]:
        return [tf.while_loop(lambda i, _: i < 3, lambda i, x: (i + 1, x * 2), (0, image))[1]]

    concrete = traced(predict)
    image = numbers(1, 4, 3)
    np.testing.assert_array_equal(flat_outputs(concrete, tf.constant(image))[0], image * 8)


def test_an_output_may_be_an_input_or_a_constant() -> None:
    large = tf.Variable(numbers(EMBEDDED // 4 + 1))
    concrete = traced(lambda image: [image, large, tf.constant(7.0)])
    image = numbers(2, 4, 3)
    found = flat_outputs(concrete, tf.constant(image))
    np.testing.assert_array_equal(found[0], image)
    np.testing.assert_array_equal(found[1], large.numpy())
    assert found[2] == 7


def test_large_constants_are_tensors_that_the_graph_shares() -> None:
    large, small = tf.Variable(numbers(EMBEDDED // 4 + 1, 1)), tf.Variable(numbers(1))
    spec = tf.TensorSpec((None, EMBEDDED // 4 + 1), tf.float32)
    concrete = traced(lambda rows: [rows @ large + small], spec)
    forward = flat_forward(flatten(concrete), ["rows"], ["y"])
    [held] = forward.held.values()
    assert tuple(held.shape) == large.shape
    assert [id(tensor) for tensor in forward.concrete.captured] == [id(held)]
    assert forward.flat is not None
    shared = [each for each in forward.flat.constants.values() if each.nbytes > EMBEDDED]
    assert len(shared) == 1
    assert np.shares_memory(shared[0], np.asarray(memoryview(held)))


def test_a_variable_that_a_loop_reads_is_refused_by_name() -> None:
    step = tf.Variable(2.0)

    def predict(image: Any) -> list[Any]:
        return [tf.while_loop(lambda i, _: i < 3, lambda i, x: (i + 1, x * step), (0, image))[1]]

    with pytest.raises(NotFlat, match=r"operation '.*' \(While\) uses something that cannot become a const"):
        flatten(traced(predict))
