"""A Keras network rebuilt in PyTorch with the same weights, for libraries that explain PyTorch's models.

Knows the layers of the Keras applications that are measured. Imported only in the peers' process.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import keras
import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

Tensor: TypeAlias = Any
Step = Callable[..., Tensor]
"""What a layer computes, of tensors with the channels second."""


class Twin(torch.nn.Module):  # type: ignore[misc]  # it carries no types
    """The network, for images (n, channels, height, width)."""

    def __init__(self, network: keras.Model) -> None:
        super().__init__()
        [image], [self._answer] = network.inputs, network.outputs
        self._image = image
        self._steps = [
            (step_of(layer), list(_tensors(layer.input)), layer.output)
            for layer in network.layers
            if not isinstance(layer, keras.layers.InputLayer)
        ]

    def forward(self, images: Tensor) -> Tensor:
        """Return the network's output."""
        values = {id(self._image): images}
        for step, inputs, output in self._steps:
            values[id(output)] = step(*(values[id(each)] for each in inputs))
        return values[id(self._answer)]


def step_of(layer: keras.layers.Layer) -> Step:
    """Return what a layer computes.

    Raises:
        TypeError: its kind is not known here.

    """
    weights = [torch.from_numpy(np.array(each)) for each in layer.get_weights()]
    match type(layer).__name__:
        case "Conv2D" | "DepthwiseConv2D":
            return _convolution(layer, weights)
        case "BatchNormalization":
            gamma, beta, mean, variance = weights
            scale = gamma / torch.sqrt(variance + layer.epsilon)
            return lambda x: x * scale[:, None, None] + (beta - mean * scale)[:, None, None]
        case "Dense":
            kernel, bias = weights
            return _activated(layer, lambda x: functional.linear(x, kernel.T.contiguous(), bias))
        case "ReLU":
            return lambda x: torch.clamp(x, 0, layer.max_value)
        case "Activation":
            return _activated(layer, lambda x: x)
        case "ZeroPadding2D":
            (top, bottom), (left, right) = layer.padding
            return lambda x: functional.pad(x, (left, right, top, bottom))
        case "MaxPooling2D":
            return lambda x: functional.max_pool2d(x, layer.pool_size, layer.strides)
        case "GlobalAveragePooling2D":
            return lambda x: x.mean((2, 3))
        case "Flatten":
            return lambda x: x.permute(0, 2, 3, 1).flatten(1)
        case "Add":
            return lambda *each: sum(each[1:], each[0])
        case kind:
            raise TypeError(f"layers of the kind {kind} are not known here")


def _convolution(layer: keras.layers.Layer, weights: list[Tensor]) -> Step:
    kernel, *bias = weights
    height, width, channels, _ = kernel.shape
    if type(layer).__name__ == "DepthwiseConv2D":
        groups, kernel = channels, kernel.permute(2, 3, 0, 1).reshape(-1, 1, height, width)
    else:
        groups, kernel = 1, kernel.permute(3, 2, 0, 1)
    kernel = kernel.contiguous()

    def convolve(x: Tensor) -> Tensor:
        if layer.padding == "same":
            x = functional.pad(x, _same(x.shape[2:], (height, width), layer.strides))
        return functional.conv2d(x, kernel, bias[0] if bias else None, layer.strides, groups=groups)

    return _activated(layer, convolve)


def _same(size: tuple[int, int], kernel: tuple[int, int], strides: tuple[int, int]) -> tuple[int, ...]:
    """Return the padding that TensorFlow calls SAME: left, right, top, bottom; the odd pixel at the end."""
    padding: list[int] = []
    for extent, k, stride in zip(size, kernel, strides, strict=True):
        total = max(0, (-(-extent // stride) - 1) * stride + k - extent)
        padding = [total // 2, total - total // 2, *padding]
    return tuple(padding)


def _activated(layer: keras.layers.Layer, step: Step) -> Step:
    match layer.activation.__name__:
        case "linear":
            return step
        case "relu":
            return lambda x: functional.relu(step(x))
        case "softmax":
            return lambda x: functional.softmax(step(x), dim=-1)
        case name:
            raise TypeError(f"the activation {name} is not known here")


def _tensors(tensors: Any) -> list[Any]:
    return list(tensors) if isinstance(tensors, list | tuple) else [tensors]


def answer(twin: Twin, image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the output for one image (height, width, channels), flattened."""
    with torch.no_grad():
        found: NDArray[np.float32] = twin(torch.from_numpy(image).permute(2, 0, 1)[None]).numpy().reshape(-1)
    return found
