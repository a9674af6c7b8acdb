"""Triton's client, the whole server and TensorFlow: what a repository of Triton's holds loads and answers."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import pytest_asyncio
import tensorflow as tf
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.utils import np_to_triton_dtype

import saved_models
from fakes.serving import settings_of
from saved_models import IMAGE, SUMS, numbers
from vitrail_server.server import Server

pytestmark = pytest.mark.asyncio(loop_scope="module")

SIMPLE = """
platform: "tensorflow_savedmodel"
max_batch_size: 8
input [
  { name: "INPUT0" data_type: TYPE_INT32 dims: [ 16 ] },
  { name: "INPUT1" data_type: TYPE_INT32 dims: [ 16 ] }
]
output [ { name: "OUTPUT0" data_type: TYPE_INT32 dims: [ 16 ] } ]
dynamic_batching { preferred_batch_size: [ 4 ] max_queue_delay_microseconds: 100 }
"""
WARMED = """
model_warmup {
  name: "both"
  batch_size: 2
  inputs { key: "half" value { data_type: TYPE_BF16 dims: 2 random_data: true } }
  inputs { key: "text" value { data_type: TYPE_STRING dims: 2 zero_data: true } }
}
"""


def write(repository: Path) -> None:
    """Write a repository as people bring it from Triton."""
    models: dict[str, tuple[Any, str]] = {
        "simple": (lambda path: saved_models.sums_and_differences(path, tf.int32), SIMPLE),
        "types": (
            lambda path: saved_models.identities(path, {"half": tf.bfloat16, "text": tf.string}),
            WARMED,
        ),
        "scalars": (saved_models.scalars, ""),
        "outputs": (saved_models.many_outputs, ""),
        "network": (saved_models.convolutional, ""),
        "whole": (saved_models.whole_batch_only, ""),
        "four": (lambda path: saved_models.batch_normalised(path, 4), ""),
    }
    for name, (make, config) in models.items():
        (repository / name / "1").mkdir(parents=True)
        make(repository / name / "1" / "model.savedmodel")
        if config:
            (repository / name / "config.pbtxt").write_text(config)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Any]:
    repository = tmp_path_factory.mktemp("repository")
    write(repository)
    async with Server(settings_of(repository)) as server:
        assert await server.load()
        async with triton_aio.InferenceServerClient(f"127.0.0.1:{server.grpc_port}") as client:
            yield client


def given(name: str, array: Any) -> Any:
    made = triton.InferInput(name, array.shape, np_to_triton_dtype(array.dtype))
    return made.set_data_from_numpy(array)


async def test_every_model_loads(client: Any) -> None:
    index = await client.get_model_repository_index()
    assert {(each.name, each.state, each.reason) for each in index.models} == {
        (name, "READY", "") for name in ("simple", "types", "scalars", "outputs", "network", "whole", "four")
    }


async def test_sums(client: Any) -> None:
    a, b = np.arange(32, dtype=np.int32).reshape(2, 16), np.ones((2, 16), np.int32)
    result = await client.infer("simple", [given("INPUT0", a), given("INPUT1", b)])
    np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), a + b)
    assert result.as_numpy("OUTPUT1") is None, "the configuration does not list it"


async def test_types(client: Any) -> None:
    half = np.array([[1.5, np.nan]], ml_dtypes.bfloat16)
    text = np.array([[b"\x00\xff", b""]], object)
    result = await client.infer("types", [given("half", half), given("text", text)])
    assert result.as_numpy("half_out").tobytes() == half.tobytes()
    assert result.as_numpy("text_out").tolist() == text.tolist()


async def test_scalars(client: Any) -> None:
    result = await client.infer("scalars", [given("x", np.array(1.5, np.float32))])
    assert result.as_numpy("y") == 3
    assert (await client.get_model_config("scalars")).config.max_batch_size == 0


async def test_outputs_of_all_sorts(client: Any) -> None:
    images = numbers(2, *IMAGE, seed=3)
    scores = np.tensordot(images, SUMS, 3)
    result = await client.infer("outputs", [given("image", images)])
    np.testing.assert_allclose(result.as_numpy("double"), 2 * scores, rtol=1e-4)
    np.testing.assert_allclose(result.as_numpy("loss"), scores.mean(), rtol=1e-4)
    np.testing.assert_allclose(result.as_numpy("text").astype(np.float64), scores, rtol=1e-4)


async def test_a_prediction_is_the_plan_s(client: Any) -> None:
    image = numbers(1, 12, 10, 3, seed=6)
    scores = (await client.infer("network", [given("image", image)])).as_numpy("probabilities")
    asked = {"vitrail_method": "occlusion", "vitrail_patch": 4, "vitrail_output": "probabilities"}
    for wanted in ("all", "top:1"):
        parameters = {**asked, "vitrail_targets": wanted}
        map_ = await client.infer("network", [given("image", image)], parameters=parameters)
        targets = map_.as_numpy("targets")
        assert map_.as_numpy("outputs").tobytes() == scores[0, targets].tobytes()


async def test_what_no_explanation_can_take_is_predicted(client: Any) -> None:
    images = numbers(3, *IMAGE, seed=3)
    loss = (await client.infer("whole", [given("image", images)])).as_numpy("loss")
    np.testing.assert_allclose(loss, images.mean(), atol=1e-6)
    four = (await client.infer("four", [given("image", numbers(4, *IMAGE))])).as_numpy("y")
    assert four.shape == (4, 3)
    config = (await client.get_model_config("four")).config
    assert (config.max_batch_size, list(config.input[0].dims)) == (0, [4, *IMAGE])
