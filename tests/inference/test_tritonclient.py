"""Triton's own client, unmodified, against every rpc: synchronous, asynchronous and streaming."""

import asyncio
import queue
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import ml_dtypes
import numpy as np
import pytest
import pytest_asyncio
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from fakes.serving import Gate, Served, served

from .models import LABELS, PICTURES, SHAPE, pictures, simple

pytestmark = pytest.mark.asyncio(loop_scope="module")

A, B = np.arange(32, dtype=np.int32).reshape(2, 16), np.full((2, 16), 3, np.int32)


def given(name: str, array: NDArray[Any]) -> Any:
    tensor = triton.InferInput(name, array.shape, np_to_triton_dtype(array.dtype))
    return tensor.set_data_from_numpy(array)


INPUTS = [given("INPUT0", A), given("INPUT1", B)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(zoo: Served) -> AsyncIterator[Any]:
    async with triton_aio.InferenceServerClient(zoo.target) as made:
        yield made


async def refused(call: Any) -> InferenceServerException:
    with pytest.raises(InferenceServerException) as refusal:
        await call
    return refusal.value


async def test_server_and_models_are_live_and_ready(client: Any) -> None:
    assert await client.is_server_live()
    assert await client.is_server_ready()
    assert await client.is_model_ready("simple")
    assert await client.is_model_ready("versions", "1")
    assert not await client.is_model_ready("versions", "2")
    assert not await client.is_model_ready("nothing")
    assert not await client.is_model_ready("broken")
    refusal = await refused(client.is_model_ready("simple", "x"))
    assert refusal.status() == "StatusCode.INVALID_ARGUMENT"


async def test_a_server_that_has_not_loaded_is_live_and_not_ready(tmp_path: Path) -> None:
    async with (
        served(tmp_path, {"simple": simple()}, load=False) as running,
        triton_aio.InferenceServerClient(running.target) as client,
    ):
        assert await client.is_server_live()
        assert not await client.is_server_ready()
        assert not await client.is_model_ready("simple")
        await running.server.load()
        assert await client.is_server_ready()


async def test_the_server_says_what_it_is(client: Any) -> None:
    metadata = await client.get_server_metadata(as_json=True)

    assert metadata["name"] == "vitrail"
    assert metadata["version"].startswith("0.")
    assert metadata["extensions"] == [
        "classification",
        "model_repository",
        "model_repository(unload_dependents)",
        "schedule_policy",
        "model_configuration",
        "binary_tensor_data",
        "parameters",
        "statistics",
        "logging",
        "vitrail_explanations",
    ]


async def test_a_model_says_what_it_expects(client: Any) -> None:
    metadata = await client.get_model_metadata("versions", as_json=True)
    sixteen = {"datatype": "INT32", "shape": ["-1", "16"]}

    assert metadata == {
        "name": "versions",
        "versions": ["1", "3"],
        "platform": "tensorflow_savedmodel",
        "inputs": [{"name": "INPUT0", **sixteen}, {"name": "INPUT1", **sixteen}],
        "outputs": [{"name": "OUTPUT0", **sixteen}, {"name": "OUTPUT1", **sixteen}],
    }
    assert (await client.get_model_metadata("versions", "1", as_json=True))["versions"] == ["1"]
    for name, version, text in (
        ("nothing", "", "Request for unknown model: 'nothing' is not found"),
        ("versions", "2", "Request for unknown model: 'versions' version 2 is not found"),
    ):
        refusal = await refused(client.get_model_metadata(name, version))
        assert (refusal.status(), refusal.message()) == ("StatusCode.NOT_FOUND", text)


async def test_a_model_s_configuration_is_complete(client: Any) -> None:
    config = (await client.get_model_config("simple", as_json=True))["config"]

    assert config["name"] == "simple"
    assert config["max_batch_size"] == 8
    assert [each["name"] for each in config["input"]] == ["INPUT0", "INPUT1"]
    assert config["output"][0] == {"name": "OUTPUT0", "data_type": "TYPE_INT32", "dims": ["16"]}
    assert (await refused(client.get_model_config("nothing"))).status() == "StatusCode.NOT_FOUND"


async def test_the_repository_is_listed(client: Any) -> None:
    index = await client.get_model_repository_index(as_json=True)
    listed = {(each["name"], each.get("version", "")): each for each in index["models"]}

    assert listed["simple", "1"] == {"name": "simple", "version": "1", "state": "READY"}
    assert listed["broken", "1"]["state"] == "UNAVAILABLE"
    assert "no signature" in listed["broken", "1"]["reason"]


async def test_sums_and_differences(client: Any) -> None:
    result = await client.infer("simple", INPUTS, request_id="7")

    np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), A + B)
    np.testing.assert_array_equal(result.as_numpy("OUTPUT1"), A - B)
    assert result.get_response().id == "7"


