import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from fakes.properties import examples
from vitrail_server.explainers.grid import (
    Cells,
    Edge,
    Windows,
    coarsest_step,
    evaluation_order,
    pixel_cells,
    rectangles,
    rectangles_of,
    steps,
    window_cells,
    windows_along,
)

EDGES: list[Edge] = ["CLIP", "SHIFT"]


def spans(windows: Windows) -> list[tuple[int, int]]:
    return list(zip(windows.starts.tolist(), windows.stops.tolist(), strict=True))


def as_lists(cells: Cells) -> tuple[list[int], list[int], list[int]]:
    return cells.bounds.tolist(), cells.first.tolist(), cells.last.tolist()


@pytest.mark.parametrize(
    ("size", "patch", "stride", "clip", "shift"),
    [
        pytest.param(6, 2, 2, [(0, 2), (2, 4), (4, 6)], [(0, 2), (2, 4), (4, 6)], id="stride divides"),
        pytest.param(5, 2, 2, [(0, 2), (2, 4), (4, 5)], [(0, 2), (2, 4), (3, 5)], id="one pixel left over"),
        pytest.param(7, 3, 2, [(0, 3), (2, 5), (4, 7)], [(0, 3), (2, 5), (4, 7)], id="overlap that fits"),
        pytest.param(
            8, 5, 2, [(0, 5), (2, 7), (4, 8)], [(0, 5), (2, 7), (3, 8)], id="overlap that does not fit"
        ),
        pytest.param(4, 3, 1, [(0, 3), (1, 4)], [(0, 3), (1, 4)], id="stride 1"),
        pytest.param(4, 4, 4, [(0, 4)], [(0, 4)], id="patch is the image"),
        pytest.param(4, 4, 1, [(0, 4)], [(0, 4)], id="patch is the image with a small stride"),
        pytest.param(5, 4, 3, [(0, 4), (3, 5)], [(0, 4), (1, 5)], id="moved back by more than the overlap"),
        pytest.param(1, 1, 1, [(0, 1)], [(0, 1)], id="one pixel"),
    ],
)
def test_windows_along_an_axis(
    size: int,
    patch: int,
    stride: int,
    clip: list[tuple[int, int]],
    shift: list[tuple[int, int]],
) -> None:
    assert spans(windows_along(size, patch, stride, "CLIP")) == clip
    assert spans(windows_along(size, patch, stride, "SHIFT")) == shift


def test_the_notebooks_grid_has_1444_windows() -> None:
    assert len(windows_along(224, 6, 6, "CLIP")) ** 2 == 1444


@pytest.mark.parametrize(
    ("size", "patch", "stride", "edge", "expected"),
    [
        # 0 1|2 3|4     windows 01, 23, 4: each is a cell
        pytest.param(5, 2, 2, "CLIP", ([0, 2, 4, 5], [0, 1, 2], [0, 1, 2]), id="disjoint"),
        # windows 01, 23, 34: pixel 3 lies in two
        pytest.param(5, 2, 2, "SHIFT", ([0, 2, 3, 4, 5], [0, 1, 1, 2], [0, 1, 2, 2]), id="moved back"),
        # windows 012, 234, 456
        pytest.param(7, 3, 2, "CLIP", ([0, 2, 3, 4, 5, 7], [0, 0, 1, 1, 2], [0, 1, 1, 2, 2]), id="overlap"),
        pytest.param(4, 4, 2, "CLIP", ([0, 4], [0], [0]), id="patch is the image"),
        # windows 012, 123
        pytest.param(4, 3, 1, "CLIP", ([0, 1, 3, 4], [0, 0, 1], [0, 1, 1]), id="stride 1"),
    ],
)
def test_cells_are_the_pixels_with_the_same_windows(
    size: int, patch: int, stride: int, edge: Edge, expected: tuple[list[int], list[int], list[int]]
) -> None:
    assert as_lists(pixel_cells(windows_along(size, patch, stride, edge))) == expected


def test_cells_know_their_sizes_and_the_most_windows_on_one() -> None:
    cells = pixel_cells(windows_along(7, 3, 2, "CLIP"))
    assert cells.sizes.tolist() == [2, 1, 1, 1, 2]
    assert cells.most == 2
    assert len(cells) == 5


def test_a_map_of_windows_has_one_cell_per_window() -> None:
    cells = window_cells(windows_along(7, 3, 2, "CLIP"))
    assert as_lists(cells) == ([0, 1, 2, 3], [0, 1, 2], [0, 1, 2])
    assert cells.sizes.tolist() == [1, 1, 1]


