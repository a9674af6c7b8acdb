import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes.canvas import Canvas
from fakes.properties import examples
from vitrail_server.explainers.run import Tile

MIB = 1 << 20


def tile(*shape: int) -> Tile:
    values = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    return Tile(row=3, column=5, first_target=2, values=values, evaluations_done=9, final=True)


def assert_partition(whole: Tile, parts: list[Tile]) -> None:
    targets, height, width = whole.values.shape[:3]
    canvas = Canvas(
        (whole.first_target + targets, whole.row + height, whole.column + width, *whole.values.shape[3:])
    )
    canvas.paste_all(parts)  # final, so it fails on overlaps
    assert (canvas.values[whole.first_target :, whole.row :, whole.column :] == whole.values).all()
    assert canvas.final.sum() == targets * height * width
    assert {(part.evaluations_done, part.final) for part in parts} == {(9, True)}


def test_a_tile_that_fits_is_left_whole() -> None:
    each = tile(1, 512, 512)
    assert list(each.split(MIB)) == [each]


def test_targets_are_split_first_then_rows_then_columns() -> None:
    assert [part.values.shape for part in tile(2, 2, 4).split(32)] == [(1, 2, 4)] * 2
    assert [part.values.shape for part in tile(1, 2, 4).split(16)] == [(1, 1, 4)] * 2
    parts = list(tile(1, 1, 5).split(8))
    assert [(part.column, part.values.tolist()) for part in parts] == [
        (5, [[[0, 1]]]),
        (7, [[[2]]]),
        (8, [[[3, 4]]]),
    ]


@pytest.mark.parametrize(
    "shape",
    [(64, 3, 4000), (64, 100, 100), (1, 1, 1_000_000), (5, 300, 300, 3), (1, 2000, 2000), (64, 2, 5000, 3)],
)
def test_large_tiles_become_messages_of_at_most_a_mebibyte(shape: tuple[int, ...]) -> None:
    parts = list(tile(*shape).split(MIB))
    assert max(part.values.nbytes for part in parts) <= MIB
    assert len(parts) <= 4 * tile(*shape).values.nbytes / MIB + 1
    assert_partition(tile(*shape), parts)


def test_a_single_value_is_not_split() -> None:
    assert [part.values.shape for part in tile(1, 1, 2, 3).split(1)] == [(1, 1, 1, 3)] * 2


@given(
    st.tuples(st.integers(1, 5), st.integers(1, 7), st.integers(1, 9)),
    st.sampled_from([(), (1,), (3,)]),
    st.integers(1, 600),
)
@examples(100)
def test_parts_cover_the_tile_once_and_keep_to_the_limit(
    shape: tuple[int, int, int], channels: tuple[int, ...], most: int
) -> None:
    each = tile(*shape, *channels)
    parts = list(each.split(most))
    assert_partition(each, parts)
    value = 4 * int(np.prod(channels))
    assert all(part.values.nbytes <= max(most, value) for part in parts)