@pytest.mark.parametrize(
    ("model", "values"),
    [
        ("strings", np.array([[b"a\x00b", b"", "\u00e9".encode()]], object)),
        ("halves", np.array([[1.5, np.inf]], ml_dtypes.bfloat16)),
        ("shorts", np.array([[np.nan, -np.inf]], np.float16)),
        ("flags", np.array([[True, False, True]])),
        ("bytes", np.array([[0, 7, 255]], np.uint8)),
        ("anything", np.zeros((1, 0, 3), np.float32)),
        ("anything", np.array([-0.0, np.nan], np.float32)),
    ],
)
async def test_every_type_survives_the_way(client: Any, model: str, values: NDArray[Any]) -> None:
    result = (await client.infer(model, [given("IN", values)])).as_numpy("OUT_IN")

    assert (result.dtype, result.shape) == (values.dtype, values.shape)
    assert result.tolist() == values.tolist() or result.tobytes() == values.tobytes()


async def test_classes(client: Any) -> None:
    values = np.array([[0.5, 2, 0.5, -1], [0, 0, np.nan, 7]], np.float32)
    wanted = [triton.InferRequestedOutput("OUT_IN", class_count=3)]

    result = await client.infer("logits", [given("IN", values)], outputs=wanted)

    assert result.as_numpy("OUT_IN").tolist() == [
        [b"2.000000:1:b", b"0.500000:0:a", b"0.500000:2:c"],
        [b"7.000000:3:d", b"0.000000:0:a", b"0.000000:1:b"],
    ]
    many = [triton.InferRequestedOutput("OUTPUT0", class_count=99)]
    whole = (await client.infer("simple", INPUTS, outputs=many)).as_numpy("OUTPUT0")
    assert whole.shape == (2, 16)
    assert whole[0, :2].tolist() == [b"18:15", b"17:14"]


async def test_an_image_model_predicts_and_classifies(client: Any, zoo: Served) -> None:
    images = np.random.default_rng(1).random((3, *SHAPE)).astype(np.float32)
    expected = [PICTURES.outputs(image.astype(np.float64)) for image in images]

    scores = (await client.infer("pictures", [given("image", images)])).as_numpy("scores")
    wanted = [triton.InferRequestedOutput("scores", class_count=1)]
    classes = (await client.infer("pictures", [given("image", images)], outputs=wanted)).as_numpy("scores")

    np.testing.assert_allclose(scores, expected, rtol=1e-6)
    for text, row in zip(classes[:, 0], scores, strict=True):
        best = int(row.argmax())
        assert text.decode() == f"{row[best]:f}:{best}:{LABELS[best]}"


async def test_the_statistics_add_up(tmp_path: Path) -> None:
    async with served(tmp_path, {"simple": simple()}) as running:
        async with triton_aio.InferenceServerClient(running.target) as client:
            for _ in range(3):
                await client.infer("simple", INPUTS)
            with pytest.raises(InferenceServerException):
                await client.infer("simple", INPUTS[:1])
            (found,) = (await client.get_inference_statistics("simple")).model_stats

            assert (found.name, found.version) == ("simple", "1")
            assert (found.inference_count, found.execution_count) == (6, 3)
            assert [(each.batch_size, each.compute_infer.count) for each in found.batch_stats] == [(2, 3)]
            stats = found.inference_stats
            assert (stats.success.count, stats.fail.count) == (3, 1)
            for column in (stats.queue, stats.compute_input, stats.compute_infer, stats.compute_output):
                assert column.count == 3
            parts = stats.queue.ns + stats.compute_input.ns + stats.compute_infer.ns + stats.compute_output.ns
            assert 0 < parts <= stats.success.ns
            assert found.last_inference > 1_500_000_000_000
            every = (await client.get_inference_statistics()).model_stats
            assert [each.name for each in every] == ["simple"]
            assert (
                await refused(client.get_inference_statistics("nothing"))
            ).status() == "StatusCode.NOT_FOUND"
            missing = await refused(client.get_inference_statistics("simple", "9"))
            assert missing.message() == "requested model version is not available for model 'simple'"
        scrape = await running.scrape()
        assert scrape.value("vitrail_inferences_total", model="simple", version="1", outcome="complete") == 3
        assert scrape.total("vitrail_inferences_total", outcome="invalid_argument") == 1
        assert scrape.value("vitrail_inference_rows_total", model="simple", version="1") == 6
        assert scrape.value("vitrail_inferences_in_flight") == 0


