"""Wrong images, inputs, targets, objectives and parameters: each is refused naming field and remedy."""

from typing import Any

import grpc
import numpy as np
import pytest

from fakes.models import picture
from fakes.serving import Served
from vitrail.v1 import explanation_pb2 as pb
from vitrail.v1.tensor_pb2 import DataType, Tensor
from vitrail_server.work import Kind

from .conftest import LABELS, SHAPE
from .messages import Refusal, extent, indices, label, occlusion, refused, spec, tensor

pytestmark = pytest.mark.asyncio(loop_scope="module")

IMAGE = picture(0, SHAPE)
GREY = picture(0, (6, 8, 1))
BYTES = np.arange(144, dtype=np.uint8).reshape(SHAPE)
FP32, UINT8 = DataType.DATA_TYPE_FP32, DataType.DATA_TYPE_UINT8


async def refuse(zoo: Served, what: pb.ExplanationSpec) -> Refusal:
    """Ask for a map that cannot be; the same refusal must come whichever rpc is used."""
    refusal = await refused(zoo.explanations.Explain(pb.ExplainRequest(spec=what)))
    tiles = zoo.explanations.ExplainTiles(pb.ExplainTilesRequest(spec=what))
    assert await refused(tiles.read()) == refusal
    return refusal


async def invalid(zoo: Served, what: pb.ExplanationSpec, field: str, *said: str) -> None:
    """Ask for a map that cannot be, and check that the refusal names the field and says what it must."""
    refusal = await refuse(zoo, what)
    assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT, refusal
    assert refusal.field == field
    for words in said:
        assert words in refusal.message
    assert refusal.retry_delay is None


@pytest.mark.parametrize(
    ("given", "field", "said"),
    [
        (Tensor(data_type=FP32, shape=SHAPE, data=bytes(575)), "data", "has 575 bytes, but shape [6, 8, 3]"),
        (Tensor(data_type=FP32, shape=SHAPE, data=bytes(577)), "data", "of float32 needs 576"),
        (Tensor(data_type=FP32, shape=SHAPE), "data", "has 0 bytes"),
        (Tensor(data_type=FP32, shape=[2**62, 8, 3], data=bytes(576)), "data", f"needs {2**62 * 96}"),
        (Tensor(data_type=FP32, shape=[2**63 - 1] * 8, data=bytes(576)), "data", "has 576 bytes"),
        (Tensor(data_type=FP32, shape=[2**32, 2**32, 1], data=b""), "data", "has 0 bytes"),
        (Tensor(data_type=FP32, shape=[6, -8, 3], data=bytes(576)), "shape", "must be at least 1"),
        (Tensor(data_type=FP32, shape=[-6, -8, 3], data=bytes(576)), "shape", "must be at least 1"),
        (Tensor(data_type=FP32, shape=[0, 8, 3]), "shape", "[0, 8, 3]; every size must be at least 1"),
        (Tensor(data_type=FP32, shape=[1] * 9, data=bytes(4)), "shape", "has 9 dimensions; at most 8"),
        (Tensor(data_type=FP32, shape=[1] * 100_000, data=bytes(4)), "shape", "has 100000 dimensions"),
        (
            Tensor(shape=SHAPE, data=bytes(576)),
            "data_type",
            "is DATA_TYPE_UNSPECIFIED; use one of DATA_TYPE_",
        ),
        (Tensor(data_type=99, shape=SHAPE, data=bytes(576)), "data_type", "is 99; use one of DATA_TYPE_BOOL"),  # type: ignore[arg-type]  # the point
        (Tensor(data_type=FP32, data=bytes(4)), "shape", "is []; model 'colour' takes [6, 8, 3]"),
        (Tensor(data_type=FP32, shape=[8, 6, 3], data=bytes(576)), "shape", "takes [6, 8, 3], channels last"),
        (Tensor(data_type=FP32, shape=[3, 6, 8], data=bytes(576)), "shape", "channels last"),
        (Tensor(data_type=FP32, shape=[6, 8], data=bytes(192)), "shape", "takes [6, 8, 3]"),
        (Tensor(data_type=FP32, shape=[2, 6, 8, 3], data=bytes(1152)), "shape", "batch dimension of 1"),
        (Tensor(data_type=FP32, shape=[1, 1, 6, 8, 3], data=bytes(576)), "shape", "takes [6, 8, 3]"),
        (Tensor(data_type=FP32, shape=[6, 8, 1], data=bytes(192)), "shape", "takes [6, 8, 3]"),
    ],
)
async def test_a_malformed_image(zoo: Served, given: Tensor, field: str, said: str) -> None:
    what = spec("colour", IMAGE)
    what.image.tensor.CopyFrom(given)

    await invalid(zoo, what, f"spec.image.tensor.{field}", said)


