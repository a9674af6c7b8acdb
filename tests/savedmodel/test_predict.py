"""Inferences through real models: every type and shape, alone and in company, and beside explanations."""

from collections.abc import Collection, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray
from tensorflow.python.framework import func_graph

from saved_models import IMAGE, SUMS, numbers
from savedmodel.conftest import DeviceThread, Load, Saved, load_model
from vitrail_server.savedmodel.predict import MOST_SHAPES, Predictors, PredictProgram
from vitrail_server.servable import Servable
from vitrail_server.work import Kind, OccludeRows, OutOfMemory, PredictRows, Result, Subject

Arrays = Mapping[str, NDArray[np.generic]]

NO_IMAGE: dict[str, Any] = {"image_input": None, "image_reason": "no image"}


def rows(outputs: tuple[str, ...], *, batched: bool = True, **inputs: Any) -> PredictRows:
    first = next(iter(inputs.values()))
    return PredictRows(inputs, outputs, len(first) if batched else 1, batched)


def predict(model: Servable, *parts: PredictRows) -> list[dict[str, Any]]:
    results = model.predictor(parts[0]).execute(parts)
    assert all(model.predictor(part) is model.predictor(parts[0]) for part in parts)
    return [tensors(result) for result in results]


def tensors(result: Result) -> dict[str, Any]:
    assert result.tensors is not None
    return dict(result.tensors)


def test_a_prediction_has_the_bits_of_an_explanation_s_scores(saved: Saved, load: Load) -> None:
    model = load(saved("convolutional"))
    images = numbers(3, 12, 10, 3, seed=8)
    asked = rows(("probabilities", "logits"), image=images)
    program = model.predictor(asked)
    assert program is model.program(Kind.FORWARD, (12, 10))
    clean = np.zeros((1, 4), np.int32)
    for row, image in enumerate(images):
        explained = OccludeRows(Subject(image), "probabilities", clean)
        if program.batch_size > 1:
            alone = rows(("probabilities", "logits"), image=images[row : row + 1])
            scores, found = program.execute([explained, alone])
        else:
            (scores,) = program.execute([explained])
            (found,) = program.execute([rows(("probabilities", "logits"), image=images[row : row + 1])])
        assert tensors(found)["probabilities"].tobytes() == scores.outputs.tobytes()
        assert tensors(found)["logits"].shape == (1, 4)


@pytest.mark.parametrize(
    "output", [("text",), ("loss",), ("text", "half")], ids=lambda names: "-".join(names)
)
def test_outputs_that_nothing_explains_are_computed_too(
    saved: Saved, load: Load, output: tuple[str, ...]
) -> None:
    model = load(saved("many_outputs"))
    images = numbers(2, *IMAGE, seed=3)
    scores = np.tensordot(images, SUMS, 3)
    asked = rows(output, batched="loss" not in output, image=images)
    assert model.predictor(asked).kind is Kind.PREDICT
    (found,) = predict(model, asked)
    assert set(found) == set(output)
    if "text" in found:
        np.testing.assert_allclose(found["text"].astype(np.float64), scores, rtol=1e-4)
    if "half" in found:
        assert found["half"].dtype == np.float16
    if "loss" in found:
        assert found["loss"].shape == ()
        np.testing.assert_allclose(found["loss"], scores.mean(), rtol=1e-5)


def test_every_type_goes_in_and_comes_out_unchanged(saved: Saved, device: DeviceThread) -> None:
    values: dict[str, Any] = {
        "bool": np.array([[True, False]]),
        "uint8": np.array([[0, 255]], np.uint8),
        "uint16": np.array([[0, 2**16 - 1]], np.uint16),
        "uint32": np.array([[0, 2**32 - 1]], np.uint32),
        "uint64": np.array([[0, 2**64 - 1]], np.uint64),
        "int8": np.array([[-128, 127]], np.int8),
        "int16": np.array([[-(2**15), 2**15 - 1]], np.int16),
        "int32": np.array([[-(2**31), 2**31 - 1]], np.int32),
        "int64": np.array([[-(2**63), 2**63 - 1]], np.int64),
        "float16": np.array([[np.nan, -np.inf]], np.float16),
        "bfloat16": np.array([[1.5, np.inf]], ml_dtypes.bfloat16),
        "float32": np.array([[np.nan, -0.0]], np.float32),
        "float64": np.array([[np.pi, np.inf]], np.float64),
        "string": np.array([[b"a\x00b", b""]], object),
    }
    path = saved("identities", {name: getattr(tf, name) for name in values})
    model = load_model(path, device.run, **NO_IMAGE)
    wanted = tuple(f"{name}_out" for name in values)
    (found,) = predict(model, rows(wanted, **values))
    for name, value in values.items():
        out = found[f"{name}_out"]
        assert out.dtype == value.dtype
        assert out.tolist() == value.tolist() or out.tobytes() == value.tobytes()
    empty: dict[str, Any] = {name: value[:, :0] for name, value in values.items()}
    (found,) = predict(model, rows(wanted, **empty))
    for name, value in values.items():
        assert found[f"{name}_out"].shape == (1, 0)
        assert found[f"{name}_out"].dtype == value.dtype


