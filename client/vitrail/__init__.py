"""The Vitrail client: explains image models where they are served.

    import vitrail

    with vitrail.Client("localhost:8001") as client:
        explanation = client.explain("photo.jpg", model="efficientnet_lite0")
        explanation.overlay().save("overlay.png")

`vitrail.aio.Client` is the asyncio twin. Everything public is named here; the messages on the wire
are in `vitrail.v1`.
"""

from vitrail import aio
from vitrail.client import Client
from vitrail.errors import (
    Cancelled,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
    Unimplemented,
    VitrailError,
)
from vitrail.explanation import Explanation, Target
from vitrail.methods import Fill, Gradient, Occlusion
from vitrail.request import Objective, Options, TopK

__all__ = [
    "Cancelled",
    "Client",
    "DeadlineExceeded",
    "Explanation",
    "FailedPrecondition",
    "Fill",
    "Gradient",
    "Internal",
    "InvalidArgument",
    "NotFound",
    "Objective",
    "Occlusion",
    "Options",
    "PermissionDenied",
    "ResourceExhausted",
    "Target",
    "TopK",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "VitrailError",
    "aio",
]
