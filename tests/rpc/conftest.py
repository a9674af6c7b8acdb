"""One server with a model of every kind, for requests that leave nothing behind."""

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
import pytest_asyncio

from fakes.models import Linear, Quadratic, Softmax, weights
from fakes.servables import OUTPUT, describe
from fakes.serving import Offer, Served, served
from fakes.wide import Plain
from vitrail.errors import FailedPrecondition
from vitrail_server.servable import Capabilities, Description, Signature, TensorSpec

SHAPE = (6, 8, 3)
LABELS = ("tabby cat", "espresso", "espresso maker")


def fail_to_load() -> None:
    raise FailedPrecondition("the SavedModel has no signature; run scripts/models")


def zoo_offers() -> dict[str, Offer]:
    """Return the models: most of them small, each with something that a request can run into."""
    beside = describe((6, 8, 1), 2)
    beside = replace(
        beside,
        signature=Signature(
            {**beside.signature.inputs, "age": TensorSpec("age", "FP32", (-1, 2))},
            {**beside.signature.outputs, "mood": TensorSpec("mood", "FP32", (-1, 2))},
        ),
        output_elements={OUTPUT: 2, "mood": 2},
    )
    return {
        "classifier": Offer(
            model=Softmax(weights(1, 3, SHAPE)),
            description=describe(SHAPE, 3, task="CLASSIFICATION", labels=LABELS, probabilities=True),
        ),
        "colour": Offer(model=Linear(weights(2, 3, SHAPE)), versions=(1, 2, 7), config=CONFIG),
        "grey": Offer(model=Quadratic(weights(3, 2, (6, 8, 1)))),
        "bytes": Offer(model=Linear(weights(4, 2, SHAPE)), description=describe(SHAPE, 2, dtype="UINT8")),
        "many": Offer(model=Linear(weights(5, 65, (2, 3, 1)))),
        "huge": Offer(
            model=Plain((4096, 4096, 1), 1), description=describe((4096, 4096, 1), 1, dtype="UINT8")
        ),
        "large": Offer(model=Plain((512, 513, 1), 1)),
        "beside": Offer(model=Linear(weights(6, 2, (6, 8, 1))), description=beside),
        "moody": Offer(
            model=Linear(weights(6, 2, (6, 8, 1))),
            description=replace(beside, settings=replace(beside.settings, score_tensor="mood")),
        ),
        "infrared": Offer(model=Linear(weights(7, 1, (6, 8, 5)))),
        "incapable": Offer(
            model=Linear(weights(8, 1, (6, 8, 1))),
            description=describe(
                (6, 8, 1),
                1,
                capabilities=Capabilities(
                    gradient_reason="no gradient passes ArgMax: export the scores before it",
                    occlusion_reason="answers depend on the other images of a batch",
                    incremental_reason="a window needs only 1.04 times fewer multiplications",
                ),
            ),
        ),
        "imageless": Offer(model=Plain((2, 2, 1), 1), description=without_image()),
        "unloadable": Offer(model=Plain((2, 2, 1), 1), on_load=fail_to_load),
        "misconfigured": Offer(model=Plain((2, 2, 1), 1), config="nonsense {"),
    }


def without_image() -> Description:
    """Return the description of a model that predicts, and whose predictions cannot be explained."""
    described = describe((2, 2, 1), 1)
    return replace(
        described,
        settings=replace(described.settings, image_input=None, image_reason=NO_IMAGE),
        output_elements={},
        capabilities=Capabilities(NO_IMAGE, NO_IMAGE, incremental_reason=NO_IMAGE),
    )


NO_IMAGE = "the model has no image input: explanations need a numeric one of shape [N,H,W,C]"

CONFIG = """
version_policy { specific { versions: [1, 7] } }
parameters { key: "vitrail.version_labels" value { string_value: "stable=1,canary=7" } }
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def zoo(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    async with served(tmp_path_factory.mktemp("zoo"), zoo_offers()) as running:
        yield running
