"""What a SavedModel's signature says, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import saved_models
from saved_models import IMAGE, OFFSETS, numbers
from savedmodel.conftest import Saved
from vitrail.errors import FailedPrecondition
from vitrail_server.savedmodel.rows import InputLayout
from vitrail_server.savedmodel.signature import batch_size_of, per_image_outputs, read, row_layout
from vitrail_server.servable import Signature, TensorSpec


def test_names_types_and_shapes_are_triton_s(saved: Saved) -> None:
    exported = read(saved("many_outputs"))
    assert exported.signature == Signature(
        {"image": TensorSpec("image", "FP32", (-1, *IMAGE))},
        {
            "count": TensorSpec("count", "INT32", (-1, 3)),
            "double": TensorSpec("double", "FP64", (-1, 3)),
            "half": TensorSpec("half", "FP16", (-1, 3)),
            "loss": TensorSpec("loss", "FP32", ()),
            "map": TensorSpec("map", "FP32", (-1, 5, 7)),
            "text": TensorSpec("text", "BYTES", (-1, 3)),
        },
    )
    assert per_image_outputs(exported.signature) == ("count", "double", "half", "map")


def test_the_weights_are_counted(saved: Saved) -> None:
    weights, bias = np.zeros((5, 7, 3, 2), np.float32), np.zeros(2, np.float32)
    assert read(saved("linear", weights, bias)).weights == weights.nbytes + bias.nbytes


def test_a_row_holds_the_image_and_the_other_inputs(saved: Saved) -> None:
    layout = row_layout(read(saved("two_inputs")).signature, "image", (5, 7))
    float32 = np.dtype(np.float32)
    assert layout.image == InputLayout(IMAGE, float32)
    assert layout.others == {"a_offset": InputLayout((len(OFFSETS),), float32)}


def test_the_batch_size_is_that_of_the_inputs(saved: Saved) -> None:
    assert batch_size_of(read(saved("batch_normalised", 4)).signature) == 4
    assert batch_size_of(read(saved("batch_normalised")).signature) is None


def test_a_model_from_tensorflow_1_is_read(saved: Saved) -> None:
    signature = read(saved("tensorflow_1")).signature
    assert signature.inputs == {"image:0": TensorSpec("image:0", "FP32", (-1, *IMAGE))}
    assert signature.outputs == {"a/y": TensorSpec("a/y", "FP32", (-1, 3))}


def test_the_only_signature_will_do(tmp_path: Path) -> None:
    module = tf.Module()
    module.predict = tf.function(
        lambda image: {"y": image[:, 0, 0, :]}, input_signature=[tf.TensorSpec((None, 2, 2, 1))]
    )
    tf.saved_model.save(module, str(tmp_path), signatures={"mine": module.predict})
    assert list(read(tmp_path).signature.outputs) == ["y"]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("no_signature", r"has no signature; export it with signatures=\{'serving_default': \.\.\.\}"),
        ("two_signatures", "has the signatures one, other and none is named serving_default"),
    ],
)
def test_a_model_without_a_signature_to_choose_is_refused(saved: Saved, model: str, message: str) -> None:
    with pytest.raises(FailedPrecondition, match=message):
        read(saved(model))


def test_what_is_no_saved_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="cannot read the SavedModel"):
        read(tmp_path)
    (tmp_path / "saved_model.pb").write_bytes(b"not a SavedModel")
    with pytest.raises(FailedPrecondition, match="cannot read the SavedModel"):
        read(tmp_path)


def test_a_reason_names_no_directory_of_the_server(tmp_path: Path) -> None:
    path = tmp_path / "1" / "model.savedmodel"
    saved_models.linear(path, numbers(2, 2, 1, 1), numbers(1))
    reasons = []
    for file in ("variables/variables.index", "saved_model.pb"):
        (path / file).unlink()
        with pytest.raises(FailedPrecondition) as caught:
            read(path)
        reasons.append(caught.value.message)
    for reason in reasons:
        assert "model.savedmodel/" in reason
        assert str(tmp_path) not in reason


def inputs(**shapes: tuple[int, ...] | None) -> Signature:
    return Signature({name: TensorSpec(name, "FP32", shape) for name, shape in shapes.items()}, {})


@pytest.mark.parametrize(
    ("signature", "message"),
    [
        (inputs(image=(-1, 2, 2, 1), rate=()), r"'rate' has the shape \[\], without a batch dimension"),
        (inputs(image=(-1, 2, 2, 1), rate=None), "'rate' has the shape of unknown rank, without a batch"),
        (inputs(image=(4, 2, 2, 1), rate=(1, 2)), "the inputs image, rate have the batch sizes 4, 1"),
    ],
)
def test_inputs_without_a_common_batch_are_refused(signature: Signature, message: str) -> None:
    with pytest.raises(FailedPrecondition, match=message):
        batch_size_of(signature)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (TensorSpec("text", "BYTES", (-1, 1)), "'text' is BYTES, which cannot be sent with an image"),
        (TensorSpec("text", "FP32", (-1, -1)), r"'text' has the shape \[-1,-1\]; export it with every size"),
    ],
)
def test_further_inputs_that_cannot_be_sent_are_refused(spec: TensorSpec, message: str) -> None:
    signature = Signature({"image": TensorSpec("image", "FP32", (-1, 2, 2, 1)), "text": spec}, {})
    with pytest.raises(FailedPrecondition, match=message):
        row_layout(signature, "image", (2, 2))


def test_an_input_of_a_type_without_a_name_is_refused(tmp_path: Path) -> None:
    module = tf.Module()
    module.predict = tf.function(
        lambda image: {"y": tf.math.real(image)},
        input_signature=[tf.TensorSpec((None, 2, 2, 1), tf.complex64)],
    )
    tf.saved_model.save(module, str(tmp_path), signatures={"serving_default": module.predict})
    with pytest.raises(FailedPrecondition, match=r"cannot be sent: image \(complex64\); export"):
        read(tmp_path)
