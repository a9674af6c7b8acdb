"""Explanations for v2 clients: the same maps, bit for bit, whole or in tiles, and options refused by name."""

import io
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from google.protobuf.json_format import ParseDict
from numpy.typing import NDArray
from PIL import Image
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from fakes.models import Linear, weights
from fakes.serving import Gate, Offer, Served, served
from rpc.messages import extent, indices, occlusion, spec, tensor
from vitrail.v1 import explanation_pb2 as v1

from .models import LABELS, NO_IMAGE, SHAPE, pictures

pytestmark = pytest.mark.asyncio(loop_scope="module")

IMAGE = np.random.default_rng(5).random(SHAPE).astype(np.float32)


def given(name: str, array: NDArray[Any]) -> Any:
    made = triton.InferInput(name, array.shape, np_to_triton_dtype(array.dtype))
    return made.set_data_from_numpy(array)


PHOTO = [given("image", IMAGE[None])]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(zoo: Served) -> AsyncIterator[Any]:
    async with triton_aio.InferenceServerClient(zoo.target) as made:
        yield made


def options(**values: Any) -> dict[str, Any]:
    return {f"vitrail_{name}": value for name, value in values.items()}


async def refused(call: Any) -> InferenceServerException:
    with pytest.raises(InferenceServerException) as refusal:
        await call
    return refusal.value


def without_times(summary: v1.Summary) -> v1.Summary:
    for field in ("queue_seconds", "device_seconds", "total_seconds"):
        summary.ClearField(field)
    return summary


CASES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"method": "occlusion", "patch": 2}, {"occlusion": occlusion(patch=2)}),
    (
        {
            "method": "OCCLUSION",
            "patch": "3,2",
            "stride": "1, 2",
            "fill": "0.25,0.5,1",
            "edge": "SHIFT",
            "window_score": "absolute",
            "resolution": "WINDOWS",
            "order": "ORDER_PROGRESSIVE",
            "targets": "top:2",
        },
        {
            "occlusion": v1.Occlusion(
                patch=extent(3, 2),
                stride=extent(1, 2),
                fill=v1.Fill(channels=v1.ChannelValues(values=[0.25, 0.5, 1])),
                edge=v1.Occlusion.EDGE_SHIFT,
                window_score=v1.Occlusion.WINDOW_SCORE_ABSOLUTE,
                resolution=v1.Occlusion.RESOLUTION_WINDOWS,
                order=v1.Occlusion.ORDER_PROGRESSIVE,
            ),
            "targets": v1.Targets(top_k=2),
        },
    ),
    (
        {"method": "occlusion", "patch": 3, "fill": 0.5, "targets": "espresso, 0"},
        {
            "occlusion": v1.Occlusion(patch=extent(3, 3), fill=v1.Fill(constant=0.5)),
            "targets": v1.Targets(
                list=v1.TargetList(targets=[v1.Target(label="espresso"), v1.Target(index=0)])
            ),
        },
    ),
    (
        {"method": "occlusion", "patch": 3, "fill": "image_mean", "target": "espresso maker"},
        {
            "occlusion": v1.Occlusion(patch=extent(3, 3), fill=v1.Fill(image_mean=v1.ImageMean())),
            "targets": v1.Targets(list=v1.TargetList(targets=[v1.Target(label="espresso maker")])),
        },
    ),
    (
        {"method": "occlusion", "patch": 3, "fill": "BLUR:1.5", "objective": "CROSS_ENTROPY", "target": 1},
        {
            "occlusion": v1.Occlusion(patch=extent(3, 3), fill=v1.Fill(blur=v1.Blur(sigma=1.5))),
            "objective": v1.Objective(kind=v1.Objective.KIND_CROSS_ENTROPY),
            "targets": indices(1),
        },
    ),
    ({"method": "gradient"}, {"gradient": v1.Gradient()}),
    (
        {
            "method": "gradient",
            "signed": True,
            "times_input": "true",
            "channel_reduction": "NONE",
            "targets": "all",
            "objective": "squared_error",
            "values": "0.5,0.25,1",
        },
        {
            "gradient": v1.Gradient(
                signed=True, times_input=True, channel_reduction=v1.Gradient.CHANNEL_REDUCTION_NONE
            ),
            "targets": v1.Targets(all=v1.AllTargets()),
            "objective": v1.Objective(kind=v1.Objective.KIND_SQUARED_ERROR, values=[0.5, 0.25, 1]),
        },
    ),
    (
        {"method": "gradient", "output": "scores", "time_budget": 60, "target": 2},
        {"gradient": v1.Gradient(), "output_name": "scores", "targets": indices(2)},
    ),
]


