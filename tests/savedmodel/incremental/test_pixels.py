"""Where windows find their pixels: by hand, and against what a crop is by its definition."""

import numpy as np
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from savedmodel.incremental.nets import Tensor, all_windows, grid_of, kernel, net
from vitrail_server.savedmodel.incremental.pixels import PixelFinder, Pixels
from vitrail_server.savedmodel.incremental.plan import PAD_ROWS, Crop, Plan

SIZE = (9, 8)


def plan_of(
    size: tuple[int, int], patch: tuple[int, int], stride: tuple[int, int] | None = None, strides: int = 1
) -> Plan:
    """Return the plan of two convolutions and a sum."""

    def predict(image: Tensor) -> Tensor:
        x = tf.nn.conv2d(image, kernel(3, 3, 1, 2), 1, "SAME")
        x = tf.nn.conv2d(x, kernel(3, 3, 2, 2), strides, "SAME")
        return tf.reduce_sum(x, [1, 2])

    return net(predict, size, channels=1).plan(grid_of(size, patch, stride or patch))


def indices(finder: PixelFinder, pixels: Pixels, crop: Crop) -> NDArray[np.int32]:
    """Return what the graph makes of it, (batch, rows, columns)."""
    number = finder.geometry(crop)
    rows, columns = (
        slice(sum(sizes[:number]), sum(sizes[: number + 1])) for sizes in (pixels.heights, pixels.widths)
    )
    old, new = (y[:, rows] + x[:, :, columns] for y, x in zip(pixels.rows, pixels.columns, strict=True))
    outside = np.int32({"": -1, "zero": 0, "lowest": 1}[crop.outside])
    found: NDArray[np.int32] = np.maximum(np.maximum(old, new), outside)
    return found


def test_the_pixels_around_one_window() -> None:
    """Of 9 x 8 pixels a window hides (3, 0) to (5, 2); the kernel sees one pixel more on either side."""
    plan = plan_of(SIZE, (3, 3))
    finder = PixelFinder(plan, "inputs_0")
    pixels = finder.find(np.array([[3, 0, 6, 3]], np.int32))
    [crop] = [each for each in plan.crops if each.tensor == "inputs_0"]
    # The first convolution changes rows 2 to 6 and columns 0 to 3; regions are 5 x 5, and see 7 x 7.
    assert crop.size == (7, 7)
    band = 7 * 8  # rows 1 to 7 of the map, all of their columns
    assert pixels.bands[2 * finder.matrix(crop) :][:2].tolist() == [[PAD_ROWS + 8, 0], [band, -1]]
    expected = [[0] + [PAD_ROWS + 8 * row + column for column in range(6)] for row in range(7)]
    for row in range(2, 5):
        for column in range(3):
            expected[row][1 + column] = PAD_ROWS + band + 3 * (row - 2) + column
    assert indices(finder, pixels, crop)[0].tolist() == expected


def test_the_second_window_has_the_pixels_behind_the_first() -> None:
    plan = plan_of(SIZE, (3, 3))
    finder = PixelFinder(plan, "inputs_0")
    pixels = finder.find(np.array([[0, 0, 3, 3], [3, 3, 6, 6]], np.int32))
    [crop] = [each for each in plan.crops if each.tensor == "inputs_0"]
    first, second = indices(finder, pixels, crop)

    behind = PAD_ROWS + 8 * 8  # the band is rows 0 to 7
    assert first[1:4, 1:4].tolist() == [
        [behind + 3 * row + column for column in range(3)] for row in range(3)
    ]
    assert (second[2:5, 2:5] == first[1:4, 1:4] + 9).all()


def test_a_batch_needs_the_rows_around_its_windows_only() -> None:
    plan = plan_of((64, 8), (4, 4))
    finder = PixelFinder(plan, "inputs_0")
    [crop] = [each for each in plan.crops if each.tensor == "inputs_0"]
    windows = np.array([[32, 0, 36, 4], [32, 4, 36, 8]], np.int32)

    first, count = finder.find(windows).bands[2 * finder.matrix(crop) :][:2]
    assert first.tolist() == [PAD_ROWS + 30 * 8, 0]
    assert count.tolist() == [8 * 8, -1]


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    size=st.tuples(st.integers(6, 14), st.integers(6, 14)),
    patch=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    strides=st.integers(1, 2),
    data=st.data(),
)
def test_every_pixel_is_the_one_that_a_crop_is_made_of(
    size: tuple[int, int], patch: tuple[int, int], strides: int, data: st.DataObject
) -> None:
    """Tell pixels by numbers: of the clean map, and others of what each window changed."""
    stride = tuple(data.draw(st.integers(1, each)) for each in patch)
    plan = plan_of(size, patch, (stride[0], stride[1]), strides)
    finder = PixelFinder(plan, "inputs_0")
    windows = all_windows(grid_of(size, patch, (stride[0], stride[1])))
    some = data.draw(st.lists(st.integers(0, len(windows) - 1), min_size=1, max_size=5))
    chosen = windows[some]
    pixels = finder.find(chosen)
    for crop in plan.crops:
        region, place = plan.regions[crop.tensor], plan.places[crop.tensor]
        (height, width), (tall, wide) = region.extent, region.size
        clean = np.arange(height * width).reshape(height, width)
        fresh = 10**6 + np.arange(len(chosen) * tall * wide).reshape(-1, tall, wide)
        first, count = pixels.bands[2 * finder.matrix(crop) :][:2, 0]
        band = np.ravel(clean)[first - PAD_ROWS :][:count]
        matrix = np.concatenate([[-1, -2], band, np.ravel(fresh)])
        found = matrix[indices(finder, pixels, crop)]
        for number, (top, left, _, _) in enumerate(chosen.tolist()):
            row = plan.grid.rows[0].index(top)
            column = plan.grid.columns[0].index(left)
            y, x = plan.starts[0][row, place], plan.starts[1][column, place]
            shown = clean.copy()
            shown[y : y + tall, x : x + wide] = fresh[number]
            at = (
                (0, 0) if crop.at is None else (plan.starts[0][row, crop.at], plan.starts[1][column, crop.at])
            )
            whole = np.pad(shown, 20, constant_values={"": 0, "zero": -1, "lowest": -2}[crop.outside])
            begin = [20 + at[axis] * crop.stride[axis] - crop.before[axis] for axis in (0, 1)]
            wanted = whole[begin[0] :: crop.step[0], begin[1] :: crop.step[1]]
            assert (found[number] == wanted[: crop.size[0], : crop.size[1]]).all()
