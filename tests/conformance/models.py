"""What is served to these tests."""

from fakes.models import Linear, Softmax, picture, weights
from fakes.serving import Gate, Offer
from fakes.wide import Plain

SHAPE = (6, 8, 3)
IMAGE = picture(0, SHAPE)
WEIGHTS = weights(1, 3, SHAPE)

WIDE_SHAPE = (400, 700, 1)
"""A map of it has more than a MiB."""


def everything() -> dict[str, Offer]:
    """Return a linear model with three outputs, a softmax over as many, and one with large maps."""
    return {
        "linear": Offer(model=Linear(WEIGHTS)),
        "softmax": Offer(model=Softmax(WEIGHTS)),
        "wide": Offer(model=Plain(WIDE_SHAPE, 2)),
    }


def gated() -> tuple[dict[str, Offer], Gate]:
    """Return the linear model behind a gate that holds back its batches, and the gate."""
    gate = Gate(is_open=False)
    return {"linear": Offer(model=Linear(WEIGHTS), gate=gate)}, gate
