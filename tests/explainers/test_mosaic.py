import numpy as np
import pytest
from numpy.typing import NDArray

from fakes.canvas import Canvas
from vitrail_server.explainers.grid import Order, evaluation_order, pixel_cells, window_cells, windows_along
from vitrail_server.explainers.mosaic import FEW_TILES, Mosaic


def mosaic(
    height: int, width: int, patch: int, stride: int, order: Order = "RASTER", targets: int = 1
) -> Mosaic:
    axes = [pixel_cells(windows_along(size, patch, stride, "CLIP")) for size in (height, width)]
    return Mosaic(axes[0], axes[1], order, targets)


def record(mosaic: Mosaic, *windows: int, targets: int = 1) -> None:
    """Record windows whose score is their position."""
    places = np.array(windows, np.int32)
    mosaic.record(places, np.repeat(places[:, None], targets, 1).astype(np.float32))


def drained(mosaic: Mosaic) -> list[tuple[int, int, int, int, bool]]:
    """Row, column, height, width and final of the new tiles."""
    return [(t.row, t.column, *t.values.shape[1:3], t.final) for t in mosaic.tiles(0)]


def test_nothing_new_means_no_tiles() -> None:
    each = mosaic(4, 4, 2, 2)
    assert drained(each) == []
    record(each, 0)
    assert drained(each) == [(0, 0, 2, 2, True)]
    assert drained(each) == []


def test_a_chunk_is_one_tile_where_its_windows_form_a_rectangle() -> None:
    each = mosaic(6, 6, 2, 2)
    record(each, 0, 1, 2)
    assert drained(each) == [(0, 0, 2, 6, True)]
    record(each, 3, 4, 5, 6)
    assert drained(each) == [(2, 0, 2, 6, True), (4, 0, 2, 2, True)]


def test_what_is_covered_by_windows_to_come_is_not_final() -> None:
    """Four columns, windows of two with the step 1: pixel 1 belongs to the windows 0 and 1."""
    each = Mosaic(
        pixel_cells(windows_along(1, 1, 1, "CLIP")), pixel_cells(windows_along(4, 2, 1, "CLIP")), "RASTER", 1
    )
    record(each, 0)
    assert drained(each) == [(0, 1, 1, 1, False), (0, 0, 1, 1, True)]
    record(each, 1)
    assert drained(each) == [(0, 2, 1, 1, False), (0, 1, 1, 1, True)]
    record(each, 2)
    assert drained(each) == [(0, 2, 1, 2, True)]


def test_what_a_slow_reader_missed_is_merged() -> None:
    each = mosaic(8, 8, 2, 2)
    for window in range(16):
        record(each, window)
    assert drained(each) == [(0, 0, 8, 8, True)]


def test_scattered_windows_without_values_between_them_are_tiles_of_their_own() -> None:
    each = mosaic(8, 8, 3, 1)  # a grid of 6 x 6
    record(each, 0, 5, 30, 35)  # the corners
    tiles = list(each.tiles(0))
    assert len([tile for tile in tiles if not tile.final]) >= FEW_TILES
    canvas = Canvas((1, 8, 8))
    canvas.paste_all(tiles)
    assert canvas.known.sum() == 4 * 9
    assert canvas.final.sum() == 4


def test_many_provisional_rectangles_become_their_bounding_box() -> None:
    """With stand-ins the whole map has values, so one tile brings them."""
    each = mosaic(12, 12, 1, 1, "PROGRESSIVE")  # steps 4, 2, 1
    record(each, *evaluation_order(12, 12, "PROGRESSIVE")[:9].tolist())
    provisional = [tile for tile in each.tiles(0) if not tile.final]
    assert len(provisional) == 1
    assert provisional[0].values.shape == (1, 12, 12)


def test_a_pixel_without_windows_shows_the_nearest_coarse_window_above_and_left() -> None:
    each = mosaic(1, 12, 1, 1, "PROGRESSIVE")
    canvas = Canvas((1, 1, 12))
    for windows, expected in [
        ([0, 4, 8], [0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8]),
        ([6], [0, 0, 0, 0, 4, 4, 6, 6, 8, 8, 8, 8]),
        ([5], [0, 0, 0, 0, 4, 5, 6, 6, 8, 8, 8, 8]),
        ([2, 10], [0, 0, 2, 2, 4, 5, 6, 6, 8, 8, 10, 10]),
        ([1, 3, 7, 9, 11], list(range(12))),
    ]:
        record(each, *windows)
        canvas.paste_all(each.tiles(0))
        assert canvas.values[0, 0].tolist() == expected
    assert canvas.final.all()


