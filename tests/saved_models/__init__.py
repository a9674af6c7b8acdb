"""Tiny SavedModels for tests, one writer per kind; each takes the directory to write."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

Tensor: TypeAlias = Any
Floats: TypeAlias = NDArray[np.float32]

IMAGE = (5, 7, 3)
"""The images of most models: not square, and no size twice."""


def numbers(*shape: int, seed: int = 1) -> Floats:
    """Normally distributed numbers, the same ones every time."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


SUMS = numbers(*IMAGE, 3, seed=4)
"""The weights of the linear layer, 3 scores, that most models end in."""


def save(
    path: Path,
    predict: Callable[..., Mapping[str, Tensor]],
    image: tuple[int | None, ...] = (None, *IMAGE),
    dtype: Any = tf.float32,
    others: Sequence[Any] = (),
    variables: Sequence[Any] = (),
    options: Any = None,
) -> None:
    """Export `predict(image, ...)` as serving_default; its parameters name the inputs."""
    module = tf.Module()
    module.held = list(variables)
    specs = [tf.TensorSpec(image, dtype), *others]
    module.predict = tf.function(predict, input_signature=specs, autograph=False)
    tf.saved_model.save(module, str(path), signatures={"serving_default": module.predict}, options=options)


def linear(
    path: Path, weights: Floats, bias: Floats, batch: int | None = None, dtype: Any = tf.float32
) -> None:
    """y_k = sum(weights[..., k] * x) + bias_k: output `y` (N, K); weights (height, width, channels, K)."""
    w, b = tf.Variable(weights, dtype=dtype), tf.Variable(bias, dtype=dtype)

    def predict(image: Tensor) -> dict[str, Tensor]:
        return {"y": tf.tensordot(image, w, 3) + b}

    save(path, predict, (batch, *weights.shape[:3]), dtype, variables=(w, b))


def quadratic(path: Path, coefficients: Floats, column: bool = False) -> None:
    """y = sum(coefficients * x^2): a scalar head `y`, (N,) or, as a column, (N, 1)."""
    a = tf.Variable(coefficients)

    def predict(image: Tensor) -> dict[str, Tensor]:
        return {"y": tf.reduce_sum(tf.reshape(a * image * image, (-1, a.shape.num_elements())), 1, column)}

    save(path, predict, (None, *coefficients.shape), variables=(a,))


KERNELS = numbers(3, 3, 3, 8), numbers(3, 3, 8, 6, seed=2) / 5, numbers(6, 4, seed=3)
"""The two convolutions and the head of `convolutional`."""


def convolutional(path: Path, size: tuple[int | None, int | None] = (12, 10)) -> None:
    """Two smooth convolutions, each a nested function: outputs `logits` and `probabilities` (N, 4)."""
    first, second, head = (tf.Variable(kernel) for kernel in KERNELS)

    block = tf.function(
        lambda tensor, kernel: tf.nn.softplus(tf.nn.conv2d(tensor, kernel, 1, "SAME")), autograph=False
    )

    def predict(image: Tensor) -> dict[str, Tensor]:
        features = block(tf.nn.avg_pool2d(block(image, first), 2, 2, "VALID"), second)
        logits = tf.reduce_mean(features, [1, 2]) @ head
        return {"logits": logits, "probabilities": tf.identity(tf.reshape(tf.nn.softmax(logits), (-1, 4)))}

    save(path, predict, (None, *size, 3), variables=(first, second, head))


def local(path: Path, whole_from_the_start: bool = False) -> None:
    """Six convolutions of a 64 x 64 image, none of which looks far: `probabilities` (N, 5).

    `whole_from_the_start` transposes the image first, which spoils that.
    """
    kernels = [tf.Variable(numbers(3, 3, 3 if n == 0 else 24, 24, seed=n) / 12) for n in range(6)]
    head = tf.Variable(numbers(24, 5, seed=9) * 4)

    def predict(image: Tensor) -> dict[str, Tensor]:
        x = (tf.transpose(image, [0, 2, 1, 3]) if whole_from_the_start else image) / 128 - 1
        for kernel in kernels:
            x = tf.nn.relu(tf.nn.conv2d(x, kernel, 1, "SAME"))
        return {"probabilities": tf.nn.softmax(tf.reduce_mean(x, [1, 2]) @ head)}

    save(path, predict, (None, 64, 64, 3), variables=(*kernels, head))


def cancelling(path: Path, factor: float) -> None:
    """A small `y` (N, 1) that is left of numbers `factor` times as large as the pixels."""
    kernel = tf.constant(factor * np.eye(3, dtype=np.float32)[None, None])

    def predict(image: Tensor) -> dict[str, Tensor]:
        left = tf.nn.conv2d(image, kernel, 1, "VALID") - factor * image
        return {"y": tf.reduce_mean(tf.abs(left) + image / 128, [1, 2]) @ tf.ones((3, 1))}

    save(path, predict)


