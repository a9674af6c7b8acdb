"""What is measured on which model, and how long: the full benchmarks and the quick ones."""

from dataclasses import dataclass

from benchmarks.figures import LEAST_ROUNDS


@dataclass(frozen=True, slots=True)
class Case:
    """One model, one grid of windows, and what is measured with them."""

    model: str
    patch: int
    """The windows of the occlusions have this many pixels a side, and lie side by side."""
    plain: bool = True
    """Whether to measure occlusions that evaluate every window in full."""
    occlusion_limit: float | None = None
    """The most that such a map should cost, in raw forwards. None: there is no target."""
    incremental: bool = True
    """Whether to measure incremental occlusions."""
    incremental_limit: float | None = None
    """The most that such a map should cost, in raw forwards. None: there is no target."""
    limits: bool = True
    """Whether the suite `limit` reports the model."""
    gradients: bool = True
    """Whether to measure gradient maps."""
    callers: bool = True
    """Whether to measure several callers as well."""
    peers: bool = False
    """Whether to measure other ways to make the same map."""
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
    loop_windows: int
    """Windows in one round of the peers that take one window after the other."""
    memory_stride: int
    """The distance of the windows of the map whose memory is measured."""
    patience: float
    """Seconds in which the plan of an incremental occlusion must be ready; until then it runs in full."""
    libraries: bool = False
    """Whether to measure the libraries that `scripts/peers` installs."""
    waits: bool = False
    """Whether to measure waits that have no target."""
    rewritten: bool = False
    """Whether to measure what the server makes of a gradient."""
    precision: bool = False
    """Whether to measure bfloat16 and XLA."""
    loading: tuple[str, str] | None = None
    """The model whose chunks are timed while the other one is loaded. None: not measured."""

    @property
    def models(self) -> tuple[str, ...]:
        """The models of the cases, each one once."""
        return tuple(dict.fromkeys(case.model for case in self.cases))


QUICK = Scale(
    cases=(
        Case("mobilenet_v2", 16, occlusion_limit=1.12, incremental_limit=0.52),
        Case("resnet50_v2", 32, occlusion_limit=1.05, incremental=False, limits=False, callers=False),
    ),
    rounds=LEAST_ROUNDS,
    seconds=0.05,
    batch_sizes=(1, 4),
    gradient_batch_sizes=(1,),
    outstanding_maps=16,
    latencies=4,
    loop_windows=6,
    memory_stride=2,
    patience=15.0,
)

FULL = Scale(
    cases=(
        Case("mobilenet_v2", 16, occlusion_limit=1.12, incremental_limit=0.52, peers=True),
        Case("resnet50_v2", 32, occlusion_limit=1.05, incremental=False, peers=True),
        Case(
            "resnet50_v2",
            16,
            plain=False,
            incremental_limit=0.60,
            limits=False,
            gradients=False,
            callers=False,
        ),
        Case(
            "vgg16",
            16,
            plain=False,
            incremental_limit=0.20,
            limits=False,
            gradients=False,
            callers=False,
        ),
        Case("efficientnet_lite0", 16),
        Case("silhouette_regressor", 6, judged=False),
    ),
    rounds=6,
    seconds=0.4,
    batch_sizes=(1, 2, 4, 8, 16),
    gradient_batch_sizes=(1, 4, 8),
    outstanding_maps=32,
    latencies=12,
    loop_windows=20,
    memory_stride=1,
    patience=60.0,
    libraries=True,
    waits=True,
    rewritten=True,
    precision=True,
    loading=("mobilenet_v2", "resnet50_v2"),
)