@pytest.mark.parametrize("shape", [SHAPE, (1, *SHAPE)])
@pytest.mark.parametrize("dtype", ["f4", "f8", "i8", "u1"])
async def test_the_forms_of_an_image_that_are_taken(zoo: Served, shape: tuple[int, ...], dtype: str) -> None:
    given = np.arange(144, dtype=dtype).reshape(shape)

    answer = await zoo.explanations.Explain(pb.ExplainRequest(spec=spec("colour", given)))
    seen = zoo.offers["colour"].program(Kind.FORWARD, 7).subjects[-1].image

    assert list(answer.plan.map_shape) == [3, 6, 8]
    assert seen.dtype == np.float32
    assert np.array_equal(seen.ravel(), np.arange(144))


async def test_an_image_of_one_channel_may_leave_the_channel_out(zoo: Served) -> None:
    what = spec("grey", GREY[:, :, 0], occlusion=occlusion(fill=pb.Fill(image=tensor(GREY[:, :, 0]))))

    answer = await zoo.explanations.Explain(pb.ExplainRequest(spec=what))

    # Hiding a window by the very same pixels changes nothing, so nothing has to be evaluated.
    assert answer.summary.evaluations.skipped == 12


@pytest.mark.parametrize(("value", "name"), [(np.nan, "nan"), (np.inf, "inf"), (-np.inf, "-inf")])
async def test_pixels_that_are_not_finite_are_refused_naming_the_first(
    zoo: Served, value: float, name: str
) -> None:
    image = IMAGE.copy()
    image[3, 1, 2] = image[5, 7, 0] = value

    await invalid(
        zoo,
        spec("colour", image),
        "spec.image.tensor",
        f"has 2 values that are not finite; the first is {name} at [3, 1, 2]",
    )


async def test_pixels_too_large_for_the_type_of_the_model(zoo: Served) -> None:
    image = IMAGE.astype(np.float64)
    image[0, 2, 1] = 1e300

    await invalid(zoo, spec("colour", image), "spec.image.tensor", "the first is inf at [0, 2, 1]")


async def test_pixels_of_a_type_that_loses_their_values(zoo: Served) -> None:
    await invalid(
        zoo,
        spec("bytes", IMAGE),
        "spec.image.tensor.data_type",
        "is float32, which does not become the model's uint8",
    )
    await invalid(
        zoo,
        spec("bytes", BYTES.astype(np.int64) - 1),
        "spec.image.tensor",
        "has values that do not fit the model's uint8",
    )


async def test_an_image_that_is_not_there(zoo: Served) -> None:
    what = spec("colour", IMAGE)
    what.ClearField("image")
    await invalid(zoo, what, "spec.image", "is unset; set image.tensor or image.encoded")
    what.image.SetInParent()
    await invalid(zoo, what, "spec.image", "is unset; set image.tensor or image.encoded")


async def test_a_method_that_is_not_there(zoo: Served) -> None:
    what = spec("colour", IMAGE)
    what.ClearField("occlusion")
    await invalid(zoo, what, "spec.method", "set one of gradient, occlusion")