def test_requests_share_a_batch_and_get_their_own_rows(saved: Saved, load: Load) -> None:
    model = load(saved("sums_and_differences"), **NO_IMAGE)
    a, b = numbers(6, 16), numbers(6, 16, seed=2)
    both = rows(("OUTPUT0", "OUTPUT1"), INPUT0=a[:2], INPUT1=b[:2])
    one = rows(("OUTPUT1",), INPUT0=a[2:], INPUT1=b[2:])
    first, second = predict(model, both, one)
    np.testing.assert_array_equal(first["OUTPUT0"], (a + b)[:2])
    np.testing.assert_array_equal(first["OUTPUT1"], (a - b)[:2])
    assert list(second) == ["OUTPUT1"]
    np.testing.assert_array_equal(second["OUTPUT1"], (a - b)[2:])


def test_tensors_without_dimensions_are_whole(saved: Saved, load: Load) -> None:
    model = load(saved("scalars"), **NO_IMAGE)
    (found,) = predict(model, rows(("y", "text"), batched=False, x=np.array(1.5, np.float32)))
    assert (found["y"].shape, found["y"].dtype.name, found["y"].item()) == ((), "float32", 3.0)
    assert (found["text"].shape, found["text"].item()[:1]) == ((), b"3")


def test_outputs_that_turn_out_to_have_no_rows_are_computed_apart(saved: Saved, load: Load) -> None:
    model = load(saved("ragged"), **NO_IMAGE)
    x = numbers(5, 2)
    first, second = predict(model, rows(("y", "rows"), x=x[:2]), rows(("y", "rows"), x=x[2:]))
    np.testing.assert_array_equal(np.concatenate([first["y"], second["y"]]), x * x)
    assert (first["rows"].tolist(), second["rows"].tolist()) == ([2], [3])


def test_shapes_have_a_program_each_and_nothing_is_traced(
    saved: Saved, device: DeviceThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(saved("identities", {"x": tf.int32}), device.run, **NO_IMAGE)

    def no_graph(*_: Any, **__: Any) -> None:
        raise AssertionError("something was traced after loading")

    monkeypatch.setattr(func_graph.FuncGraph, "__init__", no_graph)
    programs = set()
    for columns in range(10):
        for count in (1, 3):
            x = np.ones((count, columns), np.int32)
            asked = rows(("x_out",), x=x)
            programs.add(model.predictor(asked))
            (found,) = predict(model, asked)
            np.testing.assert_array_equal(found["x_out"], x)
    assert len(programs) == 10


def test_only_so_many_shapes_are_remembered() -> None:
    predictors = Predictors(lambda arrays, _: arrays, 4)
    programs = [predictors.program(rows(("x",), x=np.zeros((1, size)))) for size in range(MOST_SHAPES + 1)]
    assert predictors.program(rows(("x",), x=np.zeros((2, MOST_SHAPES)))) is programs[-1]
    assert predictors.program(rows(("x",), x=np.zeros((1, 0)))) is not programs[0]
    assert predictors.program(rows(("x",), batched=False, x=np.zeros((1, 1)))).batch_size == 1


def test_the_batch_is_halved_down_to_one() -> None:
    def exhausted(arrays: Arrays, wanted: Collection[str]) -> Arrays:
        raise OutOfMemory

    program = PredictProgram(exhausted, 4, seconds=1.0)
    with pytest.raises(OutOfMemory):
        program.execute([rows(("x",), x=np.zeros((1, 1)))])
    assert program.halve()
    assert program.halve()
    assert not program.halve()
    assert (program.batch_size, program.seconds) == (1, 0.25)


def test_a_closed_model_predicts_nothing(saved: Saved, device: DeviceThread) -> None:
    model = load_model(saved("scalars"), device.run, **NO_IMAGE)
    model.close()
    with pytest.raises(RuntimeError, match="closed"):
        model.predictor(rows(("y",), batched=False, x=np.array(1.5, np.float32)))


def test_a_model_that_cannot_take_zeros_is_loaded(saved: Saved, load: Load) -> None:
    model = load(saved("failing"), **NO_IMAGE)
    with pytest.raises(tf.errors.InvalidArgumentError, match="too bright"):
        predict(model, rows(("y",), image=np.zeros((1, *IMAGE), np.float32)))