def test_rectangles_of_a_non_square_image_in_raster_order() -> None:
    rows, columns = windows_along(3, 2, 2, "CLIP"), windows_along(5, 3, 2, "CLIP")
    every = np.arange(4, dtype=np.int32)
    wanted = [[0, 0, 2, 3], [0, 2, 2, 5], [2, 0, 3, 3], [2, 2, 3, 5]]
    assert rectangles_of(rows, columns, every).tolist() == wanted
    assert rectangles_of(rows, columns, every[[2, 1]]).tolist() == [wanted[2], wanted[1]]


@pytest.mark.parametrize(
    ("longer", "step"), [(1, 1), (2, 1), (3, 1), (5, 1), (6, 2), (11, 2), (12, 4), (23, 4), (24, 8), (38, 8)]
)
def test_the_coarsest_step_gives_the_longer_side_three_to_six_windows(longer: int, step: int) -> None:
    assert coarsest_step(longer, 1) == coarsest_step(1, longer) == step
    assert longer < 3 or 3 <= -(-longer // step) <= 6


def test_raster_order_is_row_by_row() -> None:
    assert evaluation_order(2, 3, "RASTER").tolist() == [0, 1, 2, 3, 4, 5]


def test_progressive_order_by_hand() -> None:
    """A grid of 2 x 6: the step is 2, so 0, 2 and 4 of the first row come first."""
    assert steps(2, 6).tolist() == [[2, 1, 2, 1, 2, 1], [1, 1, 1, 1, 1, 1]]
    assert evaluation_order(2, 6, "PROGRESSIVE").tolist() == [0, 2, 4, 1, 3, 5, 6, 7, 8, 9, 10, 11]


def test_progressive_order_goes_from_coarse_to_fine() -> None:
    """A grid of 12 x 12: steps 4, 2, 1 with 9, 27 and 108 windows."""
    order = evaluation_order(12, 12, "PROGRESSIVE")
    step = steps(12, 12).ravel()[order]
    assert step.tolist() == [4] * 9 + [2] * 27 + [1] * 108
    assert order[:9].tolist() == [0, 4, 8, 48, 52, 56, 96, 100, 104]


def test_rectangles_join_equal_runs_of_neighbouring_rows() -> None:
    mask = np.array([[1, 1, 0, 1], [1, 1, 0, 1], [0, 1, 1, 1]], np.bool_)
    assert rectangles(mask) == [(0, 0, 2, 2), (0, 3, 2, 4), (2, 1, 3, 4)]


def test_rectangles_of_an_empty_mask() -> None:
    assert rectangles(np.zeros((3, 2), np.bool_)) == []


@st.composite
def axes(draw: st.DrawFn) -> tuple[int, int, int, Edge]:
    size = draw(st.integers(1, 40))
    patch = draw(st.integers(1, size))
    return size, patch, draw(st.integers(1, patch)), draw(st.sampled_from(EDGES))


@given(axes())
@examples(150)
def test_every_pixel_is_covered_and_cells_partition_the_axis(axis: tuple[int, int, int, Edge]) -> None:
    size, patch, _, edge = axis
    windows = windows_along(*axis)
    cover = [{i for i, (a, b) in enumerate(spans(windows)) if a <= pixel < b} for pixel in range(size)]
    assert all(cover)
    assert len(set(spans(windows))) == len(windows)
    assert edge == "CLIP" or all(b - a == patch for a, b in spans(windows))

    cells = pixel_cells(windows)
    assert cells.bounds[0] == 0
    assert cells.bounds[-1] == size
    assert (cells.sizes > 0).all()
    for cell in range(len(cells)):
        for pixel in range(cells.bounds[cell], cells.bounds[cell + 1]):
            assert cover[pixel] == set(range(cells.first[cell], cells.last[cell] + 1))
    assert cells.most == max(map(len, cover))


@given(st.integers(1, 40), st.integers(1, 40))
@examples(100)
def test_progressive_order_takes_every_window_once_and_gives_each_a_predecessor(
    rows: int, columns: int
) -> None:
    order = evaluation_order(rows, columns, "PROGRESSIVE")
    assert sorted(order.tolist()) == list(range(rows * columns))
    coarsest = coarsest_step(rows, columns)
    first_pass = {(i, j) for i in range(0, rows, coarsest) for j in range(0, columns, coarsest)}
    places = [divmod(window, columns) for window in order.tolist()]
    assert set(places[: len(first_pass)]) == first_pass


@given(arrays.arrays(np.bool_, st.tuples(st.integers(1, 9), st.integers(1, 9))))
@examples(100)
def test_rectangles_partition_exactly_the_mask(mask: NDArray[np.bool_]) -> None:
    counts = np.zeros(mask.shape, np.int64)
    for top, left, bottom, right in rectangles(mask):
        assert 0 <= top < bottom <= mask.shape[0]
        assert 0 <= left < right <= mask.shape[1]
        counts[top:bottom, left:right] += 1
    assert (counts == mask).all()
