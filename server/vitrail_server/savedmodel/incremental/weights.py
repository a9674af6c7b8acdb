"""The constants of a graph as tensors outside of it, which every function that is made of it shares."""

from collections.abc import Mapping
from typing import Any, TypeAlias

import tensorflow as tf

from vitrail_server.savedmodel.constants import tensor_of
from vitrail_server.savedmodel.flat import Array

Tensor: TypeAlias = Any
"""A tf.Tensor; TensorFlow carries no types."""


class Weights:
    """Constants by name; those that are not held as tensors already become it when they are first used."""

    def __init__(self, constants: Mapping[str, Array], held: Mapping[str, Tensor]) -> None:
        self._constants = constants
        self._tensors = dict(held)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._tensors:
            with tf.init_scope():  # not as a part of a graph that is being traced
                self._tensors[name] = tensor_of(self._constants[name])
        return self._tensors[name]
