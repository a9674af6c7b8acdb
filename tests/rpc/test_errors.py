"""Every row of the contract's table of errors, over a real socket."""

import asyncio
import threading
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.duration_pb2 import Duration
from numpy.typing import NDArray

from fakes.models import Linear, picture, weights
from fakes.serving import Gate, Offer, Served, served
from vitrail.v1 import explanation_pb2 as pb
from vitrail.v1 import model_pb2
from vitrail.v1.tensor_pb2 import Tensor

from .conftest import NO_IMAGE, SHAPE
from .messages import MIB, indices, label, occlusion, refused, send_bytes, spec, whole

pytestmark = pytest.mark.asyncio(loop_scope="module")

IMAGE = picture(0, SHAPE)
GREY = picture(0, (6, 8, 1))
Code = grpc.StatusCode


async def test_a_wrong_request_is_invalid_and_names_its_field(zoo: Served) -> None:
    request = pb.ExplainRequest(spec=spec("colour", IMAGE, occlusion=occlusion(patch=9)))

    refusal = await refused(zoo.explanations.Explain(request))

    assert refusal.code is Code.INVALID_ARGUMENT
    assert refusal.field == "spec.occlusion.patch.rows"
    assert refusal.message == "spec.occlusion.patch.rows is 9; it must be 1 to 6, the image's rows"
    assert refusal.retry_delay is None


async def test_an_unknown_model_is_not_found_and_the_models_are_named(zoo: Served) -> None:
    for call in (
        zoo.explanations.Explain(pb.ExplainRequest(spec=spec("color", IMAGE))),
        zoo.models.GetModel(model_pb2.GetModelRequest(name="color")),
    ):
        refusal = await refused(call)

        assert refusal.code is Code.NOT_FOUND
        assert "'color'" in refusal.message
        assert all(f"'{name}'" in refusal.message for name in ("classifier", "colour", "grey"))


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ({"version": 2}, "has no version 2; versions available: 1, 7"),
        ({"version": 0}, "has no version 0; versions available: 1, 7"),
        ({"version": -1}, "has no version -1; versions available: 1, 7"),
    ],
)
async def test_an_unknown_version_is_not_found_and_those_served_are_named(
    zoo: Served, choice: dict[str, str | int], said: str
) -> None:
    request = pb.ExplainTilesRequest(spec=spec("colour", IMAGE, **choice))

    refusal = await refused(whole(zoo.explanations.ExplainTiles(request)))

    assert refusal.code is Code.NOT_FOUND
    assert said in refusal.message


@pytest.mark.parametrize("label", ["beta", ""])
async def test_an_unknown_label_is_a_wrong_request_and_those_there_are_named(zoo: Served, label: str) -> None:
    request = pb.ExplainTilesRequest(spec=spec("colour", IMAGE, version_label=label))

    refusal = await refused(whole(zoo.explanations.ExplainTiles(request)))

    assert refusal.code is Code.INVALID_ARGUMENT
    assert refusal.field == "spec.version_label"
    assert refusal.message == (
        f"model 'colour' has no version label '{label}'; its labels: 'stable' (version 1), 'canary' "
        "(version 7)"
    )


@pytest.mark.parametrize(
    ("choice", "version"),
    [({}, 7), ({"version": 1}, 1), ({"version_label": "stable"}, 1), ({"version_label": "canary"}, 7)],
)
async def test_the_version_asked_for_answers_and_the_highest_if_none_is(
    zoo: Served, choice: dict[str, str | int], version: int
) -> None:
    answer = await zoo.explanations.Explain(pb.ExplainRequest(spec=spec("colour", IMAGE, **choice)))

    assert answer.plan.model_version == version


async def test_a_version_being_loaded_is_unavailable_with_a_delay_for_the_next_try(tmp_path: Path) -> None:
    loading, let_load = threading.Event(), threading.Event()

    def wait() -> None:
        loading.set()
        let_load.wait()

    offers = {"slow": Offer(model=Linear(weights(0, 1, SHAPE)), on_load=wait)}
    async with served(tmp_path, offers, load=False) as running:
        request = pb.ExplainRequest(spec=spec("slow", IMAGE))
        unread = await refused(running.explanations.Explain(request))
        load = asyncio.create_task(running.server.load())
        await asyncio.to_thread(loading.wait)
        unloaded = await refused(running.explanations.Explain(request))
        request.spec.version = 1
        numbered = await refused(running.explanations.Explain(request))
        let_load.set()
        await load
        answer = await running.explanations.Explain(request)

    assert {unread.code, unloaded.code, numbered.code} == {Code.UNAVAILABLE}
    assert unread.message == "the model repository is still being read"
    assert unloaded.message == "model 'slow' has no available version: version 1 is at LOADING"
    assert numbered.message == "version 1 of model 'slow' is at LOADING"
    assert unread.retry_delay == unloaded.retry_delay == numbered.retry_delay == 1.0
    assert answer.plan.model_version == 1


