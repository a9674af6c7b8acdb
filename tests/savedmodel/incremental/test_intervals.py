"""Interval arithmetic, by hand and against what really changes."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vitrail_server.savedmodel.incremental.intervals import (
    Sliding,
    Span,
    hidden,
    joined,
    padded,
    same_strip,
    slid,
)


def spans(span: Span) -> list[tuple[int, int]]:
    return list(zip(span.first.tolist(), span.last.tolist(), strict=True))


def test_windows_on_the_image() -> None:
    span = hidden([0, 4, 8], [4, 8, 10], 10)

    assert spans(span) == [(0, 3), (4, 7), (8, 9)]
    assert span.size == 4
    assert span.start.tolist() == [0, 4, 6]  # the last strip is moved back into the image


def test_a_kernel_of_three_reaches_one_further_on_either_side() -> None:
    span = slid(hidden([0, 4, 8], [4, 8, 10], 10), Sliding(kernel=3, before=1), 10)

    assert spans(span) == [(0, 4), (3, 8), (7, 9)]
    assert span.size == 6
    assert span.start.tolist() == [0, 3, 4]


def test_without_padding_outputs_begin_with_the_first_whole_kernel() -> None:
    # Output i sees inputs i, i + 1, i + 2.
    assert spans(slid(hidden([0, 4, 8], [4, 8, 10], 10), Sliding(kernel=3), 8)) == [(0, 3), (2, 7), (6, 7)]


def test_a_stride_of_two_halves() -> None:
    # SAME on 10 inputs: 5 outputs, output i sees inputs 2 i, 2 i + 1, 2 i + 2; the padding is behind.
    assert spans(slid(hidden([0, 4, 8], [4, 8, 10], 10), Sliding(kernel=3, stride=2), 5)) == [
        (0, 1),
        (1, 3),
        (3, 4),
    ]


def test_a_dilation_reaches_as_far_as_its_last_tap() -> None:
    # Output i sees inputs i - 4, i, i + 4.
    assert spans(slid(hidden([5], [6], 12), Sliding(kernel=3, dilation=4, before=4), 12)) == [(1, 9)]


def test_a_window_between_two_strides_changes_nothing_but_has_a_region() -> None:
    # Outputs see inputs 0, 3, 6, 9 only.
    span = slid(hidden([1, 4], [3, 6], 12), Sliding(stride=3), 4)

    assert span.size == 1
    assert spans(span) == [(1, 1), (2, 2)]


def test_the_union_of_branches() -> None:
    one, other = hidden([2, 6], [4, 7], 10), hidden([3, 1], [6, 2], 10)

    assert spans(joined([one, other])) == [(2, 5), (1, 6)]
    assert joined([one, one]) is one


def test_a_padding_moves_strips_as_they_are() -> None:
    source = hidden([0, 7], [4, 10], 10)
    span = padded(source, 2, 15)

    assert spans(span) == [(2, 5), (9, 11)]
    assert span.start.tolist() == [2, 8]  # 6 + 2: where the strip before the padding begins
    assert span.size == source.size


def test_the_same_strip() -> None:
    one = hidden([0, 4], [4, 8], 8)

    assert same_strip(one, hidden([0, 4], [4, 8], 8))
    assert not same_strip(one, hidden([0, 4], [4, 8], 9))
    assert not same_strip(one, hidden([0, 3], [4, 7], 8))
    assert not same_strip(one, hidden([0, 4], [3, 7], 8))


@given(
    extent=st.integers(1, 40),
    kernel=st.integers(1, 7),
    stride=st.integers(1, 4),
    dilation=st.integers(1, 3),
    before=st.integers(0, 6),
    after=st.integers(0, 6),
    data=st.data(),
)
def test_strips_hold_whatever_changes(
    extent: int, kernel: int, stride: int, dilation: int, before: int, after: int, data: st.DataObject
) -> None:
    sliding = Sliding(kernel, stride, dilation, before)
    outputs = (extent + before + after - sliding.reach) // stride + 1
    if outputs < 1:
        return
    start = data.draw(st.integers(0, extent - 1))
    stop = data.draw(st.integers(start + 1, extent))
    span = slid(hidden([start], [stop], extent), sliding, outputs)
    seen = np.arange(outputs)[:, None] * stride - before + np.arange(kernel) * dilation
    changed = np.flatnonzero(((seen >= start) & (seen < stop)).any(1))
    strip = range(int(span.start[0]), int(span.start[0]) + span.size)

    assert set(changed.tolist()) <= set(strip)
    assert set(strip) <= set(range(outputs))
    if len(changed) and dilation == 1:  # a dilated kernel has gaps, which are taken in
        assert (changed[0], changed[-1]) == (span.first[0], span.last[0])