@pytest.mark.parametrize("case", range(len(CASES)))
async def test_a_map_is_explain_s_bit_for_bit(client: Any, zoo: Served, case: int) -> None:
    asked, equal = CASES[case]
    expected = await zoo.explanations.Explain(v1.ExplainRequest(spec=spec("pictures", IMAGE, **equal)))

    result = await client.infer("pictures", PHOTO, parameters=options(**asked), request_id="m")

    values = result.as_numpy("map")
    assert values.tobytes() == expected.values
    assert list(values.shape) == list(expected.plan.map_shape)
    assert result.as_numpy("targets").tolist() == [each.index for each in expected.plan.targets]
    assert result.as_numpy("labels").tolist() == [each.label.encode() for each in expected.plan.targets]
    for name in ("output", "score"):
        found = result.as_numpy(f"{name}s")
        assert found.dtype == np.float32
        assert found.tolist() == [getattr(each, name) for each in expected.plan.targets]
    assert ParseDict(json.loads(result.as_numpy("plan")[0]), v1.Plan()) == expected.plan
    summary = ParseDict(json.loads(result.as_numpy("summary")[0]), v1.Summary())
    assert without_times(summary) == without_times(expected.summary)
    assert result.get_response().id == "m"
    assert result.get_response().model_version == "1"


@pytest.mark.parametrize("case", range(len(CASES)))
async def test_tiles_make_the_same_map(client: Any, case: int) -> None:
    asked, _ = CASES[case]
    whole = await client.infer("pictures", PHOTO, parameters=options(**asked))

    async def requests() -> AsyncIterator[dict[str, Any]]:
        wish = {"triton_enable_empty_final_response": True} if case else {}
        yield {
            "model_name": "pictures",
            "inputs": PHOTO,
            "parameters": {**options(**asked), **wish},
            "request_id": "t",
        }

    # tritonclient lets nobody ask for this parameter himself: its own argument does.
    async def asked_rightly() -> AsyncIterator[dict[str, Any]]:
        async for each in requests():
            each["parameters"].pop("triton_enable_empty_final_response", None)
            each["enable_empty_final_response"] = bool(case)
            yield each

    answers = [answer async for answer in client.stream_infer(asked_rightly())]

    assert [error for _, error in answers] == [None] * len(answers)
    results = [result for result, _ in answers]
    parameters = [result.get_response().parameters for result in results]
    events = [each["vitrail_event"].string_param for each in parameters]
    assert events == ["plan", *["tile"] * (len(events) - 2), "summary"]
    assert [each["triton_final_response"].bool_param for each in parameters] == [
        *[False] * (len(events) - 1), True
    ]  # fmt: skip
    assert {result.get_response().id for result in results} == {"t"}
    plan, *tiles, _ = results
    assert plan.as_numpy("plan")[0] == whole.as_numpy("plan")[0]
    values = np.full(plan.as_numpy("map_shape"), np.nan, np.float32)
    for tile in tiles:
        row, column, height, width = tile.as_numpy("rectangle").tolist()
        part = tile.as_numpy("tile")
        first = tile.get_response().parameters["vitrail_first_target"].int64_param
        values[first : first + len(part), row : row + height, column : column + width] = part
    assert values.tobytes() == whole.as_numpy("map").tobytes()
    assert tiles[-1].get_response().parameters["vitrail_final"].bool_param
    assert parameters[-1]["vitrail_complete"].bool_param