@pytest.mark.parametrize(
    ("method", "field", "said"),
    [
        (pb.Occlusion(), "patch", "is unset; give the rows and columns of the window"),
        (pb.Occlusion(patch=extent(7, 1)), "patch.rows", "is 7; it must be 1 to 6, the image's rows"),
        (pb.Occlusion(patch=extent(1, 9)), "patch.columns", "is 9; it must be 1 to 8, the image's columns"),
        (pb.Occlusion(patch=extent(2**32 - 1, 1)), "patch.rows", "is 4294967295; it must be 1 to 6"),
        (pb.Occlusion(patch=extent(0, 2)), "patch.rows", "is 0; it must be 1 to 6"),
        (pb.Occlusion(patch=extent(2, 0)), "patch.columns", "is 0; it must be 1 to 8"),
        (
            occlusion(2, 3),
            "stride.rows",
            "is 3; it must be 1 to 2, the patch, so that every pixel is covered",
        ),
        (pb.Occlusion(patch=extent(2, 2), stride=extent(2, 0)), "stride.columns", "is 0; it must be 1 to 2"),
        (pb.Occlusion(patch=extent(2, 2), stride=pb.Extent()), "stride.rows", "is 0; it must be 1 to 2"),
        (occlusion(edge=9), "edge", "is 9; this server knows EDGE_CLIP, EDGE_SHIFT"),
        (occlusion(window_score=9), "window_score", "is 9; this server knows WINDOW_SCORE_SIGNED"),
        (occlusion(resolution=9), "resolution", "knows RESOLUTION_PIXELS, RESOLUTION_WINDOWS"),
        (occlusion(order=-1), "order", "is -1; this server knows ORDER_RASTER, ORDER_PROGRESSIVE"),
        (
            occlusion(fill=pb.Fill(channels=pb.ChannelValues(values=[1, 2]))),
            "fill.channels",
            "has 2 values, but the image has 3 channels",
        ),
        (occlusion(fill=pb.Fill(channels=pb.ChannelValues())), "fill.channels", "has 0 values"),
        (occlusion(fill=pb.Fill(constant=np.nan)), "fill", "holds a value that is not finite"),
        (occlusion(fill=pb.Fill(constant=1e39)), "fill", "the model's image is float32"),
        (
            occlusion(fill=pb.Fill(blur=pb.Blur())),
            "fill.blur.sigma",
            "is 0; it must be above 0 and at most 100",
        ),
        (occlusion(fill=pb.Fill(blur=pb.Blur(sigma=-1))), "fill.blur.sigma", "is -1; it must be above 0"),
        (occlusion(fill=pb.Fill(blur=pb.Blur(sigma=np.nan))), "fill.blur.sigma", "is nan"),
        (occlusion(fill=pb.Fill(blur=pb.Blur(sigma=np.inf))), "fill.blur.sigma", "at most 100 pixels"),
        (
            occlusion(fill=pb.Fill(image=tensor(IMAGE[:5]))),
            "fill.image",
            "has the shape [5, 8, 3], but the image has [6, 8, 3]",
        ),
        (occlusion(fill=pb.Fill(image=Tensor())), "fill.image.data_type", "use one of DATA_TYPE_"),
        (
            occlusion(fill=pb.Fill(image=tensor(np.full(SHAPE, np.nan, np.float32)))),
            "fill",
            "holds a value that is not finite",
        ),
    ],
)
async def test_a_wrong_occlusion(zoo: Served, method: pb.Occlusion, field: str, said: str) -> None:
    await invalid(zoo, spec("colour", IMAGE, occlusion=method), f"spec.occlusion.{field}", said)


@pytest.mark.parametrize(
    "fill",
    [
        pb.Fill(constant=256),
        pb.Fill(constant=-1),
        pb.Fill(channels=pb.ChannelValues(values=[0, 0, 255.6])),
        pb.Fill(image=tensor(np.full(SHAPE, 300.0, np.float32))),
    ],
)
async def test_a_fill_that_the_type_of_the_image_cannot_hold(zoo: Served, fill: pb.Fill) -> None:
    what = spec("bytes", BYTES, occlusion=occlusion(fill=fill))

    await invalid(zoo, what, "spec.occlusion.fill", "but the model's image is uint8, from 0 to 255")


@pytest.mark.parametrize("reduction", ["MAX_ABS", "SUM_ABS", "L2", "UNSPECIFIED"])
async def test_a_sign_where_there_is_none(zoo: Served, reduction: str) -> None:
    number = pb.Gradient.ChannelReduction.Value(f"CHANNEL_REDUCTION_{reduction}")
    what = spec("colour", IMAGE, gradient=pb.Gradient(signed=True, channel_reduction=number))

    await invalid(zoo, what, "spec.gradient.signed", "use NONE, SUM or MEAN, or leave signed unset")


