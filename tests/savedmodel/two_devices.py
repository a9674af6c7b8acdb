"""Splits the CPU in two and explains with a version on each: `python -m savedmodel.two_devices DIR`.

In a process of its own, because TensorFlow's devices are decided once. Prints what it found as JSON.
"""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

import saved_models
from fakes.canvas import Canvas
from runtime.stage import Recorder
from vitrail_server.explainers.gradient import GradientParameters, GradientRun
from vitrail_server.explainers.occlusion import OcclusionParameters, OcclusionRun
from vitrail_server.explainers.question import Question
from vitrail_server.footprint import Footprint
from vitrail_server.metrics import Metrics
from vitrail_server.repository.directory import read_model_directory
from vitrail_server.repository.source import read_model
from vitrail_server.runtime.devices import Devices, Instance, Replicated
from vitrail_server.runtime.lane import Lane
from vitrail_server.savedmodel.incremental.budget import CacheBudget
from vitrail_server.server import _TensorFlowLoader
from vitrail_server.settings import Settings
from vitrail_server.work import Kind

NAMES = ("CPU:0", "CPU:1")
SIZE = (12, 10)


async def main(directory: Path) -> dict[str, Any]:
    saved_models.convolutional(directory / "net" / "1" / "model.savedmodel")
    source = read_model(read_model_directory("net", directory / "net")).version(1)
    events = Recorder()
    devices = Devices(events)
    settings = Settings(model_repository=(directory,), time_slice_secs=0.001)
    planning, reaping = Lane("planning"), Lane("reaping")
    metrics = Metrics()
    loader = _TensorFlowLoader(settings, devices, planning, reaping, CacheBudget(1 << 20, metrics), metrics)
    footprint = Footprint(lambda *_: None)
    instances = [
        Instance(name, await asyncio.to_thread(loader._load_on, name, source, footprint)) for name in NAMES
    ]
    version = Replicated(instances)
    placed = await placed_on(devices, instances)
    image = np.random.default_rng(0).random((*SIZE, 3), np.float32)
    maps: list[list[bytes]] = [[], []]
    for kind in range(2):
        waiting = []
        for _ in NAMES:  # the second one comes while the first is in progress
            question = Question(version.description, image, "probabilities", targets=(0,))
            run: Any = (
                OcclusionRun(question, OcclusionParameters((3, 3)))
                if kind == 0
                else GradientRun(question, GradientParameters())
            )
            device, instance = devices.place(version)
            changed = asyncio.Event()
            submission = device.submit(
                run, instance.program(run.kind, SIZE), Nobody(), changed.set, caller="a", arrived=0.0
            )
            waiting.append((submission, changed))
        for place, (submission, changed) in enumerate(waiting):
            canvas = None
            while True:
                finished = submission.finished
                tiles = submission.tiles()
                if tiles and canvas is None:
                    assert submission.plan
                    canvas = Canvas(submission.plan.map_shape)
                if canvas:
                    canvas.paste_all(tiles)
                if finished:
                    break
                await changed.wait()
                changed.clear()
            assert canvas
            maps[kind].append(canvas.values.tobytes())
            assert submission.error is None, (place, submission.error)
    devices.close()
    planning.close()
    version.close()
    return {
        "devices": sorted({event.device for event in events.executed}),
        "equal": [one == other for one, other in maps],
        "sizes": [len(one) for one, _ in maps],
        "placed": placed,
    }


class Nobody:
    """Holds nothing."""

    def close(self) -> None:
        pass


def where(computed: Any) -> str:
    """Return the device of a tensor."""
    return str(computed.device).rpartition("device:")[2]


async def placed_on(devices: Devices, instances: list[Instance]) -> list[dict[str, str]]:
    """Return where each instance's graph gives its results, called on its device's own thread."""
    image = np.zeros((1, *SIZE, 3), np.float32)
    found = []
    for each in instances:
        model: Any = each.servable
        forward = model.programs[Kind.FORWARD, SIZE]._computation._forward
        gradient = model.programs[Kind.GRADIENT, SIZE]._computation._gradient

        def compute(forward: Any = forward, gradient: Any = gradient) -> dict[str, str]:
            rows = [np.zeros(1, np.int32)] * 3 + [np.zeros(1, np.float32)]
            slopes = gradient.concrete(*map(tf.constant, rows), tf.constant(image))[1]
            return {
                "image": where(tf.constant(image)),
                "forward": where(forward.concrete(tf.constant(image))[0]),
                "gradient": where(slopes),
                "weights": where(gradient._keep.held[0].value()),
            }

        found.append(await asyncio.to_thread(devices.call_on, each.device, compute))
    return found


if __name__ == "__main__":
    [cpu] = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * len(NAMES))
    sys.stdout.write(json.dumps(asyncio.run(main(Path(sys.argv[1])))))
