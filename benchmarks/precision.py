"""The suite `precision`: what bfloat16 and XLA make of the graph that the server runs, on one core.

Nothing here has a target. bfloat16 is for models that opt in, so what they gain and what it costs is told;
XLA is not offered, and this is why.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.figures import Figure, measured, rounded
from benchmarks.models import PROJECT, Form
from benchmarks.raw import Raw
from benchmarks.sides import Needs, Sides, say
from benchmarks.timing import Cost, best_batch

SUITE = "precision"

NEEDS = Needs()

PHOTOGRAPHED = "efficientnet_lite0"
"""The model whose maps are compared: it is trained, and takes pixels from 0 to 255."""

PHOTOS = ("chelsea.jpg", "coffee.jpg")

PATCH, GRAY = 16, 127.0


def measure(sides: Sides) -> Iterator[Figure]:
    """Yield the figures of every model."""
    if not sides.scale.precision:
        return
    forms: list[Form] = ["xla"]
    if reason := sides.raw.call(Raw.bfloat16_reason):
        say(f"bfloat16 is left out: {reason}")
    else:
        forms.append("bf16")
    for model in dict.fromkeys(case.model for case in sides.scale.cases if case.limits):
        for form in forms:
            yield _gain(sides, model, form)
        if model == PHOTOGRAPHED and "bf16" in forms:
            yield _agreement(sides, model)


def _gain(sides: Sides, model: str, form: Form) -> Figure:
    raw, scale = sides.raw, sides.scale

    def forward(form: Form, size: int, seconds: float) -> Cost:
        return raw.call(Raw.forward, model, form, size, seconds)

    size = best_batch(lambda size: forward("frozen", size, 0.0), scale.batch_sizes)
    pairs = []
    for turn in range(scale.rounds):
        order: list[Form] = [form, "frozen"] if turn % 2 else ["frozen", form]
        costs = {each: forward(each, size, scale.seconds) for each in order}
        pairs.append(costs["frozen"].seconds / costs[form].seconds)
    name = "bfloat16" if form == "bf16" else "XLA"
    return measured(
        SUITE,
        f"{form}_over_frozen",
        model,
        pairs,
        how=f"images per second with {name} over those of the frozen graph, in batches of {size}",
        detail={"batch": size},
    )


def _agreement(sides: Sides, model: str) -> Figure:
    found = {
        name: sides.raw.call(Raw.agreement, model, _photo(name, sides.shapes[model]), PATCH, GRAY)
        for name in PHOTOS
    }
    return Figure(
        SUITE,
        f"bf16_map_agreement_patch_{PATCH}",
        model,
        min(found.values()),
        unit="rank correlation",
        detail={
            "how": "Spearman's rank correlation of maps in bfloat16 with those in float32, the lowest",
            "photos": {name: rounded(each) for name, each in found.items()},
        },
    )


def _photo(name: str, shape: tuple[int, int, int]) -> NDArray[np.float32]:
    """Return the middle of one of the examples' photos, as the model takes it."""
    height, width, _ = shape
    with Image.open(PROJECT / "examples" / "photos" / name) as photo:
        side = min(photo.size)
        left, top = (photo.width - side) // 2, (photo.height - side) // 2
        square = photo.convert("RGB").resize(
            (width, height), Image.Resampling.BILINEAR, (left, top, left + side, top + side)
        )
    return np.asarray(square, np.float32)
