"""Where TensorFlow computes: shown on a CPU that a process of its own splits into two devices."""

import json
import os
import subprocess
import sys
from pathlib import Path


def test_each_instance_computes_on_its_own_device_and_their_maps_have_the_same_bits(tmp_path: Path) -> None:
    tests = Path(__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": str(tests), "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-m", "savedmodel.two_devices", str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)

    assert not done.returncode, done.stderr
    found = json.loads(done.stdout)
    for name, placed in zip(("CPU:0", "CPU:1"), found["placed"], strict=True):
        assert set(placed.values()) == {name}
    assert found["devices"] == ["CPU:0", "CPU:1"], "the second Run goes where the first is not"
    assert found["equal"] == [True, True]
    assert all(found["sizes"])
