"""The raw side's TensorFlow: a SavedModel's graph called as directly as TensorFlow allows.

Imported only in the raw side's process. What is timed here is the limit that the server is held against:
the same optimised graph that the server makes of the model, but nothing is prepared, padded, copied or
checked while the clock runs.
"""

import io
import random
import shutil
from collections.abc import Callable
from functools import cached_property
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from benchmarks.models import (
    APPLICATIONS,
    CONFIG,
    GRAY,
    IMAGE_INPUT,
    PEBBLES_OUTPUTS,
    PEBBLES_SHAPE,
    Form,
)
from benchmarks.timing import Cost, Stopwatch
from vitrail.errors import FailedPrecondition
from vitrail_server.savedmodel.backward import cheapen
from vitrail_server.savedmodel.constants import read_block, tensor_of
from vitrail_server.savedmodel.flat import FlatGraph
from vitrail_server.savedmodel.flatten import flatten
from vitrail_server.savedmodel.functions import flat_gradient, large_constants, trace_flat
from vitrail_server.savedmodel.passes import simplify
from vitrail_server.savedmodel.precision import lowered, require

Tensor: TypeAlias = Any
"""A tf.Tensor; TensorFlow carries no types."""

SEED = 2024
OUTPUT = "probabilities"


def use_one_thread() -> None:
    """Let TensorFlow compute with one thread; before anything is computed."""
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)


def devices() -> list[str]:
    """Return the GPUs by their makers' names, and the CPU."""
    gpus = tf.config.list_physical_devices("GPU")
    details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
    return [*(str(each.get("device_name", "GPU")) for each in details), "CPU"]


def bfloat16_reason() -> str:
    """Return why this processor is not asked to multiply in bfloat16; empty if it can."""
    try:
        require("BF16")
    except FailedPrecondition as error:
        return error.message
    return ""


def build(name: str) -> keras.Model:
    """Return one of the networks that are made here with random weights, the same ones every time.

    Keras takes its initializers' seeds from Python's generator. Its own `set_random_seed` would do more: it
    makes TensorFlow prepare every function anew at its next call.
    """
    random.seed(SEED)
    application = APPLICATIONS[name]
    network: keras.Model = (
        getattr(keras.applications, application)(weights=None) if application else _pebbles()
    )
    _shift(network)
    return network


def _shift(network: keras.Model) -> None:
    """Give batch norms scales and offsets, as training does.

    TensorFlow drops a bias of zeros, and then no longer fuses what is around it: the graph would be slower
    than a trained one.
    """
    generator = np.random.default_rng(SEED)
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            for weight, middle in ((layer.gamma, 1.0), (layer.beta, 0.0)):
                if weight is not None:
                    weight.assign(middle + 0.2 * generator.normal(size=weight.shape))


def _pebbles() -> keras.Model:
    layers = keras.layers
    image = keras.Input(PEBBLES_SHAPE)
    x = layers.Conv2D(4, 8, strides=8, activation="relu")(image)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, layers.Dense(PEBBLES_OUTPUTS, activation="softmax")(x))


def write(network: keras.Model, directory: Path) -> None:
    """Write version 1 of a model in repository layout, whole or not at all."""
    module = tf.Module()
    module.weights = [variable.value for variable in network.variables]
    image = tf.TensorSpec(network.input_shape, tf.float32, name=IMAGE_INPUT)
    module.predict = tf.function(
        lambda image: {OUTPUT: network(image, training=False)}, input_signature=[image], autograph=False
    )
    directory.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".building-", dir=directory.parent) as building:
        built = Path(building, directory.name)
        tf.saved_model.save(
            module, str(built / "1" / "model.savedmodel"), signatures={"serving_default": module.predict}
        )
        (built / "config.pbtxt").write_text(CONFIG.format(name=directory.name), "utf-8")
        shutil.rmtree(directory, ignore_errors=True)
        built.rename(directory)


