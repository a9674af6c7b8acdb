"""Captum, run directly on the same SavedModel, agrees with the served maps.

The bridge makes one PyTorch function of the SavedModel's signature and its input gradient, so both sides
use the same weights and only the explainer differs. `scripts/oracles` installs what this needs.
"""

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import torch
from captum.attr import InputXGradient, Occlusion, Saliency
from numpy.typing import NDArray

import vitrail
from integration.conftest import ROOT
from sample_models.silhouettes import draw

TOLERANCE = 1e-5
"""Of the largest absolute value of the map."""


class Bridge(torch.autograd.Function):  # type: ignore[misc]  # PyTorch's types are not followed
    """The signature as a PyTorch function of an image batch (n, h, w, c)."""

    signature: Any = None

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return torch.from_numpy(_outputs(x.detach().numpy()).numpy().copy())

    @staticmethod
    def backward(ctx: Any, cotangent: torch.Tensor) -> torch.Tensor:
        [x] = ctx.saved_tensors
        image = tf.constant(x.detach().numpy())
        with tf.GradientTape() as tape:
            tape.watch(image)
            outputs = _outputs(image)
        gradient = tape.gradient(outputs, image, output_gradients=tf.constant(cotangent.numpy()))
        return torch.from_numpy(gradient.numpy().copy())


def _outputs(images: Any) -> Any:
    [outputs] = Bridge.signature(tf.constant(images)).values()
    return outputs


@pytest.fixture(autouse=True)
def _signature() -> None:
    path = ROOT / "model_repository" / "silhouette_regressor" / "2" / "model.savedmodel"
    loaded = tf.saved_model.load(str(path))
    Bridge.signature = loaded.signatures["serving_default"]
    Bridge.signature.keep = loaded


@pytest.fixture
def image() -> NDArray[np.float32]:
    return draw(np.random.default_rng(30_000)).image


def ask(client: vitrail.Client, image: NDArray[np.float32], method: Any) -> NDArray[np.float32]:
    values: NDArray[np.float32] = client.explain(
        image, model="silhouette_regressor", version=2, method=method
    ).values[0]
    return values


def assert_close(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> None:
    np.testing.assert_allclose(ours, theirs, atol=TOLERANCE * np.abs(theirs).max(), rtol=0)


@pytest.mark.parametrize(("patch", "stride"), [(56, 56), (60, 40), (48, 30)])
def test_occlusion(client: vitrail.Client, image: NDArray[np.float32], patch: int, stride: int) -> None:
    ours = ask(client, image, vitrail.Occlusion(patch=patch, stride=stride, fill=0.5))
    theirs = Occlusion(Bridge.apply).attribute(
        torch.from_numpy(image[None]),
        sliding_window_shapes=(patch, patch, 1),
        strides=(stride, stride, 1),
        baselines=0.5,
        target=0,
        perturbations_per_eval=8,
    )

    assert_close(ours, theirs.numpy()[0, ..., 0])


def test_gradient(client: vitrail.Client, image: NDArray[np.float32]) -> None:
    ours = ask(client, image, vitrail.Gradient())
    theirs = Saliency(Bridge.apply).attribute(torch.from_numpy(image[None]).requires_grad_(), target=0)

    assert_close(ours, theirs.numpy()[0, ..., 0])


def test_gradient_times_input(client: vitrail.Client, image: NDArray[np.float32]) -> None:
    ours = ask(client, image, vitrail.Gradient(times_input=True, signed=True, channel_reduction="SUM"))
    theirs = InputXGradient(Bridge.apply).attribute(torch.from_numpy(image[None]).requires_grad_(), target=0)

    assert_close(ours, theirs.detach().numpy()[0, ..., 0])
