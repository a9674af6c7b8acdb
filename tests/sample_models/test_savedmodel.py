from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from sample_models.savedmodel import Predict, publish


def doubling(factor: float) -> keras.Model:
    """A network whose answer is known: the mean pixel times a factor."""
    image = keras.Input((4, 4, 1))
    mean = keras.layers.GlobalAveragePooling2D()(image)
    dense = keras.layers.Dense(1, kernel_initializer=keras.initializers.Constant(factor))
    return keras.Model(image, dense(mean))


def nothing(_predict: Predict) -> None:
    """Find no fault."""


def test_the_signature_names_its_input_and_output(tmp_path: Path) -> None:
    publish(tmp_path / "model" / "1", doubling(2), "score", nothing)

    loaded = tf.saved_model.load(str(tmp_path / "model" / "1" / "model.savedmodel"))
    signature = loaded.signatures["serving_default"]
    _, inputs = signature.structured_input_signature
    assert {name: (spec.shape.as_list(), spec.dtype) for name, spec in inputs.items()} == {
        "image": ([None, 4, 4, 1], tf.float32)
    }
    assert list(signature.structured_outputs) == ["score"]


def test_the_check_sees_what_was_written(tmp_path: Path) -> None:
    seen = []

    publish(
        tmp_path / "1",
        doubling(2),
        "score",
        lambda predict: seen.append(predict(np.ones((3, 4, 4, 1), np.float32))),
    )

    np.testing.assert_array_equal(seen, [[[2.0]] * 3])


def test_a_failed_check_leaves_the_old_version_and_no_rest(tmp_path: Path) -> None:
    publish(tmp_path / "1", doubling(2), "score", nothing)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def refuse(_predict: Predict) -> None:
        raise SystemExit("wrong")

    with pytest.raises(SystemExit, match="wrong"):
        publish(tmp_path / "1", doubling(3), "score", refuse)

    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


def test_a_new_version_replaces_the_old_one(tmp_path: Path) -> None:
    answers = []
    for factor in (2, 3):
        publish(
            tmp_path / "1",
            doubling(factor),
            "score",
            lambda predict: answers.append(float(predict(np.ones((1, 4, 4, 1), np.float32))[0, 0])),
        )

    assert answers == [2.0, 3.0]
    assert [path.name for path in tmp_path.iterdir()] == ["1"]