async def test_the_repository_is_changed_in_explicit_mode_only(tmp_path: Path) -> None:
    async with (
        served(tmp_path, {"simple": simple()}, model_control_mode="none", load_model=()) as running,
        triton_aio.InferenceServerClient(running.target) as client,
    ):
        for call in (client.load_model, client.unload_model):
            refusal = await refused(call("simple"))
            assert refusal.status() == "StatusCode.UNAVAILABLE"
            assert "explicit model load / unload is not allowed" in refusal.message()


async def test_models_are_loaded_and_unloaded(tmp_path: Path) -> None:
    offered = {"simple": simple(versions=(1, 2))}
    async with (
        served(tmp_path, offered, load_model=()) as running,
        triton_aio.InferenceServerClient(running.target) as client,
    ):
        assert (await client.get_model_repository_index(as_json=True))["models"] == [{"name": "simple"}]
        assert not await client.is_model_ready("simple")
        await client.load_model("simple")
        assert (await client.infer("simple", INPUTS)).get_response().model_version == "2"
        await client.load_model("simple", config='{"version_policy": {"specific": {"versions": [1]}}}')
        assert (await client.infer("simple", INPUTS)).get_response().model_version == "1"
        await client.unload_model("simple", unload_dependents=True)
        assert not await client.is_model_ready("simple")
        await client.unload_model("nothing")
        refusal = await refused(client.load_model("nothing"))
        assert "failed to load 'nothing', failed to poll from model repository" in refusal.message()


async def test_the_log_can_be_turned_up_and_down(client: Any, restored_log: None) -> None:
    before = (await client.get_log_settings(as_json=True))["settings"]
    assert set(before) == {
        "log_file", "log_info", "log_warning", "log_error", "log_verbose_level", "log_format"
    }  # fmt: skip
    await client.update_log_settings({"log_info": True, "log_format": "json"})
    changed = (await client.update_log_settings({"log_verbose_level": 1}, as_json=True))["settings"]
    assert changed["log_verbose_level"] == {"uint32_param": 1}
    assert changed["log_format"] == {"string_param": "json"}


async def test_what_the_server_has_not_is_refused_by_name(client: Any) -> None:
    calls: list[tuple[Any, str]] = [
        (client.get_trace_settings(), "TraceSetting: this server traces nothing"),
        (client.update_trace_settings("simple", {"trace_level": ["TIMESTAMPS"]}), "TraceSetting: "),
        (client.get_system_shared_memory_status(), "SystemSharedMemoryStatus: this server shares no memory"),
        (client.register_system_shared_memory("r", "k", 8), "SystemSharedMemoryRegister: "),
        (client.unregister_system_shared_memory("r"), "SystemSharedMemoryUnregister: "),
        (client.get_cuda_shared_memory_status(), "CudaSharedMemoryStatus: "),
        (client.register_cuda_shared_memory("r", b"aGFuZGxl", 0, 8), "CudaSharedMemoryRegister: "),
        (client.unregister_cuda_shared_memory("r"), "CudaSharedMemoryUnregister: "),
    ]
    for call, text in calls:
        refusal = await refused(call)
        assert refusal.status() == "StatusCode.UNIMPLEMENTED"
        assert refusal.message().startswith(text)


