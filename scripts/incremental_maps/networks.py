"""The networks of the proof: Keras applications and a ViT with random weights, and the sample model."""

import random
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

SEED = 2024
SAMPLE = (
    Path(__file__).resolve().parents[2] / "model_repository" / "efficientnet_lite0" / "1" / "model.savedmodel"
)

IMAGE_RANGES: dict[str, tuple[float, float]] = {
    "VGG16": (-1.0, 1.0),
    "ResNet50V2": (-1.0, 1.0),
    "DenseNet121": (-1.0, 1.0),
    "InceptionV3": (-1.0, 1.0),
    "MobileNetV2": (-1.0, 1.0),
    "EfficientNetB0": (0.0, 255.0),
    "EfficientNetLite0": (0.0, 255.0),
    "ViT": (-1.0, 1.0),
}
"""The networks, and the range of the pixels that each takes."""


def concrete_function(name: str) -> Any:
    """Return a network as a concrete function from images to scores, before any softmax of ours."""
    if name == "EfficientNetLite0":
        return _sample()
    network = _vit() if name == "ViT" else _application(name)
    image = tf.TensorSpec((None, *network.input_shape[1:]), tf.float32)
    return tf.function(lambda image: [network(image, training=False)], autograph=False).get_concrete_function(
        image
    )


def _sample() -> Any:
    if not SAMPLE.is_dir():
        raise FileNotFoundError(f"{SAMPLE} is not there: run scripts/models efficientnet_lite0")
    root = tf.saved_model.load(str(SAMPLE))
    signature = root.signatures["serving_default"]
    [(name, image)] = signature.structured_input_signature[1].items()
    function = tf.function(lambda image: list(signature(**{name: image}).values()), autograph=False)
    concrete = function.get_concrete_function(tf.TensorSpec(image.shape, image.dtype))
    concrete.owner = root  # the variables go with it
    return concrete


def _application(name: str) -> keras.Model:
    random.seed(SEED)
    network: keras.Model = getattr(keras.applications, name)(weights=None, classifier_activation=None)
    _calibrate(network, IMAGE_RANGES[name])
    return network


def _calibrate(network: keras.Model, image_range: tuple[float, float]) -> None:
    """Give batch norms the statistics of some images, and scales and offsets that are not trivial."""
    norms = [layer for layer in network.layers if isinstance(layer, keras.layers.BatchNormalization)]
    if not norms:
        return
    generator = np.random.default_rng(SEED)
    for layer in norms:
        layer.momentum = 0.0
        for weight, middle in ((layer.gamma, 1.0), (layer.beta, 0.0)):
            if weight is not None:
                weight.assign(middle + 0.2 * generator.normal(size=weight.shape))
    images = [picture(network.input_shape[1:], image_range, seed) for seed in range(4)]
    network(np.stack(images), training=True)


def _vit(size: int = 224, patch: int = 16, width: int = 192, depth: int = 6, heads: int = 3) -> keras.Model:
    random.seed(SEED)
    layers = keras.layers
    image = keras.Input((size, size, 3))
    x = layers.Conv2D(width, patch, patch)(image)
    x = layers.Reshape(((size // patch) ** 2, width))(x)
    x = x + layers.Embedding((size // patch) ** 2, width)(np.arange((size // patch) ** 2)[None])
    for _ in range(depth):
        y = layers.LayerNormalization()(x)
        x = x + layers.MultiHeadAttention(heads, width // heads)(y, y)
        y = layers.LayerNormalization()(x)
        x = x + layers.Dense(width)(layers.Dense(4 * width, activation="gelu")(y))
    x = layers.GlobalAveragePooling1D()(layers.LayerNormalization()(x))
    return keras.Model(image, layers.Dense(1000)(x))


def picture(shape: tuple[int, int, int], image_range: tuple[float, float], seed: int) -> Any:
    """Return an image of smooth shapes and some noise."""
    generator = np.random.default_rng(seed)
    height, width, channels = shape
    coarse = generator.random((1, 8, 8, channels)).astype(np.float32)
    smooth = tf.image.resize(coarse, (height, width), "bicubic")[0].numpy()
    mixed = np.clip(0.8 * smooth + 0.2 * generator.random(shape), 0, 1)
    low, high = image_range
    return (low + (high - low) * mixed).astype(np.float32)
