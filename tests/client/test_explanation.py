from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitrail import Explanation, Occlusion
from vitrail.errors import Internal
from vitrail.explanation import ended, receive
from vitrail.v1 import explanation_pb2 as pb

from .messages import (
    Event,
    complete,
    gradient_plan,
    in_stream_response,
    in_tiles_response,
    occlusion_plan,
    partial,
    tile,
)

IMAGE = pb.Image(encoded=b"a photo")
NAN = np.nan


def assembled(*events: Event) -> Explanation:
    explanation = None
    for event in events:
        explanation = receive(explanation, in_tiles_response(event), IMAGE)
    assert explanation is not None
    return explanation


def test_a_map_worked_out_by_hand() -> None:
    """Two overlapping tiles of a 2 x 3 map: the later one wins where they overlap."""
    explanation = assembled(occlusion_plan((1, 2, 3)))

    np.testing.assert_array_equal(explanation.values, [[[NAN, NAN, NAN], [NAN, NAN, NAN]]])

    explanation.paste(tile(0, 0, [[1, 2], [3, 4]], done=4))

    np.testing.assert_array_equal(explanation.values, [[[1, 2, NAN], [3, 4, NAN]]])

    explanation.paste(tile(0, 1, [[5, 6]], done=6))

    np.testing.assert_array_equal(explanation.values, [[[1, 5, 6], [3, 4, NAN]]])
    assert explanation.values.dtype == np.float32
    assert explanation.tiles == 2


def test_tiles_of_several_targets_and_channels_go_to_their_places() -> None:
    explanation = assembled(gradient_plan((3, 1, 2, 2)))

    explanation.paste(tile(0, 1, np.array([[[[1, 2]]], [[[3, 4]]]]), first_target=1))

    assert explanation.values.shape == (3, 1, 2, 2)
    np.testing.assert_array_equal(explanation.values[0], np.full((1, 2, 2), NAN))
    np.testing.assert_array_equal(explanation.values[1], [[[NAN, NAN], [1, 2]]])
    np.testing.assert_array_equal(explanation.values[2], [[[NAN, NAN], [3, 4]]])


def test_what_the_plan_says_is_at_hand() -> None:
    explanation = assembled(occlusion_plan((2, 2, 3), labels=("espresso", "")))

    assert (explanation.model, explanation.model_version) == ("net", 3)
    assert explanation.method == Occlusion((1, 1), (1, 1), 0.5, "CLIP", "SIGNED", "PIXELS", "RASTER")
    assert [(target.index, target.label) for target in explanation.targets] == [(967, "espresso"), (968, "")]
    assert [str(target) for target in explanation.targets] == ["espresso (967)", "probabilities[968]"]
    assert explanation.targets[0].output == pytest.approx(0.94)
    assert explanation.image == IMAGE


def test_progress_goes_from_0_to_1() -> None:
    explanation = assembled(occlusion_plan(evaluations=8))

    assert (explanation.progress, explanation.complete, explanation.summary) == (0.0, False, None)

    explanation.paste(tile(0, 0, [[1]], done=2))

    assert (explanation.progress, explanation.evaluations_done) == (0.25, 2)

    explanation.finish(complete(8))

    assert (explanation.progress, explanation.complete, explanation.evaluations_done) == (1.0, True, 8)


def test_skipped_windows_count_as_done() -> None:
    explanation = assembled(occlusion_plan(evaluations=10))
    summary = complete(4)
    summary.evaluations.skipped = 6

    explanation.finish(summary)

    assert explanation.evaluations_done == 10


def test_a_partial_map_is_not_complete_and_keeps_its_gaps() -> None:
    explanation = assembled(occlusion_plan(evaluations=8), tile(0, 0, [[1]], done=2), partial(2, 8))

    assert not explanation.complete
    assert explanation.progress == 0.25
    assert np.isnan(explanation.values).sum() == 5
    ended(explanation)


def test_its_text_says_what_it_is() -> None:
    explanation = assembled(occlusion_plan(evaluations=8), tile(0, 0, [[1]], done=2))

    assert repr(explanation) == "<Explanation of espresso (967) by net version 3: occlusion, 25% done>"


def test_messages_of_a_stream_are_taken_like_those_of_a_single_call() -> None:
    first = receive(None, in_stream_response("7", occlusion_plan()), IMAGE)

    second = receive(first, in_stream_response("7", tile(0, 0, [[1]])), IMAGE)

    assert second is first
    assert first.tiles == 1


SHAPE = (2, 3, 4)


