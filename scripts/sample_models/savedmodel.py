"""Writes one version of a model as a SavedModel, whole or not at all.

The version is written and checked in a hidden directory beside its place and then renamed, so that
a server which watches the repository never sees half a version, and an interrupted build leaves none.
"""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

Predict: TypeAlias = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""Images in the model's own units, float32 [N, height, width, channels], to its output for each."""


def publish(version: Path, network: keras.Model, output: str, check: Callable[[Predict], None]) -> None:
    """Write the network to `version`, a directory such as `<model>/1`, in place of what is there.

    The SavedModel has one signature, `serving_default`, with the input `image` of the network's shape
    and the named output. `check` gets the SavedModel as read back from disk; what it raises leaves
    the old version as it was.
    """
    version.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".building-", dir=version.parent) as directory:
        built = Path(directory, "built")
        _save(network, output, built / "model.savedmodel")
        check(_load(built / "model.savedmodel", output))
        if version.exists():
            version.rename(Path(directory, "replaced"))
        built.rename(version)


def _save(network: keras.Model, output: str, path: Path) -> None:
    # Not keras.Model.export, which stores every variable twice and calls the output output_0.
    module = tf.Module()
    module.weights = [variable.value for variable in network.variables]
    image = tf.TensorSpec(network.input_shape, tf.float32, name="image")
    module.predict = tf.function(
        lambda image: {output: network(image, training=False)}, input_signature=[image], autograph=False
    )
    tf.saved_model.save(module, str(path), signatures={"serving_default": module.predict})
    # An empty directory, which a version control system would not keep.
    shutil.rmtree(path / "assets", ignore_errors=True)


def _load(path: Path, output: str) -> Predict:
    loaded = tf.saved_model.load(str(path))

    def predict(images: NDArray[np.float32]) -> NDArray[np.float32]:
        values: NDArray[np.float32] = loaded.signatures["serving_default"](image=tf.constant(images))[
            output
        ].numpy()
        return values

    return predict