async def test_a_client_s_timeout_and_a_cancelled_call_drop_the_queued_rows(tmp_path: Path) -> None:
    gate = Gate(is_open=False)
    async with served(tmp_path, {"simple": simple(gate)}) as running:
        async with triton_aio.InferenceServerClient(running.target) as client:
            blocker = asyncio.create_task(client.infer("simple", INPUTS))
            await gate.reached(1)
            late = await refused(client.infer("simple", INPUTS, client_timeout=0.2))
            assert late.status() == "StatusCode.DEADLINE_EXCEEDED"
            waiting = asyncio.create_task(client.infer("simple", INPUTS))
            await running.metrics.until(lambda: running.metrics.received["ModelInfer"] == 3)
            waiting.cancel()
            await running.metrics.until(lambda: len(running.metrics.handled) == 2)
            assert running.server._admission.inferences == 1
            gate.open()
            await blocker
        (servable,) = running.offers["simple"].servables.values()
        assert servable.batches == [2], "only the first request was computed"
        scrape = await running.scrape()
        for outcome in ("complete", "deadline_exceeded", "cancelled"):
            assert scrape.value("vitrail_inferences_total", model="simple", version="1", outcome=outcome) == 1


async def test_a_version_is_kept_while_rows_of_a_cancelled_call_are_computed(tmp_path: Path) -> None:
    gate = Gate(is_open=False)
    async with served(tmp_path, {"simple": simple(gate)}) as running:
        (servable,) = running.offers["simple"].servables.values()
        async with triton_aio.InferenceServerClient(running.target) as client:
            computed = asyncio.create_task(client.infer("simple", INPUTS))
            await gate.reached(1)
            computed.cancel()
            await running.metrics.until(lambda: len(running.metrics.handled) == 1)
            gone = asyncio.create_task(running.server.manager.unload("simple"))
            assert await client.is_server_live()
            await running.server.manager.index()  # comes after the closing, on the same lane
            assert (servable.closed, gone.done()) == (0, False), "the device uses it"
            gate.open()
            await gone
        assert servable.closed == 1
        assert running.server._admission.inferences == 0


class TestSynchronous:
    """The client of threads; it blocks, so it runs beside the loop."""

    async def run(self, zoo: Served, use: Callable[[Any], Any]) -> Any:
        def connected() -> Any:
            with triton.InferenceServerClient(zoo.target) as client:
                return use(client)

        return await asyncio.to_thread(connected)

    async def test_it_infers(self, zoo: Served) -> None:
        result = await self.run(zoo, lambda client: client.infer("simple", INPUTS, request_id="s"))
        np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), A + B)

    async def test_it_infers_asynchronously(self, zoo: Served) -> None:
        def use(client: Any) -> Any:
            results: queue.Queue[Any] = queue.Queue()
            for _ in range(5):
                client.async_infer("simple", INPUTS, lambda result, error: results.put((result, error)))
            return [results.get(timeout=30) for _ in range(5)]

        for result, error in await self.run(zoo, use):
            assert error is None
            np.testing.assert_array_equal(result.as_numpy("OUTPUT1"), A - B)

    async def test_it_asks_everything_else(self, zoo: Served) -> None:
        def use(client: Any) -> None:
            assert client.is_server_live()
            assert client.is_server_ready()
            assert client.is_model_ready("simple")
            assert not client.is_model_ready("nothing")
            assert client.get_server_metadata().name == "vitrail"
            assert client.get_model_metadata("simple").name == "simple"
            assert client.get_model_config("simple").config.name == "simple"
            assert client.get_inference_statistics("simple").model_stats[0].name == "simple"
            assert client.get_model_repository_index().models
            assert client.get_log_settings().settings

        await self.run(zoo, use)

    async def test_it_streams_answers_in_the_order_of_the_requests(self, zoo: Served) -> None:
        def use(client: Any) -> list[tuple[Any, Any]]:
            results: queue.Queue[tuple[Any, Any]] = queue.Queue()
            client.start_stream(lambda result, error: results.put((result, error)))
            for name in range(20):
                # Those that are refused are ready at once, and wait for their turn all the same.
                inputs = INPUTS if name % 3 else INPUTS[:1]
                client.async_stream_infer("simple", inputs, request_id=str(name))
            found = [results.get(timeout=30) for _ in range(20)]
            client.stop_stream()
            return found

        found = await self.run(zoo, use)
        for name, (result, error) in enumerate(found):
            if name % 3 == 0:
                assert error.message().startswith(f"[request id: {name}] expected 2 inputs but got 1")
                continue
            assert result.get_response().id == str(name)
            assert result.get_response().parameters["triton_final_response"].bool_param
            np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), A + B)