async def test_a_version_being_unloaded_is_unavailable_with_a_delay(tmp_path: Path) -> None:
    gate = Gate(is_open=False)
    async with served(tmp_path, {"m": Offer(model=Linear(weights(0, 1, SHAPE)), gate=gate)}) as running:
        request = pb.ExplainRequest(spec=spec("m", IMAGE, version=1))
        first = asyncio.ensure_future(running.explanations.Explain(request))
        await gate.reached(1)
        unload = asyncio.create_task(running.server.manager.unload("m"))
        await asyncio.sleep(0)
        refusal = await refused(running.explanations.Explain(request))
        gate.open()

        assert (await first).summary.measured_fraction == 1  # the handle kept its version until the end
        await unload

    assert refusal.code is Code.UNAVAILABLE
    assert refusal.message == "version 1 of model 'm' is at UNLOADING"
    assert refusal.retry_delay == 1.0


async def test_a_broken_model_is_unavailable_with_its_reason_and_no_delay(zoo: Served) -> None:
    for name, reason in (
        ("unloadable", "the SavedModel has no signature; run scripts/models"),
        ("misconfigured", "config.pbtxt"),
    ):
        refusal = await refused(zoo.explanations.Explain(pb.ExplainRequest(spec=spec(name, IMAGE))))

        assert refusal.code is Code.UNAVAILABLE
        assert reason in refusal.message
        assert refusal.retry_delay is None


async def test_a_model_without_an_image_is_refused_with_the_reason(zoo: Served) -> None:
    image = np.zeros((2, 2, 1), np.float32)
    for method in ({"gradient": pb.Gradient()}, {"occlusion": occlusion(patch=1)}):
        request = pb.ExplainRequest(spec=spec("imageless", image, **method))

        refusal = await refused(zoo.explanations.Explain(request))

        assert refusal.code is Code.FAILED_PRECONDITION
        assert refusal.message == NO_IMAGE
        assert refusal.field == "spec.model_name"


async def test_a_method_that_the_model_cannot_do_is_a_failed_precondition_with_the_reason(
    zoo: Served,
) -> None:
    gradient = pb.ExplainRequest(spec=spec("incapable", GREY, gradient=pb.Gradient()))
    refusal = await refused(zoo.explanations.Explain(gradient))
    assert refusal.code is Code.FAILED_PRECONDITION
    assert refusal.message == "no gradient passes ArgMax: export the scores before it"
    assert refusal.field == "spec.gradient"

    refusal = await refused(zoo.explanations.Explain(pb.ExplainRequest(spec=spec("incapable", GREY))))
    assert refusal.code is Code.FAILED_PRECONDITION
    assert refusal.message == "answers depend on the other images of a batch"
    assert refusal.field == "spec.occlusion"


async def test_a_loss_of_probabilities_needs_probabilities(zoo: Served) -> None:
    objective = pb.Objective(kind=pb.Objective.KIND_CROSS_ENTROPY)
    what = spec("colour", IMAGE, targets=indices(0), objective=objective)

    refusal = await refused(zoo.explanations.Explain(pb.ExplainRequest(spec=what)))

    assert refusal.code is Code.FAILED_PRECONDITION
    assert refusal.field == "spec.objective.kind"
    assert "use KIND_OUTPUT" in refusal.message


async def test_too_many_explanations_are_refused_naming_the_limit(tmp_path: Path) -> None:
    gate = Gate(is_open=False)
    offers = {"m": Offer(model=Linear(weights(0, 1, SHAPE)), gate=gate)}
    async with served(tmp_path, offers, max_explanations=2) as running:
        request = pb.ExplainRequest(spec=spec("m", IMAGE))
        running_ones = [asyncio.ensure_future(running.explanations.Explain(request)) for _ in range(2)]
        await gate.reached(1)
        # Every attempt is refused at once, while the two that were admitted are not answered yet.
        refusal = await refused(running.explanations.Explain(request))
        gate.open()
        await asyncio.gather(*running_ones)
        await running.explanations.Explain(request)
        scrape = await running.at_rest(4)

    assert refusal.code is Code.RESOURCE_EXHAUSTED
    assert refusal.message == (
        "2 explanations are in flight, the most this server takes (--max-explanations): try again when some "
        "have ended"
    )
    assert refusal.retry_delay == 1.0
    assert scrape.total("vitrail_explanations_total", outcome="resource_exhausted") == 1
    assert scrape.total("vitrail_explanations_total", outcome="complete") == 3