async def test_an_unknown_reduction(zoo: Served) -> None:
    what = spec("colour", IMAGE, gradient=pb.Gradient(channel_reduction=7))  # type: ignore[arg-type]  # the point
    await invalid(zoo, what, "spec.gradient.channel_reduction", "is 7; this server knows CHANNEL_REDUCTION_")


@pytest.mark.parametrize(
    ("targets", "field", "said"),
    [
        (indices(3), ".list.targets[0].index", "is 3; output 'scores' has the elements 0 to 2"),
        (indices(0, -1), ".list.targets[1].index", "is -1; output 'scores' has the elements 0 to 2"),
        (indices(2**63 - 1), ".list.targets[0].index", "has the elements 0 to 2"),
        (label("expresso"), ".list.targets[0].label", "did you mean 'espresso' or 'espresso maker'?"),
        (label("zebra fish"), ".list.targets[0].label", "does not have; GetModel lists the labels"),
        (label(""), ".list.targets[0].label", "GetModel lists the labels"),
        (pb.Targets(top_k=0), ".top_k", "is 0; output 'scores' has 3 elements, so 1 to 3 are possible"),
        (pb.Targets(top_k=4), ".top_k", "is 4; output 'scores' has 3 elements"),
        (pb.Targets(list=pb.TargetList()), ".list", "name at least one target, or leave targets unset"),
        (
            pb.Targets(list=pb.TargetList(targets=[pb.Target(index=1), pb.Target()])),
            ".list.targets[1]",
            "is empty; set its index or its label",
        ),
    ],
)
async def test_wrong_targets(zoo: Served, targets: pb.Targets, field: str, said: str) -> None:
    await invalid(zoo, spec("classifier", IMAGE, targets=targets), f"spec.targets{field}", said)


async def test_a_label_where_there_are_none(zoo: Served) -> None:
    what = spec("colour", IMAGE, targets=label("espresso"))
    await invalid(zoo, what, "spec.targets.list.targets[0].label", "has no label file: use an index")


async def test_an_element_set_twice_is_the_one_that_was_set_last(zoo: Served) -> None:
    """A oneof cannot hold both; whoever sets both sends the second."""
    both = pb.Target(index=0)
    both.label = LABELS[1]
    what = spec("classifier", IMAGE, targets=pb.Targets(list=pb.TargetList(targets=[both])))

    answer = await zoo.explanations.Explain(pb.ExplainRequest(spec=what))

    assert [(each.index, each.label) for each in answer.plan.targets] == [(1, "espresso")]


async def test_no_targets_for_a_regressor_with_many_outputs(zoo: Served) -> None:
    what = spec("many", picture(0, (2, 3, 1)), occlusion=occlusion(1))
    await invalid(zoo, what, "spec.targets", "has 65 elements, more than the 16", "name the targets")


@pytest.mark.parametrize(
    ("objective", "targets", "field", "said"),
    [
        (
            {"kind": "SQUARED_ERROR"},
            indices(0),
            "objective.values",
            "has 0 values; KIND_SQUARED_ERROR needs one",
        ),
        ({"kind": "SQUARED_ERROR", "values": [1, 2]}, indices(0), "objective.values", "has 2 values"),
        ({"kind": "SQUARED_ERROR", "values": [1, 2]}, indices(0, 1, 2), "objective.values", "each of the 3"),
        ({"kind": "SQUARED_ERROR", "values": [np.nan]}, indices(0), "objective.values", "not finite"),
        (
            {"kind": "OUTPUT", "values": [1]},
            indices(0),
            "objective.values",
            "only KIND_SQUARED_ERROR has values",
        ),
        ({"values": [1]}, indices(0), "objective.values", "only KIND_SQUARED_ERROR has values"),
        ({"kind": "CROSS_ENTROPY"}, indices(0, 1), "targets", "name exactly one target"),
        ({"kind": "CROSS_ENTROPY"}, pb.Targets(top_k=1), "targets", "name exactly one target"),
        ({"kind": "CROSS_ENTROPY"}, None, "targets", "name exactly one target"),
        ({"kind": "CROSS_ENTROPY", "values": [1]}, indices(0), "objective.values", "only KIND_SQUARED_ERROR"),
    ],
)
async def test_a_wrong_objective(
    zoo: Served, objective: dict[str, Any], targets: pb.Targets | None, field: str, said: str
) -> None:
    kind = pb.Objective.Kind.Value(f"KIND_{objective.get('kind', 'UNSPECIFIED')}")
    asked = pb.Objective(kind=kind, values=objective.get("values", []))

    await invalid(zoo, spec("classifier", IMAGE, objective=asked, targets=targets), f"spec.{field}", said)


