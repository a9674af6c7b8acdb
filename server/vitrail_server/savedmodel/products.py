"""TensorFloat-32, for which TensorFlow has one switch: on for models that ask for it, off for all others."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import tensorflow as tf

from vitrail_server.servable import Precision
from vitrail_server.turns import Turns

Products = Callable[[], AbstractContextManager[object]]
"""How products of float32 are computed within the block."""


_tensor_float_32 = Turns(lambda on: tf.config.experimental.enable_tensor_float_32_execution(enabled=on))


def products_in(precision: Precision, *, accelerated: bool) -> Products:
    """Return how a model computes on a device; a CPU has no TF32, and waits for nobody."""
    return partial(_tensor_float_32.turn, on=precision == "TF32") if accelerated else nullcontext
