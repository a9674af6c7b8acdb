"""The peers: other libraries' occlusion maps of the same networks, in a process of their own.

They are installed by `scripts/peers`. Each is called as its documentation has it, once per map, with the
batch size that it chooses itself or, where it leaves that to the caller, with the best of those tried.
Light to import: the libraries are loaded where `Rivals` is made.
"""

import contextlib
import io
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.models import GRAY, PROJECT
from benchmarks.timing import Cost, Stopwatch

PACKAGES = PROJECT / "build" / "peers" / "lib"
PERTURBATIONS = (1, 8)
"""Captum's `perturbations_per_eval` that are tried."""

Image = NDArray[np.float32]


def installed() -> bool:
    """Whether `scripts/peers` has been run."""
    return any(PACKAGES.glob("python*/site-packages/captum"))


class Rivals:
    """Networks by name, and what maps of them cost elsewhere."""

    def __init__(self) -> None:
        sys.path += [str(each) for each in PACKAGES.glob("python*/site-packages")]
        from benchmarks import networks

        networks.use_one_thread()
        import torch

        torch.set_num_threads(1)
        self._torch = torch
        self._networks = networks
        self._keras: dict[str, Any] = {}
        self._twins: dict[str, Any] = {}
        self._targets: dict[str, int] = {}

    def load(self, model: str, image: Image) -> dict[str, float]:
        """Load a network for every library, and return the highest output that each of them computes."""
        from benchmarks import twin

        network = self._keras[model] = self._networks.build(model)
        other = self._twins[model] = twin.Twin(network).eval()
        theirs = network.predict(image[None], verbose=0).reshape(-1)
        target = self._targets[model] = int(theirs.argmax())
        return {"Keras": float(theirs.max()), "PyTorch": float(twin.answer(other, image)[target])}

    def tf_explain(self, model: str, image: Image, patch: int) -> Cost:
        """Return the cost of one map by tf-explain."""
        from tf_explain.core.occlusion_sensitivity import OcclusionSensitivity

        explainer, network, target = OcclusionSensitivity(), self._keras[model], self._targets[model]
        with contextlib.redirect_stdout(io.StringIO()):  # it shows its progress
            return _cost(lambda: explainer.get_sensitivity_map(network, image, target, patch))

    def xplique(self, model: str, image: Image, patch: int) -> Cost:
        """Return the cost of one map by Xplique."""
        from xplique.attributions import Occlusion

        network = self._keras[model]
        explainer = Occlusion(network, patch_size=patch, patch_stride=patch, occlusion_value=GRAY)
        wanted = np.eye(network.output_shape[-1], dtype=np.float32)[[self._targets[model]]]
        return _cost(lambda: explainer(image[None], wanted))

    def captum(self, model: str, image: Image, patch: int, perturbations: int) -> Cost:
        """Return the cost of one map by Captum on the same network in PyTorch."""
        from captum.attr import Occlusion

        explainer = Occlusion(self._twins[model])
        tensor = self._torch.from_numpy(image).permute(2, 0, 1)[None].contiguous()
        window = (image.shape[-1], patch, patch)

        def explain() -> object:
            with self._torch.no_grad():
                return explainer.attribute(
                    tensor,
                    target=self._targets[model],
                    sliding_window_shapes=window,
                    strides=window,
                    baselines=GRAY,
                    perturbations_per_eval=perturbations,
                )

        return _cost(explain)


def _cost(explain: Callable[[], object]) -> Cost:
    with Stopwatch() as watch:
        explain()
    return watch.per(1)
