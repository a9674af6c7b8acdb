"""The raw side: TensorFlow without a server, in a process of its own (`process.Remote`).

Light to import: TensorFlow is loaded where a `Raw` is made.
"""

from statistics import median
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from benchmarks.models import CACHE, GRAY, Form, Model
from benchmarks.timing import Cost, Stopwatch

if TYPE_CHECKING:
    from benchmarks.networks import Network


class Raw:
    """Networks by name, and what they cost."""

    def __init__(self) -> None:
        from benchmarks import networks

        networks.use_one_thread()
        self._networks = networks
        self._loaded: dict[str, Network] = {}
        self._shares: list[float] = []

    def write(self, name: str) -> None:
        """Make one of the models that are made here."""
        self._networks.write(self._networks.build(name), CACHE / name)

    def load(self, model: Model) -> tuple[int, int, int]:
        """Load a model in every form, and return the shape of its image."""
        network = self._networks.Network(model.saved_model, model.name)
        self._loaded[model.name] = network
        return network.image_shape

    def forward(self, model: str, form: Form, batch: int, seconds: float) -> Cost:
        """Return the cost of one image; see `networks.Network.forward`."""
        return self._noted(self._loaded[model].forward(form, batch, seconds))

    def agreement(self, model: str, image: NDArray[np.float32], patch: int, fill: float) -> float:
        """Return how alike two maps are; see `networks.Network.agreement`."""
        return self._loaded[model].agreement(image, patch, fill)

    def bfloat16_reason(self) -> str:
        """Return why this processor is not asked to multiply in bfloat16; empty if it can."""
        return self._networks.bfloat16_reason()

    def gradient(self, model: str, batch: int, seconds: float) -> Cost:
        """Return the cost of one image; see `networks.Network.gradient`."""
        return self._noted(self._loaded[model].gradient(batch, seconds))

    def rewritten_gradient(self, model: str, batch: int, seconds: float) -> Cost:
        """Return the cost of one image; see `networks.Network.rewritten_gradient`."""
        return self._noted(self._loaded[model].rewritten_gradient(batch, seconds))

    def predict_windows(self, model: str, image: NDArray[np.float32], patch: int, windows: int) -> Cost:
        """Return the cost of one window; see `networks.Network.predict_windows`."""
        return self._loaded[model].predict_windows(image, patch, windows)

    def answer(self, model: str, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the Keras model's output for one image, flattened."""
        return self._loaded[model].answer(image)

    def hide_windows(self, image: NDArray[np.float32], patch: int, repeats: int) -> Cost:
        """Return the cost of building one occluded row as the server does."""
        from vitrail_server.savedmodel.rows import InputLayout, RowBuffer, RowLayout
        from vitrail_server.work import Subject

        buffer = RowBuffer(RowLayout("image", InputLayout(image.shape, image.dtype), {}), 1)
        subject = Subject(image, fill=np.full_like(image, GRAY))
        window = (0, 0, patch, patch)
        buffer.fill([(subject, window)])
        with Stopwatch() as watch:
            for _ in range(repeats):
                buffer.fill([(subject, window)])
        return watch.per(repeats)

    def devices(self) -> list[str]:
        """Return the devices that TensorFlow computes on, the ones that it prefers first."""
        return self._networks.devices()

    def share_of_core(self) -> float | None:
        """Return the median share of its core that the raw side got while it was timed.

        1 where nobody else used it. None: nothing was timed.
        """
        return median(self._shares) if self._shares else None

    def _noted(self, cost: Cost) -> Cost:
        if cost.processor is not None:
            self._shares.append(cost.processor / cost.seconds)
        return cost
