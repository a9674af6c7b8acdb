"""What is measured on which model, and how long: the full benchmarks and the quick ones."""

from dataclasses import dataclass

from benchmarks.figures import LEAST_ROUNDS


@dataclass(frozen=True, slots=True)
class Case:
    """One model, one grid of windows, and what is measured with them."""

    model: str
    patch: int
    """The windows of the occlusions have this many pixels a side, and lie side by side."""
    occlusion_limit: float | None = None
    """The most that a served map should cost, in raw forwards. None: there is no target."""
    notebook: bool = False
    """Whether to measure the notebook's loop on the same grid."""
    gradients: bool = True
    """Whether to measure gradient maps."""
    callers: bool = True
    """Whether to measure gradient maps with several callers as well."""
    judged: bool = True
    """Whether the targets are meant: not for a network so small that a message on the wire takes as long."""


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is measured."""

    cases: tuple[Case, ...]
    rounds: int
    seconds: float
    """The least time that one timing of repeated calls takes."""
    batch_sizes: tuple[int, ...]
    """The batches that the raw side tries."""
    gradient_batch_sizes: tuple[int, ...]
    """Those whose gradients the suite `limit` reports."""
    outstanding_maps: int
    """Gradient maps in one round of the figure with many callers."""
    latencies: int
    """Gradient maps in one round of the figure with another caller's occlusion."""
    notebook_windows: int
    """Windows of the notebook's loop in one round."""

    @property
    def models(self) -> tuple[str, ...]:
        """The models of the cases, each one once."""
        return tuple(dict.fromkeys(case.model for case in self.cases))


QUICK = Scale(
    cases=(
        Case("mobilenet_v2", 16, occlusion_limit=1.12, notebook=True),
        Case("resnet50_v2", 32, occlusion_limit=1.05, callers=False),
    ),
    rounds=LEAST_ROUNDS,
    seconds=0.2,
    batch_sizes=(1, 4),
    gradient_batch_sizes=(1,),
    outstanding_maps=16,
    latencies=6,
    notebook_windows=5,
)

FULL = Scale(
    cases=(
        Case("mobilenet_v2", 16, occlusion_limit=1.12),
        Case("mobilenet_v2", 6, occlusion_limit=1.12, notebook=True, gradients=False, callers=False),
        Case("resnet50_v2", 32, occlusion_limit=1.05, notebook=True),
        Case("efficientnet_lite0", 16, notebook=True),
        Case("silhouette_regressor", 6, notebook=True, judged=False),
    ),
    rounds=8,
    seconds=0.5,
    batch_sizes=(1, 2, 4, 8, 16),
    gradient_batch_sizes=(1, 2, 4, 8),
    outstanding_maps=32,
    latencies=12,
    notebook_windows=20,
)