async def test_only_the_outputs_asked_for_come(client: Any) -> None:
    wanted = [triton.InferRequestedOutput(name) for name in ("scores", "map")]
    asked = options(method="gradient")

    result = await client.infer("pictures", PHOTO, outputs=wanted, parameters=asked)

    assert [each.name for each in result.get_response().outputs] == ["map", "scores"]
    for outputs, text in (
        (
            [triton.InferRequestedOutput("heat")],
            "unexpected output 'heat'; an explanation has map, targets, ",
        ),
        ([triton.InferRequestedOutput("map", class_count=1)], "output 'map' of an explanation takes no"),
        ([wanted[1], *wanted], "output 'map' already exists in request"),
    ):
        refusal = await refused(client.infer("pictures", PHOTO, outputs=outputs, parameters=asked))
        assert text in refusal.message()


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
async def test_a_photo_is_decoded_as_explain_does(client: Any, zoo: Served, form: str) -> None:
    file = io.BytesIO()
    Image.fromarray((IMAGE * 255).astype(np.uint8)).save(file, form)
    equal = spec("pictures", file.getvalue(), occlusion=occlusion(patch=2))
    expected = await zoo.explanations.Explain(v1.ExplainRequest(spec=equal))

    photo = [given("image", np.array([file.getvalue()], object))]
    result = await client.infer("pictures", photo, parameters=options(method="occlusion", patch=2))

    assert result.as_numpy("map").tobytes() == expected.values


async def test_a_tensor_may_be_of_any_type_that_explain_takes(client: Any, zoo: Served) -> None:
    whole = np.arange(np.prod(SHAPE), dtype=np.uint8).reshape(SHAPE)
    equal = spec("pictures", whole, gradient=v1.Gradient())
    expected = await zoo.explanations.Explain(v1.ExplainRequest(spec=equal))

    for array in (whole, whole[None], whole.astype(np.float64)):
        result = await client.infer(
            "pictures", [given("image", array)], parameters=options(method="gradient")
        )
        assert result.as_numpy("map").tobytes() == expected.values


async def test_further_inputs_come_with_a_batch_dimension_or_without(tmp_path: Path) -> None:
    from rpc.conftest import zoo_offers

    image, age = np.ones((6, 8, 1), np.float32), np.array([1, 2], np.float32)
    async with served(tmp_path, {"beside": zoo_offers()["beside"]}) as running:
        asked = spec("beside", image, occlusion=occlusion(), output_name="scores")
        asked.inputs["age"].CopyFrom(tensor(age))
        expected = await running.explanations.Explain(v1.ExplainRequest(spec=asked))
        async with triton_aio.InferenceServerClient(running.target) as client:
            for given_age in (age, age[None]):
                inputs = [given("image", image[None]), given("age", given_age)]
                result = await client.infer(
                    "beside", inputs, parameters=options(method="occlusion", patch=2, output="scores")
                )
                assert result.as_numpy("map").tobytes() == expected.values
            missing = await refused(client.infer("beside", inputs[1:], parameters=options(method="gradient")))
            assert (
                "model 'beside' needs its image: send the image as 'image', beside 'age'" in missing.message()
            )


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"patch": 2}, "vitrail_method is missing; set it to one of gradient, occlusion"),
    ({"method": "lime"}, "vitrail_method is 'lime'; set it to one of gradient, occlusion"),
    ({"method": "occlusion"}, "vitrail_patch is unset"),
    ({"method": "occlusion", "patch": 9}, "vitrail_patch is 9; it must be 1 to 6, the image's rows"),
    ({"method": "occlusion", "patch": "2x2"}, "vitrail_patch is '2x2'; give pixels, or rows and columns"),
    ({"method": "occlusion", "patch": "1,2,3"}, "vitrail_patch is '1,2,3'; give pixels"),
    ({"method": "occlusion", "patch": -1}, "vitrail_patch is '-1'; give pixels"),
    ({"method": "occlusion", "patch": 2, "stride": 3}, "vitrail_stride is 3; it must be 1 to 2, the patch"),
    ({"method": "occlusion", "patch": 2, "edge": "ROUND"}, "vitrail_edge is 'ROUND'; it must be one of "),
    ({"method": "occlusion", "patch": 2, "fill": "grey"}, "vitrail_fill is 'grey'; it must be a number, or "),
    ({"method": "occlusion", "patch": 2, "signed": True}, "vitrail_signed is an option of gradient, not of "),
    ({"method": "gradient", "patch": 2}, "vitrail_patch is an option of occlusion, not of gradient"),
    ({"method": "gradient", "colour": 2}, "vitrail_colour is no option; gradient has vitrail_channel_"),
    ({"method": "gradient", "signed": "maybe"}, "vitrail_signed is 'maybe'; it must be true or false"),
    ({"method": "gradient", "signed": True}, "vitrail_signed is true, but MAX_ABS has no sign"),
    ({"method": "gradient", "targets": "cat"}, "vitrail_targets is 'cat', which output 'scores' does not "),
    ({"method": "gradient", "target": 3}, "vitrail_targets is 3; output 'scores' has the elements 0 to 2"),
    ({"method": "gradient", "targets": "top:9"}, "vitrail_targets is 9; output 'scores' has 3 elements"),
    ({"method": "gradient", "target": ""}, "vitrail_target is empty; give an index or a label"),
    ({"method": "gradient", "targets": ""}, "vitrail_targets is empty; give indices or labels"),
    ({"method": "gradient", "objective": "LOSS"}, "vitrail_objective is 'LOSS'; it must be one of OUTPUT, "),
    ({"method": "gradient", "values": "1"}, "vitrail_values is set, but only SQUARED_ERROR has values"),
    ({"method": "gradient", "output": "x"}, "vitrail_output is 'x'; model 'pictures' has the outputs"),
    ({"method": "gradient", "time_budget": 0}, "vitrail_time_budget is 0; it must be seconds above 0"),
    ({"method": "gradient", "time_budget": "soon"}, "vitrail_time_budget is 'soon'; it must be a number"),
]  # fmt: skip


