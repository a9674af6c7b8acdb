"""Traced functions without their graphs: the same numbers, and nothing left of them afterwards."""

import gc
import weakref
from typing import Any

import tensorflow as tf
from tensorflow.python.eager import context

from vitrail_server.savedmodel.compact import CompactFunction

Tensor = Any


def traced(weight: Tensor) -> Any:
    def compute(one: Tensor, other: Tensor) -> list[Tensor]:
        return [one * weight + other, one - other]

    spec = tf.TensorSpec((None,), tf.float32)
    return tf.function(compute, autograph=False).get_concrete_function(spec, spec)


def knows(function: CompactFunction) -> bool:
    return bool(context.context().has_function(function._name))


def test_it_computes_what_was_traced_without_the_graph() -> None:
    """With a tensor from outside, as weights are."""
    concrete = traced(tf.constant(3.0))
    graph = weakref.ref(concrete.graph)
    function = CompactFunction(concrete)
    del concrete
    gc.collect()
    assert graph() is None
    found = function(tf.constant([1.0, 2.0]), tf.constant([10.0, 20.0]))
    assert [each.numpy().tolist() for each in found] == [[13.0, 26.0], [-9.0, -18.0]]
    assert function.operations >= 3


def test_two_of_one_function_are_forgotten_one_by_one() -> None:
    concrete = traced(tf.constant(2.0))
    one, other = CompactFunction(concrete), CompactFunction(concrete)
    name = one._name
    del one
    gc.collect()
    assert not context.context().has_function(name)
    assert knows(other)
    assert other(tf.constant([1.0]), tf.constant([1.0]))[0].numpy().tolist() == [3.0]


def test_a_loop_goes_with_it() -> None:
    """Its body is a function of its own, which TensorFlow knows as long as the graph is there."""

    def compute(start: Tensor) -> Tensor:
        return tf.while_loop(lambda x: x < 100.0, lambda x: [x * 2.0], [start])[0]

    concrete = tf.function(compute, autograph=False).get_concrete_function(tf.TensorSpec((), tf.float32))
    function = CompactFunction(concrete)
    del concrete
    gc.collect()
    assert [each.numpy() for each in function(tf.constant(3.0))] == [192.0]
