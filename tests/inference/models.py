"""Models of Triton's kind in NumPy, and what a repository says of them."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fakes.models import Linear, Softmax, weights
from fakes.servables import describe
from fakes.serving import Gate, Offer
from vitrail_server.servable import (
    Batching,
    Capabilities,
    Description,
    ModelSettings,
    Signature,
    TensorSpec,
)

Arrays = Mapping[str, NDArray[np.generic]]

SHAPE = (6, 8, 3)
LABELS = ("tabby cat", "espresso", "espresso maker")
NO_IMAGE = "the model has no image input: explanations need a numeric one of shape [N,H,W,C]"
PICTURES = Softmax(weights(1, 3, SHAPE))
UNUSED = Linear(weights(0, 1, (1, 1, 1)))
"""What an offer without explanations explains."""


def predicts(
    inputs: Mapping[str, tuple[str, tuple[int, ...] | None]],
    outputs: Mapping[str, tuple[str, tuple[int, ...] | None]],
    **settings: Any,
) -> Description:
    """Return the description of a model that only predicts."""
    return Description(
        name="fake",
        version=1,
        signature=Signature(
            {name: TensorSpec(name, *spec) for name, spec in inputs.items()},
            {name: TensorSpec(name, *spec) for name, spec in outputs.items()},
        ),
        settings=ModelSettings(
            **{"image_input": None, "image_reason": NO_IMAGE, "max_request_batch": 8, **settings}
        ),
        task="REGRESSION",
        probabilities=frozenset(),
        output_elements={},
        capabilities=Capabilities(gradient_reason=NO_IMAGE, occlusion_reason=NO_IMAGE),
    )


def sums_and_differences(arrays: Arrays, wanted: Collection[str]) -> Arrays:
    """Triton's `simple`; INPUT0 of all 13 makes the model fail."""
    a, b = (np.asarray(arrays[name], np.int32) for name in ("INPUT0", "INPUT1"))
    if (a == 13).all(-1).any():
        raise RuntimeError("thirteen is unlucky")
    return {"OUTPUT0": a + b, "OUTPUT1": a - b}


def echo(arrays: Arrays, wanted: Collection[str]) -> Arrays:
    """Give every input back under the same name with `OUT` before it."""
    return {f"OUT_{name}": array for name, array in arrays.items()}


def simple(gate: Gate | None = None, batching: Batching | None = None, most: int = 8, **offer: Any) -> Offer:
    """Return Triton's `simple`: sums and differences of two INT32 [-1,16]."""
    specs = ("INT32", (-1, 16))
    return Offer(
        model=UNUSED,
        description=predicts(
            {"INPUT0": specs, "INPUT1": specs},
            {"OUTPUT0": specs, "OUTPUT1": specs},
            batching=batching,
            max_request_batch=most,
        ),
        predict=sums_and_differences,
        gate=gate,
        **offer,
    )


def identity(datatype: str, shape: tuple[int, ...] | None, most: int = 8, **settings: Any) -> Offer:
    """Return a model that gives its one input back."""
    return Offer(
        model=UNUSED,
        description=predicts(
            {"IN": (datatype, shape)}, {"OUT_IN": (datatype, shape)}, max_request_batch=most, **settings
        ),
        predict=echo,
    )


def pictures(gate: Gate | None = None, **settings: Any) -> Offer:
    """Return a classifier of images, which can be explained."""
    described = describe(SHAPE, 3, task="CLASSIFICATION", labels=LABELS, probabilities=True)
    return Offer(
        model=PICTURES,
        description=replace(described, settings=replace(described.settings, **settings)),
        gate=gate,
    )