@pytest.mark.parametrize("case", range(len(REFUSED)))
async def test_a_wrong_option_is_refused_by_name(client: Any, zoo: Served, case: int) -> None:
    asked, text = REFUSED[case]

    refusal = await refused(client.infer("pictures", PHOTO, parameters=options(**asked), request_id="r"))

    assert refusal.status() == "StatusCode.INVALID_ARGUMENT"
    assert refusal.message().startswith(f"[request id: r] {text}")
    assert "spec." not in refusal.message()
    assert zoo.server._admission.in_flight == 0


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        ([given("picture", IMAGE)], "model 'pictures' has no input 'picture': send the image as 'image'"),
        ([], "model 'pictures' needs its image: send the image as 'image', beside nothing"),
        (PHOTO * 2, "an input of model 'pictures' is there twice"),
        (
            [given("image", np.array([b"", b""], object))],
            "is BYTES with 2 elements; send one JPEG or PNG file",
        ),
        (
            [given("image", np.array([b"a gif"], object))],
            "the image is neither a JPEG nor a PNG (5 bytes); other formats can be sent as a tensor",
        ),
        ([given("image", IMAGE * np.nan)], "] the image has 144 values that are not finite"),
        ([given("image", IMAGE[:5])], "the image's shape is [5, 8, 3]; model 'pictures' takes [6, 8, 3]"),
    ],
)
async def test_a_wrong_image_is_refused(client: Any, inputs: list[Any], text: str) -> None:
    refusal = await refused(client.infer("pictures", inputs, parameters=options(method="gradient")))

    assert refusal.status() == "StatusCode.INVALID_ARGUMENT"
    assert text in refusal.message()


async def test_what_cannot_be_explained_says_why(client: Any) -> None:
    inputs = [given("INPUT0", IMAGE)]
    refusal = await refused(client.infer("simple", inputs, parameters=options(method="gradient")))
    assert refusal.status() == "StatusCode.FAILED_PRECONDITION"
    assert refusal.message() == f"[request id: <id_unknown>] {NO_IMAGE}"
    unknown = await refused(client.infer("nothing", inputs, parameters=options(method="gradient")))
    assert unknown.status() == "StatusCode.NOT_FOUND"
    assert "Request for unknown model: 'nothing' is not found" in unknown.message()


async def test_versions_and_labels(tmp_path: Path) -> None:
    labels = 'parameters { key: "vitrail.version_labels" value { string_value: "stable=1" } }'
    config = f"version_policy {{ all {{}} }} {labels}"
    offer = Offer(model=Linear(weights(0, 1, SHAPE)), versions=(1, 2), config=config)
    async with (
        served(tmp_path, {"m": offer}) as running,
        triton_aio.InferenceServerClient(running.target) as client,
    ):
        for version, label, answers in (("", None, "2"), ("1", None, "1"), ("", "stable", "1")):
            asked = options(method="gradient", **({"version_label": label} if label else {}))
            result = await client.infer("m", PHOTO, model_version=version, parameters=asked)
            assert result.get_response().model_version == answers
        both = options(method="gradient", version_label="stable")
        refusal = await refused(client.infer("m", PHOTO, model_version="1", parameters=both))
        assert "give a model_version or vitrail_version_label, not both" in refusal.message()


