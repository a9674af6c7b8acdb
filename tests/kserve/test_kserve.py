"""KServe's InferenceGRPCClient, unmodified, against a real server. Run by scripts/kserve."""

import asyncio
import json
import os
from pathlib import Path

from fakes.serving import served
from inference.models import identity, simple

CLIENT = Path(__file__).with_name("client.py")


async def test_kserve_s_client_works(tmp_path: Path) -> None:
    offers = {"simple": simple(), "strings": identity("BYTES", (-1, -1))}
    async with served(tmp_path, offers) as running:
        process = await asyncio.create_subprocess_exec(
            os.environ["KSERVE_PYTHON"], str(CLIENT), running.target, stdout=asyncio.subprocess.PIPE
        )
        printed, _ = await process.communicate()

    assert process.returncode == 0
    found = json.loads(printed.splitlines()[-1])
    assert (found["live"], found["ready"], found["model"], found["nothing"]) == (True, True, True, False)
    for form in ("raw", "contents"):
        assert found[form] == {
            "id": "k",
            "version": "1",
            "OUTPUT0": [[each + 3 for each in range(16)]],
            "OUTPUT1": [[each - 3 for each in range(16)]],
        }
    assert found["strings"] == ["a", "\u00e9"]
    assert "Request for unknown model: 'nothing' is not found" in found["error"]
