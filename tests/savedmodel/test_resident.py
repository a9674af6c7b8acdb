"""Rows that are built where the model computes: those of the buffer, bit for bit."""

import gc
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fakes.properties import examples
from savedmodel.conftest import Load, Saved, load_model
from vitrail_server.explainers.occlusion import OcclusionParameters, OcclusionRun
from vitrail_server.explainers.question import AllTargets, Question
from vitrail_server.savedmodel import loader, programs
from vitrail_server.savedmodel.probe import Run
from vitrail_server.savedmodel.resident import ResidentRows
from vitrail_server.savedmodel.rows import Arrays, InputLayout, RowBuffer, RowLayout
from vitrail_server.work import OccludeRows, PredictRows, Rows, Subject

SHAPE = (5, 7, 3)
LAYOUT = RowLayout("image", InputLayout(SHAPE, np.dtype("f4")), {"rate": InputLayout((2,), np.dtype("f8"))})
SIZE = 8


def subject(seed: int, *, fill: bool = True) -> Subject:
    random = np.random.default_rng(seed)
    image, rate = random.random(SHAPE, np.float32), random.random(2)
    return Subject(image, {"rate": rate}, np.array([0.5, 0.25, 1.0], np.float32) if fill else None)


def occlusions(of: Subject, windows: Sequence[tuple[int, int, int, int]]) -> OccludeRows:
    return OccludeRows(of, "scores", np.array(windows, np.int32).reshape(-1, 4))


def images(count: int, seed: int) -> PredictRows:
    random = np.random.default_rng(seed)
    return PredictRows(
        inputs={"image": random.random((count, *SHAPE), np.float32), "rate": random.random((count, 2))},
        outputs=("scores",),
        count=count,
    )


def by_the_buffer(parts: Sequence[Rows]) -> dict[str, bytes]:
    """Return what `Evaluate` hands to the model without a source of rows of its own."""
    seen: dict[str, bytes] = {}

    def forward(arrays: Arrays, wanted: object) -> dict[str, NDArray[np.float32]]:
        seen.update({name: array.tobytes() for name, array in arrays.items()})
        return {"scores": np.zeros((SIZE, 1), np.float32)}

    programs.Evaluate(forward)(RowBuffer(LAYOUT, SIZE), parts)
    return seen


WINDOWS = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 6), st.integers(0, 5), st.integers(0, 7)),
    min_size=1,
    max_size=4,
)


@given(WINDOWS, WINDOWS, st.booleans())
@examples(30)
def test_rows_are_those_of_the_buffer(
    some: list[tuple[int, int, int, int]], others: list[tuple[int, int, int, int]], mixed: bool
) -> None:
    parts: list[Rows] = [occlusions(subject(0), some), occlusions(subject(1), others)]
    if mixed and len(some) + len(others) < SIZE:
        parts.insert(1, images(1, seed=2))

    built = ResidentRows()(LAYOUT, SIZE, parts)

    assert {name: rows.numpy().tobytes() for name, rows in built.items()} == by_the_buffer(parts)
    assert all(rows.shape[0] == SIZE for rows in built.values())


def test_an_image_that_hides_nothing_needs_no_fill() -> None:
    parts = [occlusions(subject(0, fill=False), [(0, 0, 0, 0)])]
    built = ResidentRows()(LAYOUT, SIZE, parts)
    assert {name: rows.numpy().tobytes() for name, rows in built.items()} == by_the_buffer(parts)


def test_an_image_crosses_once_and_goes_with_its_last_reference() -> None:
    rows, one = ResidentRows(), subject(0)
    rows(LAYOUT, SIZE, [occlusions(one, [(0, 0, 2, 2)])])
    resident = rows._residents[one]
    rows(LAYOUT, SIZE, [occlusions(one, [(1, 1, 3, 3)])])
    assert rows._residents[one] is resident
    del one, resident
    gc.collect()
    assert not rows._residents


def test_maps_have_the_same_bits_either_way(
    saved: Saved, load: Load, device: "object", monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved("convolutional")
    monkeypatch.setattr(loader, "accelerated", lambda: True)
    run: Run = device.run  # type: ignore[attr-defined]
    there, here = load_model(path, run), load(path)
    image = np.random.default_rng(0).random((12, 10, 3), np.float32)
    found = []
    for model in (here, there):
        question = Question(model.description, image, "probabilities", targets=AllTargets())
        explained = OcclusionRun(question, OcclusionParameters((4, 3), (2, 2)))
        program = model.program(explained.kind, (12, 10))
        while not explained.finished:
            work = explained.take(program.batch_size)
            explained.absorb(work, *program.execute([work.rows]))  # type: ignore[union-attr, arg-type]
        found.append([tile.values.tobytes() for tile in explained.tiles()])
    assert isinstance(there.program(explained.kind, (12, 10))._computation._rows, ResidentRows)  # type: ignore[attr-defined]
    assert found[0] == found[1]
