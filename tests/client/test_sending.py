from typing import Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from vitrail import Objective, Occlusion, TopK
from vitrail.errors import InvalidArgument
from vitrail.request import ImageLike, Options, image_message, set_budget, specification
from vitrail.sending import TilesRequest, varint
from vitrail.tensors import DTYPES, from_tensor
from vitrail.v1 import explanation_pb2 as pb

OPTIONS: Options = {
    "version_label": "stable",
    "method": Occlusion(4, fill=np.ones((2, 2, 1), np.float32)),
    "targets": TopK(3),
    "objective": Objective("SQUARED_ERROR", (1.5, 2.0)),
    "inputs": {"age": np.array([7], np.int64)},
    "priority": 1,
}


def protobufs_own(options: Options, image: ImageLike, budget: float | None = None) -> pb.ExplainTilesRequest:
    request = pb.ExplainTilesRequest(spec=specification("net", options))
    request.spec.image.CopyFrom(image_message(image))
    set_budget(request.spec, budget)
    return request


def read(request: TilesRequest) -> pb.ExplainTilesRequest:
    return pb.ExplainTilesRequest.FromString(request.serialized())


@pytest.mark.parametrize("options", [{}, OPTIONS])
@pytest.mark.parametrize("size", [1, 2, 31, 32, 127, 128, 200, 16384, 70000])
def test_protobuf_reads_what_it_would_have_written(options: Options, size: int) -> None:
    for image in (np.arange(size, dtype=np.uint8)[:, None, None], b"x" * size):
        request = TilesRequest(specification("net", options), image)

        assert read(request) == protobufs_own(options, image)
        # Nothing is written twice, and no length in more bytes than it needs.
        assert len(request.serialized()) == protobufs_own(options, image).ByteSize()
        assert request.image() == image_message(image)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
@pytest.mark.parametrize("order", ["<", ">"])
def test_every_type_and_layout_of_an_array_is_sent_in_order(
    dtype: np.dtype[np.generic], order: Literal["<", ">"]
) -> None:
    array: NDArray[np.generic] = np.arange(24).reshape(4, 3, 2).astype(dtype.newbyteorder(order))[::2].T

    tensor = read(TilesRequest(specification("net", {}), array)).spec.image.tensor

    np.testing.assert_array_equal(from_tensor(tensor, "image"), array)


def test_an_array_that_changes_meanwhile_is_sent_as_it_was() -> None:
    array = np.zeros((2, 2, 3), np.float32)
    before = array.copy()
    request = TilesRequest(specification("net", {}), array)

    array[...] = 1
    request.set_budget(2.0)

    assert read(request) == protobufs_own({}, before, 2.0)
    assert request.image() == image_message(before)


def test_each_budget_takes_the_place_of_the_one_before() -> None:
    image = np.ones((2, 2, 3), np.float32)
    request = TilesRequest(specification("net", OPTIONS), image)

    for budget in (None, 2.5, 300.0, 0.25, None):
        request.set_budget(budget)

        assert read(request) == protobufs_own(OPTIONS, image, budget)


def test_an_image_that_cannot_be_sent_is_refused_at_once() -> None:
    with pytest.raises(InvalidArgument) as refusal:
        TilesRequest(specification("net", {}), np.zeros((2, 2), complex))

    assert refusal.value.field == "spec.image.tensor"


@pytest.mark.parametrize(
    ("number", "written"),
    [(0, b"\x00"), (127, b"\x7f"), (128, b"\x80\x01"), (300, b"\xac\x02"), (2**32, b"\x80\x80\x80\x80\x10")],
)
def test_varints_are_those_of_the_protobuf_encoding(number: int, written: bytes) -> None:
    assert varint(number) == written
