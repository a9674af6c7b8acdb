"""Every client against `vitrail-server` with EfficientNet-Lite0: a real photo, a real network."""

from pathlib import Path

import numpy as np

import vitrail
from integration.conftest import Served, client, served
from polyglot.programs import ROOT, Program, every_program, read_map

__all__ = ["client", "served"]

PHOTO = ROOT / "examples" / "photos" / "coffee.jpg"


@every_program
async def test_the_coffee_photo(
    program: Program, served: Served, client: vitrail.Client, tmp_path: Path
) -> None:
    method = vitrail.Occlusion(patch=56, stride=56)
    expected = client.explain(PHOTO, model="efficientnet_lite0", method=method)

    outcome = await program.run(
        *("--server", served.address, "--model", "efficientnet_lite0", "--method", "occlusion"),
        *("--patch", 56, "--stride", 56, "--timeout", 60, "--out", tmp_path / "map.f32", PHOTO),
    )

    assert outcome.code == 0, outcome.error
    assert str(expected.targets[0]) in outcome.out
    assert "COMPLETE: 17 of 17 evaluations" in outcome.out
    np.testing.assert_allclose(
        read_map(tmp_path / "map.f32", expected.values.shape), expected.values, rtol=0, atol=1e-5
    )