async def test_an_error_of_a_stream_is_told_in_band_and_the_stream_goes_on(client: Any) -> None:
    async def requests() -> AsyncIterator[dict[str, Any]]:
        yield {"model_name": "simple", "inputs": INPUTS, "request_id": "1"}
        yield {"model_name": "nothing", "inputs": INPUTS, "request_id": "2"}
        yield {"model_name": "simple", "inputs": INPUTS[:1], "request_id": "3"}
        yield {"model_name": "simple", "inputs": INPUTS, "request_id": "4"}

    answers = [answer async for answer in client.stream_infer(requests())]

    texts = [error.message() if error else "" for _, error in answers]
    assert texts[0] == texts[3] == ""
    assert texts[1] == "[request id: 2] Request for unknown model: 'nothing' is not found"
    assert texts[2].startswith("[request id: 3] expected 2 inputs but got 1 inputs")
    assert answers[1][1].status() is None
    np.testing.assert_array_equal(answers[3][0].as_numpy("OUTPUT0"), A + B)


async def test_an_error_of_a_stream_ends_it_where_the_client_wants_that(client: Any) -> None:
    async def requests() -> AsyncIterator[dict[str, Any]]:
        yield {"model_name": "nothing", "inputs": INPUTS, "request_id": "2"}
        await asyncio.Event().wait()

    headers = {"triton_grpc_error": "true"}
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await anext(aiter(client.stream_infer(requests(), headers=headers)))

    assert refusal.value.code() is grpc.StatusCode.NOT_FOUND
    assert refusal.value.details() == "[request id: 2] Request for unknown model: 'nothing' is not found"


async def test_the_response_that_a_client_gave_up_counts_as_cancelled(tmp_path: Path) -> None:
    gate = Gate(is_open=False)

    async def requests() -> AsyncIterator[dict[str, Any]]:
        image = given("image", np.zeros((1, *SHAPE), np.float32))
        options = {"vitrail_method": "occlusion", "vitrail_patch": 1}
        yield {"model_name": "pictures", "inputs": [image], "parameters": options}
        await asyncio.Event().wait()

    async with (
        served(tmp_path, {"pictures": pictures(gate)}) as running,
        triton_aio.InferenceServerClient(running.target) as client,
    ):
        reader = asyncio.create_task(anext(aiter(client.stream_infer(requests()))))
        await gate.reached(1)
        reader.cancel()
        await running.metrics.until(lambda: ("ModelStreamInfer", "CANCELLED") in running.metrics.handled)
        gate.open()
        statistics = await client.get_inference_statistics("pictures")
    (first,) = statistics.model_stats[0].response_stats.values()
    assert (first.cancel.count, first.fail.count, first.success.count) == (1, 0, 0)


async def test_a_stream_whose_client_goes_leaves_nothing(tmp_path: Path) -> None:
    gate = Gate(is_open=False)
    async with served(tmp_path, {"simple": simple(gate), "pictures": pictures(gate)}) as running:
        async with triton_aio.InferenceServerClient(running.target) as client:

            async def requests() -> AsyncIterator[dict[str, Any]]:
                image = given("image", np.zeros((1, *SHAPE), np.float32))
                explained = {"vitrail_method": "occlusion", "vitrail_patch": 1}
                for _ in range(100):
                    yield {"model_name": "simple", "inputs": INPUTS}
                yield {"model_name": "pictures", "inputs": [image], "parameters": explained}
                await asyncio.Event().wait()

            stream = client.stream_infer(requests())
            reader = asyncio.create_task(anext(aiter(stream)))
            await gate.reached(1)
            reader.cancel()
            await running.metrics.until(lambda: ("ModelStreamInfer", "CANCELLED") in running.metrics.handled)
            gate.open()
        assert running.server._admission.inferences == 0
        assert running.server._admission.in_flight == 0