async def test_an_unknown_objective(zoo: Served) -> None:
    what = spec("colour", IMAGE, objective=pb.Objective(kind=9))  # type: ignore[arg-type]  # the point
    await invalid(zoo, what, "spec.objective.kind", "is 9; this server knows KIND_OUTPUT, KIND_SQUARED_ERROR")


async def test_an_output_that_is_not_there_or_not_named(zoo: Served) -> None:
    age = {"age": tensor(np.zeros(2, np.float32))}
    what = spec("beside", GREY, inputs=age, output_name="smile")
    await invalid(
        zoo, what, "spec.output_name", "is 'smile'; model 'beside' has the outputs ['scores', 'mood']"
    )
    what.output_name = ""
    await invalid(zoo, what, "spec.output_name", "is unset", "name one of ['scores', 'mood']")


async def test_the_configured_output_is_explained_where_none_is_named(zoo: Served) -> None:
    age = {"age": tensor(np.zeros(2, np.float32))}
    what = spec("moody", GREY, inputs=age)

    assert (await zoo.explanations.Explain(pb.ExplainRequest(spec=what))).plan.output_name == "mood"
    what.output_name = "scores"
    assert (await zoo.explanations.Explain(pb.ExplainRequest(spec=what))).plan.output_name == "scores"


@pytest.mark.parametrize(
    ("inputs", "field", "said"),
    [
        ({}, "spec.inputs", "lacks ['age'], which model 'beside' needs beside the image"),
        (
            {"age": tensor(np.zeros(2, np.float32)), "size": Tensor()},
            "spec.inputs",
            "spec.inputs['size'] is not an input of model 'beside', which has the further inputs ['age']",
        ),
        (
            {"age": tensor(np.zeros(2, np.float32)), "image": Tensor()},
            "spec.inputs",
            "spec.inputs['image'] is not an input",
        ),
        (
            {"age": tensor(np.zeros(3, np.float32))},
            "spec.inputs['age'].shape",
            "is [3]; expected [2], without",
        ),
        (
            {"age": tensor(np.zeros((1, 2), np.float32))},
            "spec.inputs['age'].shape",
            "is [1, 2]; expected [2]",
        ),
        ({"age": Tensor(data_type=FP32, shape=[2], data=bytes(7))}, "spec.inputs['age'].data", "has 7 bytes"),
        ({"age": tensor(np.array([0, np.inf], np.float32))}, "spec.inputs['age']", "the first is inf at [1]"),
        ({"age": Tensor()}, "spec.inputs['age'].data_type", "use one of DATA_TYPE_"),
    ],
)
async def test_wrong_further_inputs(zoo: Served, inputs: dict[str, Tensor], field: str, said: str) -> None:
    await invalid(zoo, spec("beside", GREY, inputs=inputs, output_name="mood"), field, said)


async def test_a_further_input_where_there_are_none(zoo: Served) -> None:
    what = spec("colour", IMAGE, inputs={"age": Tensor()})
    await invalid(zoo, what, "spec.inputs", "model 'colour', which has no input but the image")


async def test_further_inputs_reach_the_model(zoo: Served) -> None:
    age = {"age": tensor(np.array([3, 4], np.int64))}
    what = spec("beside", GREY, inputs=age, output_name="mood")

    answer = await zoo.explanations.Explain(pb.ExplainRequest(spec=what))
    seen = zoo.offers["beside"].program(Kind.FORWARD).subjects[-1].inputs

    assert answer.plan.output_name == "mood"
    assert seen["age"].dtype == np.float32
    assert seen["age"].tolist() == [3, 4]
