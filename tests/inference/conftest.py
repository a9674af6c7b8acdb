"""One server with models of Triton's kind and one that can be explained, for requests that leave nothing."""

import logging
from collections.abc import AsyncIterator, Collection, Iterator

import numpy as np
import pytest
import pytest_asyncio

from fakes.serving import Offer, Served, served
from vitrail.errors import FailedPrecondition

from .models import UNUSED, Arrays, echo, identity, pictures, predicts, simple


def fail_to_load() -> None:
    raise FailedPrecondition("the SavedModel has no signature")


def mean(arrays: Arrays, wanted: Collection[str]) -> Arrays:
    return {"OUT_IN": arrays["IN"], "loss": np.array(arrays["IN"].astype(np.float32).mean())}


def offers() -> dict[str, Offer]:
    return {
        "simple": simple(),
        "versions": simple(versions=(1, 3), config="version_policy { all {} }"),
        "strings": identity("BYTES", (-1, -1)),
        "halves": identity("BF16", (-1, 2)),
        "shorts": identity("FP16", (-1, 2)),
        "flags": identity("BOOL", (-1, 3)),
        "bytes": identity("UINT8", (-1, 3)),
        "scalar": identity("FP32", (), most=0),
        "fixed": identity("FP32", (2, 3), most=0),
        "anything": identity("FP32", None),
        "logits": Offer(
            model=UNUSED,
            description=predicts(
                {"IN": ("FP32", (-1, 4))},
                {"OUT_IN": ("FP32", (-1, 4))},
                labels={"OUT_IN": ("a", "b", "c", "d")},
            ),
            predict=echo,
        ),
        "loss": Offer(
            model=UNUSED,
            description=predicts(
                {"IN": ("FP32", (-1, 4))}, {"OUT_IN": ("FP32", (-1, 4)), "loss": ("FP32", ())}
            ),
            predict=mean,
        ),
        "pictures": pictures(),
        "broken": simple(on_load=fail_to_load),
    }


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def zoo(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    async with served(tmp_path_factory.mktemp("zoo"), offers()) as running:
        yield running


@pytest.fixture
def restored_log() -> Iterator[None]:
    """Put the log's level and form back."""
    root = logging.getLogger()
    level, formatters = root.level, [(handler, handler.formatter) for handler in root.handlers]
    yield
    root.setLevel(level)
    for handler, formatter in formatters:
        handler.setFormatter(formatter)