async def test_more_targets_than_allowed_are_refused_naming_the_limit(zoo: Served) -> None:
    for targets in (pb.Targets(all=pb.AllTargets()), pb.Targets(top_k=65), indices(*range(65))):
        what = spec("many", picture(0, (2, 3, 1)), targets=targets, gradient=pb.Gradient())

        refusal = await refused(zoo.explanations.Explain(pb.ExplainRequest(spec=what)))

        assert refusal.code is Code.RESOURCE_EXHAUSTED
        assert refusal.message.startswith("65 targets are asked for; at most 64 are allowed")
        assert refusal.field == "spec.targets"


async def test_a_list_of_millions_of_targets_is_not_looked_at(zoo: Served) -> None:
    targets = pb.Targets(list=pb.TargetList(targets=[pb.Target()] * 1_000_000))
    what = spec("many", picture(0, (2, 3, 1)), targets=targets)

    refusal = await refused(zoo.explanations.Explain(pb.ExplainRequest(spec=what)))

    assert refusal.code is Code.RESOURCE_EXHAUSTED  # and not that the first one of them is empty
    assert refusal.message.startswith("1000000 targets are asked for; at most 64 are allowed")


async def test_a_grid_over_the_limit_is_refused_before_anything_is_computed(zoo: Served) -> None:
    image = np.zeros((4096, 4096, 1), np.uint8)
    what = spec("huge", image, occlusion=occlusion(patch=1))

    refusal = await refused(zoo.explanations.Explain(pb.ExplainRequest(spec=what)))

    assert refusal.code is Code.RESOURCE_EXHAUSTED
    assert refusal.message.startswith("16777216 windows times 1 targets are 16777216 scores; at most 2000000")
    assert refusal.field == "spec.occlusion.stride"


async def test_a_map_over_a_mebibyte_is_refused_by_explain_which_names_explain_tiles(zoo: Served) -> None:
    image = np.ones((512, 513, 1), np.float32)
    what = spec("large", image, occlusion=occlusion(patch=256))

    refusal = await refused(zoo.explanations.Explain(pb.ExplainRequest(spec=what)))
    streamed = await whole(zoo.explanations.ExplainTiles(pb.ExplainTilesRequest(spec=what)))
    what.occlusion.resolution = pb.Occlusion.RESOLUTION_WINDOWS
    small = await zoo.explanations.Explain(pb.ExplainRequest(spec=what))

    assert refusal.code is Code.RESOURCE_EXHAUSTED
    size = 512 * 513 * 4
    assert refusal.message.startswith(f"the map has {size} bytes, and one reply holds at most {MIB}: ")
    assert "stream it (ExplainTiles, " in refusal.message
    assert streamed.values.shape == (1, 512, 513)
    assert list(small.plan.map_shape) == [1, 2, 3]


async def test_a_message_over_the_limit_is_refused(tmp_path: Path) -> None:
    offers = {"m": Offer(model=Linear(weights(0, 1, SHAPE)))}
    async with served(tmp_path, offers, max_message_bytes=1000) as running:
        what = spec("m", IMAGE)
        what.image.tensor.data += bytes(1000)
        unary = await refused(running.explanations.Explain(pb.ExplainRequest(spec=what)))
        tiles = await refused(whole(running.explanations.ExplainTiles(pb.ExplainTilesRequest(spec=what))))
        answer = await running.explanations.Explain(pb.ExplainRequest(spec=spec("m", IMAGE)))

    for refusal in (unary, tiles):
        assert refusal.code is Code.RESOURCE_EXHAUSTED
        assert "1000" in refusal.message
    assert answer.summary.measured_fraction == 1


async def test_a_deadline_that_passes_is_deadline_exceeded(tmp_path: Path) -> None:
    gate = Gate(is_open=False)
    async with served(tmp_path, {"m": Offer(model=Linear(weights(0, 1, SHAPE)), gate=gate)}) as running:
        call = running.explanations.Explain(pb.ExplainRequest(spec=spec("m", IMAGE)), timeout=0.2)
        refusal = await refused(call)
        scrape = await running.at_rest(1)
        gate.open()

    assert refusal.code is Code.DEADLINE_EXCEEDED
    assert scrape.total("vitrail_explanations_total", outcome="deadline_exceeded") == 1


async def test_a_time_budget_that_allows_no_batch_is_deadline_exceeded_and_names_its_field(
    zoo: Served,
) -> None:
    what = spec("colour", IMAGE, time_budget=Duration(nanos=1))

    refusal = await refused(zoo.explanations.Explain(pb.ExplainRequest(spec=what)))

    assert refusal.code is Code.DEADLINE_EXCEEDED
    assert refusal.field == "spec.time_budget"
    assert refusal.message.endswith("allow more time")


