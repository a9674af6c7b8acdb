import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vitrail.errors import InvalidArgument
from vitrail.tensors import DTYPES, MAX_RANK, from_tensor, layout, to_tensor
from vitrail.v1.tensor_pb2 import DataType, Tensor


def test_values_are_little_endian_in_row_major_order() -> None:
    tensor = to_tensor(np.array([[1, 2], [3, 4]], ">u2").T)

    assert tensor == Tensor(
        data_type=DataType.DATA_TYPE_UINT16, shape=[2, 2], data=bytes([1, 0, 3, 0, 2, 0, 4, 0])
    )


def test_every_type_of_the_wire_but_unspecified_has_a_numpy_type() -> None:
    assert set(DTYPES) == set(DataType.values()) - {DataType.DATA_TYPE_UNSPECIFIED}


@given(
    hnp.arrays(
        st.sampled_from(list(DTYPES.values())), hnp.array_shapes(min_dims=0, max_dims=MAX_RANK, max_side=3)
    )
)
def test_an_array_survives_the_wire(array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> None:
    again = from_tensor(Tensor.FromString(to_tensor(array).SerializeToString()), "image")

    assert again.dtype == array.dtype
    np.testing.assert_array_equal(again, array)


@pytest.mark.parametrize(
    ("tensor", "field"),
    [
        (Tensor(shape=[1], data=b"1"), "image.data_type"),
        (Tensor(data_type=DataType.DATA_TYPE_UINT8, shape=[2], data=b"1"), "image.data"),
        (Tensor(data_type=DataType.DATA_TYPE_UINT8, shape=[1], data=b"12"), "image.data"),
        (Tensor(data_type=DataType.DATA_TYPE_UINT8, shape=[0]), "image.shape"),
        (Tensor(data_type=DataType.DATA_TYPE_UINT8, shape=[-1, -1], data=b"1"), "image.shape"),
        (Tensor(data_type=DataType.DATA_TYPE_UINT8, shape=[1] * (MAX_RANK + 1), data=b"1"), "image.shape"),
        (Tensor(data_type=DataType.DATA_TYPE_FP64, shape=[2**62, 2**62]), "image.data"),
    ],
)
def test_a_malformed_tensor_is_refused_with_its_field(tensor: Tensor, field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        from_tensor(tensor, "image")

    assert caught.value.field == field


def test_the_layout_is_known_without_the_data() -> None:
    tensor = Tensor(data_type=DataType.DATA_TYPE_FP32, shape=[2, 3])

    assert layout(tensor, "image") == (np.dtype("<f4"), 24)


def test_an_array_that_cannot_be_sent_is_refused_with_the_types_that_can() -> None:
    with pytest.raises(
        InvalidArgument, match=r"spec\.image is of type complex128, .*DATA_TYPE_FP32"
    ) as caught:
        to_tensor(np.zeros(2, complex), "spec.image")

    assert caught.value.field == "spec.image"
    with pytest.raises(InvalidArgument, match="the array is of type object"):
        to_tensor(np.array([None]))