@pytest.mark.parametrize(
    "wrong",
    [
        tile(0, 0, np.zeros((2, 4, 4))),
        tile(0, 0, np.zeros((2, 3, 5))),
        tile(1, 0, np.zeros((2, 3, 4))),
        tile(0, 1, np.zeros((2, 3, 4))),
        tile(0, 0, np.zeros((3, 3, 4))),
        tile(0, 0, np.zeros((2, 3, 4)), first_target=1),
        tile(0, 0, np.zeros((1, 1, 1)), first_target=2),
        tile(3, 0, np.zeros((1, 1, 1))),
        tile(2**32 - 1, 0, np.zeros((1, 1, 1))),
        pb.Tile(height=0, width=1, target_count=1),
        pb.Tile(height=1, width=1, target_count=0),
        pb.Tile(height=1, width=1, target_count=1, values=b""),
        pb.Tile(height=1, width=1, target_count=1, values=b"12345678"),
        tile(0, 0, np.zeros((2, 3, 4, 3))),
    ],
)
def test_a_tile_that_does_not_fit_is_refused_and_changes_nothing(wrong: pb.Tile) -> None:
    explanation = assembled(occlusion_plan(SHAPE, ("a", "b")), tile(0, 0, np.ones(SHAPE)))

    with pytest.raises(Internal, match="the server sent a tile"):
        explanation.paste(wrong)

    np.testing.assert_array_equal(explanation.values, np.ones(SHAPE))


@pytest.mark.parametrize(
    "shape", [(), (2, 3), (0, 2, 3), (1, 2, 0), (1, -2, 3), (2, 2, 3), (1, 2, 3, 1, 1), (1, 2**40, 2**40)]
)
def test_a_plan_without_a_possible_map_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(Internal, match="the server announced a map"):
        Explanation(occlusion_plan(shape, labels=("one",)), IMAGE)


def test_a_plan_with_a_method_from_the_future_is_refused() -> None:
    plan = occlusion_plan()
    plan.ClearField("occlusion")

    with pytest.raises(Internal, match="a method that this client does not know"):
        Explanation(plan, IMAGE)

    plan.occlusion.patch.rows = plan.occlusion.patch.columns = 1

    with pytest.raises(Internal, match="a method that this client does not know"):
        Explanation(plan, IMAGE)


@pytest.mark.parametrize(
    ("before", "event"),
    [
        ([], tile(0, 0, [[1]])),
        ([], complete()),
        ([occlusion_plan()], occlusion_plan()),
        ([occlusion_plan(), complete()], tile(0, 0, [[1]])),
        ([occlusion_plan(), complete()], complete()),
    ],
)
def test_messages_out_of_order_are_refused(before: list[Event], event: Event) -> None:
    explanation = assembled(*before) if before else None

    with pytest.raises(Internal, match="the server sent a"):
        receive(explanation, in_tiles_response(event), IMAGE)


def test_an_empty_message_is_refused() -> None:
    with pytest.raises(Internal, match="a message that this client does not know"):
        receive(assembled(occlusion_plan()), pb.ExplainTilesResponse(), IMAGE)


def test_a_stream_without_a_summary_was_not_whole() -> None:
    with pytest.raises(Internal, match="without a summary"):
        ended(assembled(occlusion_plan()))
    with pytest.raises(Internal, match="without a summary"):
        ended(None)


@st.composite
def rectangles(draw: st.DrawFn, height: int, width: int) -> tuple[int, int, int, int]:
    row = draw(st.integers(0, height - 1))
    column = draw(st.integers(0, width - 1))
    return row, column, draw(st.integers(1, height - row)), draw(st.integers(1, width - column))


@given(st.data())
def test_whatever_tiles_come_the_map_is_what_one_pixel_at_a_time_gives(data: st.DataObject) -> None:
    """The oracle pastes in plain loops over a dictionary of pixels."""
    targets = data.draw(st.integers(1, 3))
    height, width = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 6))
    explanation = assembled(occlusion_plan((targets, height, width), ("x",) * targets))
    pixels: dict[tuple[int, int, int], float] = {}

    for number in range(data.draw(st.integers(0, 6))):
        row, column, rows, columns = data.draw(rectangles(height, width))
        first, _, count, _ = data.draw(rectangles(targets, 1))
        values = (
            np.arange(count * rows * columns, dtype=np.float32).reshape(count, rows, columns) + 1000 * number
        )
        explanation.paste(tile(row, column, values, first_target=first))
        for t in range(count):
            for r in range(rows):
                for c in range(columns):
                    pixels[first + t, row + r, column + c] = float(values[t, r, c])

    for place in np.ndindex(targets, height, width):
        found = float(explanation.values[place])
        assert (np.isnan(found) and place not in pixels) or found == pixels[place]


@given(st.data())
def test_a_partition_pasted_in_any_order_is_the_whole_map(data: st.DataObject) -> None:
    height, width = data.draw(st.integers(1, 8)), data.draw(st.integers(1, 8))
    whole = np.arange(height * width, dtype=np.float32).reshape(1, height, width)
    cuts = data.draw(st.sets(st.integers(1, height - 1))) if height > 1 else set()
    edges = [0, *sorted(cuts), height]
    tiles = [tile(top, 0, whole[:, top:bottom]) for top, bottom in pairwise(edges)]
    explanation = assembled(occlusion_plan((1, height, width)))

    for each in data.draw(st.permutations(tiles)):
        explanation.paste(each)

    np.testing.assert_array_equal(explanation.values, whole)