async def test_a_stream_tells_errors_in_band_and_takes_no_outputs(client: Any) -> None:
    async def requests() -> AsyncIterator[dict[str, Any]]:
        wrong = options(method="occlusion", patch=9)
        right = options(method="gradient")
        yield {"model_name": "pictures", "inputs": PHOTO, "parameters": wrong, "request_id": "1"}
        outputs = [triton.InferRequestedOutput("map")]
        yield {"model_name": "pictures", "inputs": PHOTO, "parameters": right, "outputs": outputs}
        yield {"model_name": "pictures", "inputs": PHOTO, "parameters": right, "request_id": "3"}

    answers = [answer async for answer in client.stream_infer(requests())]

    errors = [error.message() for _, error in answers if error is not None]
    assert any(each.startswith("[request id: 1] vitrail_patch is 9") for each in errors)
    assert any("leave outputs out" in each for each in errors)
    assert len(errors) == 2
    # Explanations of a stream wait for nobody, so the errors may come at any place.
    last = [answer.get_response() for answer, _ in answers if answer is not None][-1]
    assert (last.id, last.parameters["triton_final_response"].bool_param) == ("3", True)


async def test_explanations_count_as_explanations(tmp_path: Path) -> None:
    gate = Gate()
    async with (
        served(tmp_path, {"pictures": pictures(gate)}) as running,
        triton_aio.InferenceServerClient(running.target) as client,
    ):
        await client.infer("pictures", PHOTO, parameters=options(method="occlusion", patch=2))
        await refused(client.infer("pictures", PHOTO, parameters=options(method="occlusion", patch=9)))
        scrape = await running.at_rest(2)
        of = {"model": "pictures", "version": "1"}
        assert scrape.value("vitrail_explanations_total", method="occlusion", outcome="complete", **of) == 1
        assert scrape.total("vitrail_explanations_total", outcome="invalid_argument") == 1
        assert scrape.total("vitrail_inferences_total") == 0


async def test_the_responses_of_a_stream_are_counted_by_their_place(tmp_path: Path) -> None:
    async with (
        served(tmp_path, {"pictures": pictures()}) as running,
        triton_aio.InferenceServerClient(running.target) as client,
    ):

        async def requests() -> AsyncIterator[dict[str, Any]]:
            for parameters in (options(method="gradient"), options(method="occlusion", patch=9)):
                yield {"model_name": "pictures", "inputs": PHOTO, "parameters": parameters}

        answers = [answer async for answer in client.stream_infer(requests())]
        (found,) = (await client.get_inference_statistics("pictures")).model_stats

    assert len(answers) == 4, "a plan, a tile, a summary and an error"
    counted = {place: (each.success.count, each.fail.count) for place, each in found.response_stats.items()}
    assert counted == {"0": (1, 1), "1": (1, 0), "2": (1, 0)}
    assert all(each.success.ns >= each.compute_output.ns for each in found.response_stats.values())
    assert (found.inference_count, found.inference_stats.success.count) == (0, 0)


def deep() -> Any:
    made = triton.InferInput("image", [1] * 5000, "FP32")
    made._raw_content = b"1234"
    return made


async def test_a_great_many_dimensions_are_refused(client: Any) -> None:
    refusal = await refused(client.infer("pictures", [deep()], parameters=options(method="gradient")))

    assert refusal.status() == "StatusCode.INVALID_ARGUMENT"
    assert (
        "input 'image' for model 'pictures' is 'FP32' of shape [1, 1, 1, 1, 1, 1, 1, 1]" in refusal.message()
    )


async def test_labels_have_names(client: Any) -> None:
    result = await client.infer("pictures", PHOTO, parameters=options(method="gradient", targets="all"))
    assert result.as_numpy("labels").tolist() == [each.encode() for each in LABELS]
