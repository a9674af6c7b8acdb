"""Facts read off a graph."""

from typing import Any

import pytest
import tensorflow as tf

from savedmodel.conftest import Saved
from vitrail_server.savedmodel.functions import trace_forward
from vitrail_server.savedmodel.graph import Graph
from vitrail_server.savedmodel.signature import read

SPEC = tf.TensorSpec((None, 4, 3))


def nested(function: Any) -> Any:
    return tf.function(function, autograph=False)


def traced(predict: Any) -> Graph:
    return Graph(nested(predict).get_concrete_function(SPEC))


passed_on = nested(lambda x: tf.reshape(x, (-1, 12)))
softmax_and_input = nested(lambda x: (tf.nn.softmax(x), x))


@pytest.mark.parametrize(
    ("predict", "producer"),
    [
        (tf.nn.softmax, "Softmax"),
        (tf.sigmoid, "Sigmoid"),
        (tf.nn.relu, "Relu"),
        (lambda x: tf.cast(tf.squeeze(tf.identity(tf.nn.softmax(x))), tf.float64), "Softmax"),
        (lambda x: passed_on(tf.nn.softmax(x)), "Softmax"),
        (lambda x: softmax_and_input(x)[0], "Softmax"),
        (lambda x: softmax_and_input(tf.exp(x))[1], "Exp"),
        (lambda x: tf.nn.softmax(x) * 2, "Mul"),
        (tf.nn.log_softmax, "LogSoftmax"),
        (lambda x: x, "Placeholder"),
    ],
)
def test_an_output_is_followed_back_to_what_produces_it(predict: Any, producer: str) -> None:
    assert traced(predict).producer(0) == producer


def test_a_saved_model_s_outputs_are_followed_into_its_functions(saved: Saved) -> None:
    forward = trace_forward(read(saved("convolutional")), ["logits", "probabilities"])
    graph = Graph(forward.concrete)
    assert [graph.producer(0), graph.producer(1)] == ["MatMul", "Softmax"]


def test_activations_are_the_tensors_with_a_row_per_image() -> None:
    """The input (4, 3), its double, a sum (4) and what is returned, an identity of it: float32 each."""
    activations = traced(lambda x: tf.reduce_sum(x * 2, -1)).activations()
    assert activations.largest == 4 * 4 * 3
    assert activations.total == 4 * (4 * 3 + 4 * 3 + 4 + 4)


def test_activations_in_nested_functions_count_at_every_call() -> None:
    wide = nested(lambda x: tf.tile(x, (1, 1, 100)))
    once = traced(lambda x: tf.reduce_sum(wide(x), -1)).activations()
    twice = traced(lambda x: tf.reduce_sum(wide(x) - wide(-x), -1)).activations()
    assert once.largest == twice.largest == 4 * 4 * 300
    assert twice.total - once.total >= once.largest


def test_tensors_of_unknown_size_are_left_out() -> None:
    def predict(x: Any) -> Any:
        return tf.reduce_sum(x, [1, 2])

    graph = Graph(tf.function(predict).get_concrete_function(tf.TensorSpec((None, None, 3))))
    assert graph.activations().largest == 4
