"""A model in another precision, from client to client: on machines that have it, and on those that do not."""

from pathlib import Path

import numpy as np
import pytest

import saved_models
import vitrail
import vitrail.aio
from fakes.serving import settings_of
from vitrail.v1.model_pb2 import ModelVersion
from vitrail.v1.tensor_pb2 import Precision
from vitrail_server.savedmodel.precision import PROCESSOR_FLAGS, processor_flags
from vitrail_server.server import Server

CONFIG = "parameters {{ key: 'vitrail.precision' value {{ string_value: '{}' }} }}"
PATCH = vitrail.Occlusion(patch=6)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    for name in ("FP32", "BF16", "TF32"):
        saved_models.local(tmp_path / name / "1" / "model.savedmodel")
        (tmp_path / name / "config.pbtxt").write_text(CONFIG.format(name))
    return tmp_path


async def test_a_model_is_computed_in_the_precision_that_it_asks_for_or_not_at_all(repository: Path) -> None:
    has_bfloat16 = not processor_flags().isdisjoint(PROCESSOR_FLAGS["BF16"])
    async with Server(settings_of(repository)) as server:
        await server.load()
        async with vitrail.aio.Client(f"127.0.0.1:{server.grpc_port}") as client:
            versions = {model.name: model.versions[0] for model in await client.models()}
            assert versions["FP32"].capabilities.precision == Precision.PRECISION_FP32
            assert versions["TF32"].state == ModelVersion.STATE_END
            assert versions["TF32"].reason.endswith(
                "only NVIDIA's GPUs have it, and this model runs on the CPU; leave it out for FP32"
            )
            if not has_bfloat16:
                assert versions["BF16"].state == ModelVersion.STATE_END
                assert "this processor has none of the instructions avx512_bf16" in versions["BF16"].reason
                return
            able = versions["BF16"].capabilities
            assert able.precision == Precision.PRECISION_BF16
            assert 0 < able.precision_difference < 0.02
            image = np.random.default_rng(0).random((64, 64, 3)).astype(np.float32) * 255
            found, exact = [
                await client.explain(image, model=name, method=PATCH) for name in ("BF16", "FP32")
            ]
            assert found.plan.precision == Precision.PRECISION_BF16
            assert exact.plan.precision == Precision.PRECISION_FP32
            largest = max(target.output for target in exact.plan.targets)
            assert 0 < np.abs(found.values - exact.values).max() < 0.02 * largest
            gradient, its = [
                await client.explain(image, model=name, method=vitrail.Gradient())
                for name in ("BF16", "FP32")
            ]
            assert gradient.plan.precision == Precision.PRECISION_FP32
            # Each was measured by itself, and may have another batch size.
            assert np.abs(gradient.values - its.values).max() <= 1e-4 * its.values.max()