@pytest.mark.parametrize("seconds", [0, -1])
async def test_a_time_budget_that_is_no_time_is_invalid(zoo: Served, seconds: int) -> None:
    what = spec("colour", IMAGE, time_budget=Duration(seconds=seconds))

    refusal = await refused(zoo.explanations.Explain(pb.ExplainRequest(spec=what)))

    assert refusal.code is Code.INVALID_ARGUMENT
    assert refusal.field == "spec.time_budget"


@pytest.mark.parametrize(
    "path",
    [
        "/vitrail.v1.ExplanationService/Explode",
        "/vitrail.v1.NoService/Explain",
        "/inference.GRPCInferenceService/ModelExplain",
        "/x",
    ],
)
async def test_an_unknown_rpc_is_unimplemented(zoo: Served, path: str) -> None:
    refusal = await refused(send_bytes(zoo.channel, path))

    assert refusal.code is Code.UNIMPLEMENTED


async def test_an_unknown_method_is_refused_naming_those_served(zoo: Served) -> None:
    what = spec("colour", IMAGE)
    what.ClearField("occlusion")
    from_the_future = what.SerializeToString() + bytes([(99 << 3 | 2) & 0x7F | 0x80, 99 << 3 >> 7, 0])

    request = pb.ExplainRequest(spec=pb.ExplanationSpec.FromString(from_the_future))
    refusal = await refused(zoo.explanations.Explain(request))

    assert refusal.code is Code.INVALID_ARGUMENT
    assert refusal.field == "spec.method"
    assert refusal.message.endswith("set one of gradient, occlusion")


async def test_a_model_that_fails_while_it_computes_is_internal_in_one_line(tmp_path: Path) -> None:
    class Fragile(Linear):
        def outputs(self, image: NDArray[np.float64]) -> NDArray[np.float64]:
            raise ValueError("matmul failed\n  at secret/path.cc:12")

    async with served(tmp_path, {"m": Offer(model=Fragile(weights(0, 1, SHAPE)))}) as running:
        refusal = await refused(running.explanations.Explain(pb.ExplainRequest(spec=spec("m", IMAGE))))
        await running.at_rest(1)

    assert refusal.code is Code.INTERNAL
    assert refusal.message == "the model failed while it computed: ValueError: matmul failed"


async def test_an_unexpected_fault_is_internal_and_tells_nothing(
    zoo: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr(zoo.offers["grey"].servables[1], "program", fail)
    request = pb.ExplainRequest(spec=spec("grey", GREY))

    refusal = await refused(zoo.explanations.Explain(request))

    assert refusal.code is Code.INTERNAL
    assert refusal.message == "the server failed while it answered; its log says why"
    assert refusal.reason == "INTERNAL"


@pytest.mark.parametrize("rpc", ["Explain", "ExplainTiles", "ExplainStream"])
@pytest.mark.parametrize("data", [b"\xff\xff\xff", b"\x0a\x04\x0a\x02\xff\xff", b"\x0a\x7f"])
async def test_bytes_that_are_no_message_are_invalid(zoo: Served, rpc: str, data: bytes) -> None:
    """Nonsense; a name (of a model, or an id) that is not UTF-8; a message that ends too early."""
    if rpc == "ExplainStream" and data[1] == 4:
        data = data[2:]
    path = f"/vitrail.v1.ExplanationService/{rpc}"
    if rpc == "ExplainStream":
        call: Any = zoo.channel.stream_stream(path)()
        await call.write(data)
        refusal = await refused(call.read())
    else:
        refusal = await refused(send_bytes(zoo.channel, path, data))

    assert refusal.code is Code.INVALID_ARGUMENT
    assert f"vitrail.v1.{rpc}Request" in refusal.message


async def test_what_a_message_repeats_of_a_request_is_short_and_printable(zoo: Served) -> None:
    name = "\x00\n" + "é" * 100_000
    requests = [
        spec(name, IMAGE),
        spec("colour", IMAGE, version_label=name),
        spec("colour", IMAGE, output_name=name),
        spec("classifier", IMAGE, targets=label(name)),
        spec("colour", IMAGE, targets=label(name)),
        spec("colour", IMAGE, inputs={name: Tensor()}),
        spec("colour", IMAGE, inputs={f"{name}{i}": Tensor() for i in range(3)}),
    ]
    for what in requests:
        refusal = await refused(zoo.explanations.Explain(pb.ExplainRequest(spec=what)))

        assert refusal.code in (Code.INVALID_ARGUMENT, Code.NOT_FOUND), refusal
        assert len(refusal.message) < 1000
        assert refusal.message.isprintable()
        assert len(refusal.field) < 200
