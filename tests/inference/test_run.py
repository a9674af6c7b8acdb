"""An inference as a Run: rows out, outputs in, whatever the batches and their order."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fakes.properties import examples
from fakes.runs import CostedProgram
from vitrail.errors import DeadlineExceeded, Internal, Unavailable
from vitrail_server.explainers.run import Nothing, Work
from vitrail_server.inference.run import InferenceRun
from vitrail_server.savedmodel.programs import predicted
from vitrail_server.work import Kind, PredictRows, Result


def rows_of(count: int) -> PredictRows:
    return PredictRows({"x": np.arange(count * 3.0).reshape(count, 3)}, ("y", "z"), count)


def program(kind: Kind, batch_size: int) -> CostedProgram:
    made = CostedProgram(batch_size, 0.1)
    made.kind = kind
    return made


def answer(work: Work) -> Result:
    assert isinstance(work.rows, PredictRows)
    x = work.rows.inputs["x"].astype(np.float64)
    assert len(x) == len(work.rows) == len(work.tag)
    return predicted({"y": x * 2, "z": x.sum(1)}, len(x))


def check(run: InferenceRun, expected: NDArray[np.generic]) -> None:
    assert run.finished
    outputs = run.outputs()
    np.testing.assert_array_equal(outputs["y"], expected.astype(np.float64) * 2)
    np.testing.assert_array_equal(outputs["z"], expected.astype(np.float64).sum(1))


@examples(100)
@given(st.integers(1, 20), st.integers(0, 2**32))
def test_rows_come_back_in_order_whatever_the_batches(count: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    rows = rows_of(count)
    run = InferenceRun(rows, program(Kind.FORWARD, 4))
    out: list[Work] = []
    give_backs = 5
    while not run.finished:
        taken = run.take(int(random.integers(1, 8)))
        if isinstance(taken, Work):
            out.append(taken)
        elif out:
            assert taken is Nothing.WAIT
        if out and random.random() < 0.5:
            work = out.pop(int(random.integers(len(out))))
            if give_backs and random.random() < 0.5:
                give_backs -= 1
                run.give_back(work)
            else:
                run.absorb(work, answer(work))
    assert run.take(4) is Nothing.DONE
    check(run, rows.inputs["x"])


def test_an_inference_of_its_own_program_stays_together() -> None:
    run = InferenceRun(rows_of(5), program(Kind.PREDICT, 8))
    assert run.take(4) is Nothing.WAIT
    work = run.take(5)
    assert isinstance(work, Work)
    assert work.rows is run.rows, "the arrays are not copied"
    run.give_back(work)
    assert run.take(4) is Nothing.WAIT
    again = run.take(8)
    assert isinstance(again, Work)
    run.absorb(again, answer(again))
    check(run, rows_of(5).inputs["x"])


def test_it_is_split_where_memory_leaves_no_choice() -> None:
    halved = program(Kind.PREDICT, 8)
    run = InferenceRun(rows_of(5), halved)
    halved.batch_size = 2
    sizes = []
    while isinstance(work := run.take(2), Work):
        sizes.append(len(work.rows))
        run.absorb(work, answer(work))
    assert sizes == [2, 2, 1]
    check(run, rows_of(5).inputs["x"])


def test_an_output_without_rows_is_taken_whole_and_never_pieced_together() -> None:
    halved = program(Kind.PREDICT, 4)
    total = np.array(7.0)
    run = InferenceRun(PredictRows({"x": np.zeros((4, 3))}, ("y",), 4), halved)
    work = run.take(4)
    assert isinstance(work, Work)
    run.absorb(work, predicted({"y": total}, 4))
    assert run.outputs()["y"] is total

    run = InferenceRun(PredictRows({"x": np.zeros((4, 3))}, ("y",), 4), halved)
    halved.batch_size = 2
    while isinstance(work := run.take(2), Work):
        run.absorb(work, predicted({"y": total}, 2))
    with pytest.raises(Internal, match="'y' has no row per row of the inputs"):
        run.outputs()


def test_it_ends_with_an_error() -> None:
    run = InferenceRun(rows_of(2), program(Kind.FORWARD, 1))
    work = run.take(1)
    assert isinstance(work, Work)
    run.fail(Unavailable("gone"))
    assert run.finished
    assert isinstance(run.error, Unavailable)
    assert run.take(1) is Nothing.WAIT
    late = InferenceRun(rows_of(2), program(Kind.FORWARD, 1))
    late.stop()
    assert isinstance(late.error, DeadlineExceeded)


def test_results_of_another_kind_are_refused() -> None:
    run = InferenceRun(rows_of(1), program(Kind.FORWARD, 1))
    work = run.take(1)
    assert isinstance(work, Work)
    with pytest.raises(TypeError, match="PredictRows"):
        run.absorb(work, Result(np.zeros((1, 1), np.float32)))