class Network:
    """One SavedModel with one image input and one output, in every form that is timed.

    Where `name` is a network that is made here, Keras knows it as such; another one as a layer made of the
    SavedModel.
    """

    def __init__(self, saved_model: Path, name: str) -> None:
        self._root = tf.saved_model.load(str(saved_model))
        signature = self._root.signatures["serving_default"]
        [(self._input, spec)] = signature.structured_input_signature[1].items()
        [self._output] = signature.structured_outputs
        self.image_shape: tuple[int, int, int] = tuple(spec.shape[1:])
        self._signature = signature
        self._graph = self._flat(signature)
        self._forwards: dict[Form, Callable[[Tensor], Tensor]] = {}
        self._gradient = self._compiled(lambda images: self._slopes(signature, images))
        self._name, self._saved_model = name, saved_model
        self._random = np.random.default_rng(SEED)
        self._warm: set[tuple[str, int]] = set()

    def forward(self, form: Form, batch: int, seconds: float) -> Cost:
        """Return the cost of one image's forward in batches, over at least so many seconds."""
        images, call = self._images(batch), self._forward(form)
        return self._cost(lambda: call(images).numpy(), (form, batch), seconds)

    def gradient(self, batch: int, seconds: float) -> Cost:
        """Return the cost of one image's forward and backward in batches, over at least so many seconds."""
        images = self._images(batch)
        return self._cost(lambda: self._gradient(images).numpy(), ("gradient", batch), seconds)

    def rewritten_gradient(self, batch: int, seconds: float) -> Cost:
        """Return the same of the graph that the server makes of it."""
        images, call = self._images(batch), self._rewritten
        return self._cost(lambda: call(images)[0].numpy(), ("rewritten", batch), seconds)

    def agreement(self, image: NDArray[np.float32], patch: int, fill: float) -> float:
        """Return Spearman's rank correlation of an occlusion map in bfloat16 with the one in float32.

        The scores are those of the class that float32 finds, over windows side by side.
        """
        corners = range(0, image.shape[0], patch), range(0, image.shape[1], patch)
        hidden = np.stack([image] * (1 + len(corners[0]) * len(corners[1])))
        for row, (top, left) in enumerate(product(*corners), 1):
            hidden[row, top : top + patch, left : left + patch] = fill
        forms: tuple[Form, Form] = ("frozen", "bf16")
        exact, lower = (
            np.concatenate([self._forward(form)(each[None]).numpy() for each in tf.constant(hidden)])
            for form in forms
        )
        target = int(exact[0].argmax())
        ranks = [np.argsort(np.argsort(each[0, target] - each[1:, target])) for each in (exact, lower)]
        return float(np.corrcoef(ranks[0], ranks[1])[0, 1])

    def predict_windows(self, image: NDArray[np.float32], patch: int, windows: int) -> Cost:
        """Return the cost of one window of the notebook's loop, over so many randomly chosen windows.

        One `model.predict` for each window, on a copy of the image with a gray patch, as people write it.
        """
        height, width, _ = image.shape
        grid = -(-height // patch), -(-width // patch)
        self._predict(image)
        with Stopwatch() as watch:
            for top, left in (self._random.integers(0, grid, (windows, 2)) * patch).tolist():
                occluded = image.copy()
                occluded[top : top + patch, left : left + patch] = GRAY
                self._predict(occluded)
        return watch.per(windows)

    def answer(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the Keras model's output for one image, flattened."""
        return self._predict(image).reshape(-1)

    def _predict(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        answers = self._keras.predict(image[None], verbose=0)
        answer: NDArray[np.float32] = answers[self._output] if isinstance(answers, dict) else answers
        return answer

    def _answers(self, signature: Callable[..., dict[str, Tensor]], images: Tensor) -> Tensor:
        return signature(**{self._input: images})[self._output]

    def _forward(self, form: Form) -> Callable[[Tensor], Tensor]:
        """Return the forward in a form, traced when it is first asked for."""
        if form not in self._forwards:
            # A function that is called by itself formats its arguments for an error message first.
            self._forwards[form] = self._traced(form)
        return self._forwards[form]

    def _traced(self, form: Form) -> Callable[[Tensor], Tensor]:
        if form == "signature":
            return self._compiled(lambda images: self._answers(self._signature, images))
        graph = lowered(self._graph, tf.bfloat16) if form == "bf16" else self._graph
        if graph is None:
            raise ValueError(f"{self._name} has nothing to be computed in bfloat16")
        held = {name: _in_huge_pages(graph.constants[name]) for name in large_constants(graph)}
        forward = trace_flat(graph, held)
        return self._compiled(lambda images: forward(images)[0], jit_compile=form == "xla")

    def _flat(self, signature: Callable[..., dict[str, Tensor]]) -> FlatGraph:
        """Return the graph that the server runs for forwards."""
        spec = tf.TensorSpec((None, *self.image_shape), tf.float32)
        concrete = tf.function(
            lambda images: [self._answers(signature, images)], autograph=False
        ).get_concrete_function(spec)
        return simplify(flatten(concrete))

    def _slopes(self, signature: Callable[..., dict[str, Tensor]], images: Tensor) -> Tensor:
        """Return the derivative of each image's highest output by the image."""
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(images)
            answers = self._answers(signature, images)
            highest = tf.reduce_max(tf.reshape(answers, (tf.shape(answers)[0], -1)), axis=1)
        return tape.gradient(highest, images)

    def _compiled(
        self, function: Callable[[Tensor], Tensor], *, jit_compile: bool = False
    ) -> Callable[[Tensor], Tensor]:
        """Trace a function of images, with the batch size left free; XLA compiles it for each that comes."""
        spec = tf.TensorSpec((None, *self.image_shape), tf.float32)
        compiled: Callable[[Tensor], Tensor] = tf.function(
            function, autograph=False, jit_compile=jit_compile
        ).get_concrete_function(spec)
        return compiled

    @cached_property
    def _rewritten(self) -> Callable[[Tensor], list[Tensor]]:
        concrete: Callable[[Tensor], list[Tensor]] = flat_gradient(
            cheapen(flatten(self._gradient)), (self._input,), (), ()
        ).concrete
        return concrete

    @cached_property
    def _keras(self) -> keras.Model:
        if self._name in APPLICATIONS:
            return build(self._name)
        layer = keras.layers.TFSMLayer(str(self._saved_model), call_endpoint="serving_default")
        image = keras.Input(self.image_shape, name=self._input)
        return keras.Model(image, layer(image))

    def _images(self, batch: int) -> Tensor:
        return tf.constant(self._random.random((batch, *self.image_shape), np.float32))

    def _cost(self, execute: Callable[[], object], what: tuple[str, int], seconds: float) -> Cost:
        """Return the cost per image of calls with `what[1]` images; what is new is called once before."""
        if what not in self._warm:
            execute()
            self._warm.add(what)
        calls = 0
        with Stopwatch() as watch:
            while not calls or watch.seconds < seconds:
                execute()
                calls += 1
        return watch.per(calls * what[1])


def _in_huge_pages(value: NDArray[Any]) -> Tensor:
    """Return a constant in memory like that of the server's weights."""
    return tensor_of(read_block(io.BytesIO(value.tobytes())).view(value.dtype).reshape(value.shape))