def test_a_coarse_window_that_comes_late_replaces_no_finer_one() -> None:
    each = mosaic(1, 12, 1, 1, "PROGRESSIVE")
    canvas = Canvas((1, 1, 12))
    record(each, 2)
    canvas.paste_all(each.tiles(0))
    assert canvas.known[0, 0].tolist() == [False, False, True, True] + [False] * 8
    record(each, 0)
    canvas.paste_all(each.tiles(0))
    assert canvas.values[0, 0, :4].tolist() == [0, 0, 2, 2]


def test_the_middle_window_of_a_pixel_decides_who_stands_in() -> None:
    """A row of 14 pixels, windows of 3: a grid of 12, coarse windows 0, 4, 8 at the pixels 0, 4, 8."""
    each = Mosaic(
        pixel_cells(windows_along(1, 1, 1, "CLIP")),
        pixel_cells(windows_along(14, 3, 1, "CLIP")),
        "PROGRESSIVE",
        1,
    )
    record(each, 0, 4, 8)
    canvas = Canvas((1, 1, 14))
    canvas.paste_all(each.tiles(0))
    # Pixel 3 lies in the windows 1 to 3, so window 0 stands for the middle one, 2.
    # Pixel 11 lies in 9 to 11, pixel 13 in 11 alone: 8 stands for both.
    assert canvas.values[0, 0].tolist() == [0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 8, 8]


def test_a_map_of_windows_has_their_scores() -> None:
    rows, columns = windows_along(3, 2, 1, "CLIP"), windows_along(4, 2, 1, "CLIP")
    each = Mosaic(window_cells(rows), window_cells(columns), "RASTER", 2)
    assert each.map_size == (2, 3)
    record(each, 0, 1, 2, 3, 4, 5, targets=2)
    (tile,) = each.tiles(7)
    assert tile.values.tolist() == [[[0, 1, 2], [3, 4, 5]]] * 2
    assert tile.evaluations_done == 7
    assert tile.first_target == 0


def test_scores_that_are_not_finite_are_counted_by_pixel() -> None:
    each = mosaic(5, 4, 2, 2, targets=2)  # windows of 2 x 2, the last row 1 x 2
    scores: NDArray[np.float32] = np.zeros((6, 2), np.float32)
    scores[1, 0] = np.nan
    scores[4, 1] = np.inf
    each.record(np.arange(6, dtype=np.int32), scores)
    assert each.non_finite_values().tolist() == [4, 2]


def test_provisional_values_are_sent_once() -> None:
    each = mosaic(4, 4, 3, 1)
    record(each, 0)
    assert [final for *_, final in drained(each)].count(False) > 0
    assert drained(each) == []


@pytest.mark.parametrize(
    ("size", "patch", "stride"), [(30, 13, 1), (40, 23, 2), (17, 9, 1), (25, 8, 1), (13, 7, 1)]
)
def test_a_value_under_many_windows_is_their_mean(size: int, patch: int, stride: int) -> None:
    columns = windows_along(size, patch, stride, "CLIP")
    each = Mosaic(pixel_cells(windows_along(1, 1, 1, "CLIP")), pixel_cells(columns), "RASTER", 1)
    scores = np.random.default_rng(size).normal(size=len(columns))
    order = np.random.default_rng(patch).permutation(len(columns))
    canvas = Canvas((1, 1, size))
    for count, window in enumerate(order.tolist(), 1):
        each.record(np.array([window], np.int32), scores[None, None, window].astype(np.float32))
        canvas.paste_all(each.tiles(0))
        for pixel in range(size):
            cover = [k for k in order[:count] if columns.starts[k] <= pixel < columns.stops[k]]
            assert canvas.known[0, 0, pixel] == bool(cover)
            if cover:
                assert canvas.values[0, 0, pixel] == pytest.approx(scores[cover].mean(), abs=1e-6)
    assert canvas.final.all()


@pytest.mark.parametrize("most", [1, 3, 16])
def test_tiles_of_several_targets_come_together(most: int) -> None:
    each = mosaic(4, 4, 2, 1, targets=3)
    canvas = Canvas((3, 4, 4))
    for start in range(0, 9, most):
        record(each, *range(start, min(start + most, 9)), targets=3)
        for tile in each.tiles(start):
            assert tile.values.shape[0] == 3
            canvas.paste(tile)
    assert canvas.final.all()
    assert (canvas.values == canvas.values[0]).all()