def convolved_with_mean(path: Path) -> None:
    """Two kernels: `y` (N, 2), and `mean` (), one number for the whole batch."""

    def predict(image: Tensor) -> dict[str, Tensor]:
        y = tf.reduce_mean(tf.nn.conv2d(image, numbers(3, 3, 3, 4), 1, "SAME"), [1, 2]) @ numbers(4, 2)
        return {"y": y, "mean": tf.reduce_mean(y)}

    save(path, predict)


def convolutional_without_edge(path: Path) -> None:
    """One convolution of 3 x 3 without padding: any image of 3 x 3 or more."""
    kernel = tf.constant(numbers(3, 3, 3, 2))

    def predict(image: Tensor) -> dict[str, Tensor]:
        return {"y": tf.reduce_mean(tf.nn.conv2d(image, kernel, 1, "VALID"), [1, 2])}

    save(path, predict, (None, None, None, 3))


def failing_gradient(path: Path) -> None:
    """The way forward runs, the way back fails."""

    def guarded(image: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        def back(slope: Tensor) -> Tensor:
            with tf.control_dependencies([tf.debugging.Assert(slope is None, ["no way back"])]):
                return tf.identity(slope)

        return tf.identity(image), back

    save(path, lambda image: {"y": _sums(tf.custom_gradient(guarded)(image))})


def byte_pixels(path: Path) -> None:
    """Takes UINT8 and casts inside."""
    save(path, lambda image: {"y": _sums(tf.cast(image, tf.float32) / 255)}, dtype=tf.uint8)


def argmax(path: Path) -> None:
    """Answers with the class only, an INT64 (N,)."""
    save(path, lambda image: {"class": tf.argmax(_sums(image), -1)})


def table(path: Path) -> None:
    """Looks the class up in a table: 10, 11 or 12 as an INT64 (N,)."""
    initial = tf.lookup.KeyValueTensorInitializer(
        tf.constant([0, 1, 2], tf.int64), tf.constant([10, 11, 12], tf.int64)
    )
    numbers = tf.lookup.StaticHashTable(initial, -1)
    save(path, lambda image: {"class": numbers.lookup(tf.argmax(_sums(image), -1))}, variables=[numbers])


def stopped(path: Path) -> None:
    """No gradient comes through, though all numbers are floating point."""
    save(path, lambda image: {"y": _sums(tf.stop_gradient(image))})


def batch_normalised(path: Path, batch: int | None = None) -> None:
    """Batch norm left in training mode: the answer depends on the other images."""

    def predict(image: Tensor) -> dict[str, Tensor]:
        mean, variance = tf.nn.moments(image, [0, 1, 2])
        return {"y": _sums(tf.nn.batch_normalization(image, mean, variance, None, None, 1e-3))}

    save(path, predict, (batch, *IMAGE))


def dropping_out(path: Path) -> None:
    """Dropout left on: two answers for one image."""
    save(path, lambda image: {"y": _sums(tf.nn.dropout(image, 0.5))})


OFFSETS = numbers(2, 3, seed=5)
"""What `two_inputs` does with its second input."""


def two_inputs(path: Path, offset: Any = None) -> None:
    """y = SUMS . x + a_offset . OFFSETS, with the further input `a_offset` (N, 2)."""

    def predict(image: Tensor, a_offset: Tensor) -> dict[str, Tensor]:
        return {"y": _sums(image) + tf.cast(a_offset, tf.float32) @ tf.constant(OFFSETS)}

    save(path, predict, others=[offset or tf.TensorSpec((None, 2), tf.float32)])


def many_outputs(path: Path) -> None:
    """Outputs of all sorts: halves, whole numbers, text, a map, and one number for the whole batch."""

    def predict(image: Tensor) -> dict[str, Tensor]:
        y = _sums(image)
        return {
            "half": tf.cast(y / 64, tf.float16),
            "double": tf.cast(2 * y, tf.float64),
            "count": tf.cast(y, tf.int32),
            "text": tf.as_string(y),
            "map": tf.reduce_sum(image, -1),
            "loss": tf.reduce_mean(y),
        }

    save(path, predict)


def free_map(path: Path, with_sums: bool = False) -> None:
    """An output as large as the image, whatever its size; and the channels' sums, if asked for."""

    def predict(image: Tensor) -> dict[str, Tensor]:
        outputs = {"map": tf.reduce_sum(image, -1)}
        return outputs | {"y": tf.reduce_sum(image, [1, 2])} if with_sums else outputs

    save(path, predict, (None, None, None, 3))


def not_a_number(path: Path) -> None:
    """The first of two elements is NaN, whatever the image."""

    def predict(image: Tensor) -> dict[str, Tensor]:
        total = tf.reduce_sum(image, [1, 2, 3])
        return {"y": tf.stack([tf.fill(tf.shape(total), np.nan), total], 1)}

    save(path, predict)


def sigmoid(path: Path) -> None:
    """One probability, (N, 1)."""
    save(path, lambda image: {"p": tf.sigmoid(_sums(image)[:, :1])})


def one_row_only(path: Path) -> None:
    """Says that any batch will do, but fails on more than one image."""

    save(path, lambda image: {"y": _sums(image) + tf.reshape(image[:, 0, 0, 0] * 0, (1, 1))})


def whole_batch_only(path: Path) -> None:
    """Its one output is a number for the whole batch."""
    save(path, lambda image: {"loss": tf.reduce_mean(image)})


def image_and_text(path: Path) -> None:
    """An image beside a text, which no explanation can send."""

    def predict(image: Tensor, words: Tensor) -> dict[str, Tensor]:
        return {"y": _sums(image) + tf.cast(tf.strings.length(words), tf.float32)}

    save(path, predict, others=[tf.TensorSpec((None, 1), tf.string)])


def image_and_rate(path: Path) -> None:
    """An image beside one number for the whole batch."""
    save(path, lambda image, rate: {"y": _sums(image) * rate}, others=[tf.TensorSpec((), tf.float32)])


def sums_and_differences(path: Path, dtype: Any = tf.float32) -> None:
    """Triton's `simple`: OUTPUT0 = INPUT0 + INPUT1, OUTPUT1 = INPUT0 - INPUT1, all (N, 16)."""

    def predict(INPUT0: Tensor, INPUT1: Tensor) -> dict[str, Tensor]:  # noqa: N803 - Triton's names
        return {"OUTPUT0": INPUT0 + INPUT1, "OUTPUT1": INPUT0 - INPUT1}

    save(path, predict, (None, 16), dtype, others=[tf.TensorSpec((None, 16), dtype)])


def identities(path: Path, datatypes: Mapping[str, Any]) -> None:
    """Gives every input back as `NAME_out`, whatever its type, (N, any)."""
    specs = {name: tf.TensorSpec((None, None), dtype, name=name) for name, dtype in datatypes.items()}

    def predict(**inputs: Tensor) -> dict[str, Tensor]:
        return {f"{name}_out": tf.identity(tensor) for name, tensor in inputs.items()}

    module = tf.Module()
    module.predict = tf.function(predict, autograph=False).get_concrete_function(**specs)
    tf.saved_model.save(module, str(path), signatures={"serving_default": module.predict})


def scalars(path: Path) -> None:
    """Takes and gives numbers without any dimension: y = 2 x, and the text of y."""

    def predict(x: Tensor) -> dict[str, Tensor]:
        return {"y": 2 * x, "text": tf.as_string(2 * x)}

    save(path, predict, ())


def ragged(path: Path) -> None:
    """Of unknown rank: gives the input's square back, and how many rows it had."""

    def predict(x: Tensor) -> dict[str, Tensor]:
        return {"y": x * x, "rows": tf.boolean_mask(tf.shape(x)[:1], [True])}

    module = tf.Module()
    module.predict = tf.function(predict, input_signature=[tf.TensorSpec(None)], autograph=False)
    tf.saved_model.save(module, str(path), signatures={"serving_default": module.predict})


def failing(path: Path) -> None:
    """Fails on every image."""

    def predict(image: Tensor) -> dict[str, Tensor]:
        with tf.control_dependencies([tf.debugging.assert_less(image, -1e9, message="too bright")]):
            return {"y": _sums(image)}

    save(path, predict)


def two_signatures(path: Path) -> None:
    """Two signatures, neither of them serving_default."""
    module = tf.Module()
    module.predict = tf.function(
        lambda image: {"y": _sums(image)}, input_signature=[tf.TensorSpec((None, *IMAGE))], autograph=False
    )
    tf.saved_model.save(module, str(path), signatures={"one": module.predict, "other": module.predict})


def tensorflow_1(path: Path) -> None:
    """From a session: a graph without functions, and names that are no identifiers. a/y = SUMS . x."""
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        image = v1.placeholder(tf.float32, (None, *IMAGE))
        weights = v1.Variable(SUMS)
        y = tf.tensordot(image, weights, 3)
        session.run(weights.initializer)
        builder = v1.saved_model.Builder(str(path))
        signature = v1.saved_model.predict_signature_def({"image:0": image}, {"a/y": y})
        builder.add_meta_graph_and_variables(session, ["serve"], {"serving_default": signature})
        builder.save()


def no_signature(path: Path) -> None:
    """A module without any function."""
    tf.saved_model.save(tf.Module(), str(path))


def swish(path: Path, options: Any = None) -> None:
    """An activation with a custom gradient."""
    w = tf.Variable(numbers(3, 3, 3, 4))

    def predict(image: Tensor) -> dict[str, Tensor]:
        return {"y": tf.reduce_mean(tf.nn.silu(tf.nn.conv2d(image, w, 1, "SAME")), [1, 2])}

    save(path, predict, variables=(w,), options=options)


def swish_without_gradient(path: Path) -> None:
    """Its custom gradients are not saved. To be written by another process: the writer remembers them."""
    swish(path, tf.saved_model.SaveOptions(experimental_custom_gradients=False))


def _sums(image: Tensor) -> Tensor:
    """Three linear scores (N, 3)."""
    return tf.tensordot(image, tf.constant(SUMS, image.dtype), 3)
