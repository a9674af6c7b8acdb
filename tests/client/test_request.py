import io
import math
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from PIL import Image

from vitrail import Gradient, Objective, Occlusion, TopK, request
from vitrail.enums import choices
from vitrail.errors import InvalidArgument
from vitrail.request import (
    ObjectiveKind,
    Options,
    image_message,
    keyed,
    set_budget,
    specification,
)
from vitrail.tensors import from_tensor
from vitrail.v1 import explanation_pb2 as pb


def test_the_objectives_are_those_of_the_wire() -> None:
    assert list(get_args(ObjectiveKind)) == choices(pb.Objective.Kind)


def test_a_model_alone_asks_for_its_gradient_and_leaves_the_rest_to_the_server() -> None:
    spec = specification("net", {})

    assert spec == pb.ExplanationSpec(
        model_name="net",
        gradient=pb.Gradient(channel_reduction=pb.Gradient.CHANNEL_REDUCTION_MAX_ABS),
    )
    assert spec.WhichOneof("version_choice") is None
    assert not spec.HasField("targets")
    assert not spec.HasField("objective")
    assert not spec.HasField("time_budget")


def test_every_option_reaches_its_field() -> None:
    spec = specification(
        "net",
        {
            "version": 3,
            "method": Occlusion(4),
            "targets": [2, "espresso"],
            "objective": Objective("SQUARED_ERROR", (1.5, 2.0)),
            "output": "width",
            "inputs": {"age": np.array([7], np.int64)},
            "priority": 1,
            "timeout": 2.5,
        },
    )

    assert spec.version == 3
    assert spec.occlusion.patch == pb.Extent(rows=4, columns=4)
    assert spec.targets.list == pb.TargetList(targets=[pb.Target(index=2), pb.Target(label="espresso")])
    assert spec.objective == pb.Objective(kind=pb.Objective.KIND_SQUARED_ERROR, values=[1.5, 2.0])
    assert spec.output_name == "width"
    assert from_tensor(spec.inputs["age"], "age").tolist() == [7]
    assert spec.priority == 1


def test_a_version_may_be_a_label() -> None:
    assert specification("net", {"version_label": "stable"}).version_label == "stable"


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (3, pb.Targets(list=pb.TargetList(targets=[pb.Target(index=3)]))),
        (np.int64(3), pb.Targets(list=pb.TargetList(targets=[pb.Target(index=3)]))),
        ("espresso", pb.Targets(list=pb.TargetList(targets=[pb.Target(label="espresso")]))),
        (["all"], pb.Targets(list=pb.TargetList(targets=[pb.Target(label="all")]))),
        ((1, 0), pb.Targets(list=pb.TargetList(targets=[pb.Target(index=1), pb.Target(index=0)]))),
        (TopK(5), pb.Targets(top_k=5)),
        ("all", pb.Targets(all=pb.AllTargets())),
    ],
)
def test_targets(targets: Any, message: pb.Targets) -> None:
    assert specification("net", {"targets": targets}).targets == message


def test_an_objective_may_be_given_by_name() -> None:
    spec = specification("net", {"objective": "CROSS_ENTROPY"})

    assert spec.objective == pb.Objective(kind=pb.Objective.KIND_CROSS_ENTROPY)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"version": 1, "version_label": "stable"}, "spec.version"),
        ({"version": -1}, "spec.version"),
        ({"version": 2**63}, "spec.version"),
        ({"targets": []}, "spec.targets.list"),
        ({"targets": [0, -1]}, "spec.targets.list.targets[1].index"),
        ({"targets": [0.5]}, "spec.targets.list.targets[0]"),
        ({"objective": "SQUARED_ERROR"}, "spec.objective.values"),
        ({"objective": "LOGIT"}, "spec.objective.kind"),
        ({"priority": 0}, "spec.priority"),
        ({"timeout": 0}, "spec.time_budget"),
        ({"timeout": math.inf}, "spec.time_budget"),
        ({"timeout": math.nan}, "spec.time_budget"),
        ({"timeout": 1e11}, "spec.time_budget"),
        ({"inputs": {"age": np.array(["x"])}}, "spec.inputs['age']"),
    ],
)
def test_what_no_server_could_accept_is_refused_with_its_field(options: Any, field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        specification("net", options)

    assert caught.value.field == field


def test_values_of_objectives_are_checked() -> None:
    with pytest.raises(InvalidArgument, match="only SQUARED_ERROR has values"):
        Objective("OUTPUT", (1.0,))
    with pytest.raises(InvalidArgument, match="not finite"):
        Objective("SQUARED_ERROR", (math.nan,))
    with pytest.raises(InvalidArgument, match="at least 1"):
        TopK(0)


def test_an_empty_model_name_is_refused() -> None:
    with pytest.raises(InvalidArgument) as caught:
        specification("", {})

    assert caught.value.field == "spec.model_name"


def test_an_option_that_does_not_exist_is_a_type_error_that_names_those_that_do() -> None:
    options: Any = {"metod": Gradient()}

    with pytest.raises(TypeError, match=r"no option metod; the options are .*method") as caught:
        specification("net", options)

    assert all(name in str(caught.value) for name in Options.__annotations__)


def test_an_array_is_a_tensor_in_the_models_units() -> None:
    array = np.arange(6, dtype=">f4").reshape(1, 2, 3)[:, ::-1]

    image = image_message(array)

    assert list(image.tensor.shape) == [1, 2, 3]
    np.testing.assert_array_equal(from_tensor(image.tensor, "image"), array)


def test_a_path_and_bytes_are_sent_as_they_are(tmp_path: Path) -> None:
    file = tmp_path / "photo.jpg"
    file.write_bytes(b"a photo")

    assert image_message(file).encoded == b"a photo"
    assert image_message(str(file)).encoded == b"a photo"
    assert image_message(b"a photo").encoded == b"a photo"


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "1"])
def test_a_pillow_image_is_sent_as_a_png_of_the_same_pixels(mode: str) -> None:
    picture = Image.effect_noise((5, 3), 60).convert(mode)

    again = Image.open(io.BytesIO(image_message(picture).encoded))

    assert again.format == "PNG"
    np.testing.assert_array_equal(np.asarray(again), np.asarray(picture))


def test_a_pillow_image_that_no_png_holds_becomes_rgb() -> None:
    encoded = image_message(Image.new("CMYK", (2, 2))).encoded

    assert Image.open(io.BytesIO(encoded)).mode == "RGB"


def test_a_pillow_image_from_a_turned_photo_is_sent_upright() -> None:
    photo = Image.new("RGB", (4, 2))
    photo.getexif()[0x0112] = 6  # the camera was turned by 90 degrees
    buffer = io.BytesIO()
    photo.save(buffer, "JPEG", exif=photo.getexif())

    sent = Image.open(io.BytesIO(image_message(Image.open(buffer)).encoded))

    assert sent.size == (2, 4)


@pytest.mark.parametrize(
    ("image", "field"),
    [
        (Path("no/such/photo.jpg"), "spec.image"),
        (b"", "spec.image.encoded"),
        (np.zeros((0, 4, 3), np.float32), "spec.image.tensor.shape"),
        # More than a message holds, and not in memory either.
        (np.broadcast_to(np.float32(0), (1 << 15, 1 << 14, 1)), "spec.image.tensor.data"),
        (np.array([["x"]]), "spec.image.tensor"),
        ([[1.0]], "spec.image"),
        (None, "spec.image"),
    ],
)
def test_what_is_no_image_is_refused(image: Any, field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        image_message(image)

    assert caught.value.field == field


def test_a_file_that_no_message_holds_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request, "LARGEST_IMAGE", 4)

    assert image_message(b"1234").encoded == b"1234"
    with pytest.raises(InvalidArgument, match="has more than 4 bytes") as refusal:
        image_message(b"12345")
    assert refusal.value.field == "spec.image.encoded"


def test_a_file_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request, "LARGEST_IMAGE", 4)

    with pytest.raises(InvalidArgument, match="has more than 4 bytes"):
        image_message("/dev/zero")


def test_a_budget_is_the_time_left() -> None:
    spec = specification("net", {"timeout": 2.5})

    set_budget(spec, 1.5)
    assert spec.time_budget.ToMilliseconds() == 1500
    set_budget(spec, None)
    assert not spec.HasField("time_budget")
    set_budget(spec, 0.0)
    assert spec.time_budget.ToNanoseconds() == 1


def test_images_are_keyed_by_their_mapping_or_by_position() -> None:
    assert list(keyed({7: b"1", 5: b"2"})) == [(7, b"1"), (5, b"2")]
    assert list(keyed(iter([b"1", b"2"]))) == [(0, b"1"), (1, b"2")]
