"""Loading with the help of another process: what it hands over, and what happens when it fails."""

import gc
import logging
import os
import signal
import sys
import tempfile
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import pytest
import tensorflow as tf

from saved_models import IMAGE, numbers
from savedmodel.conftest import DeviceThread, Saved, at_once, load_model, separate_loader
from vitrail.errors import FailedPrecondition, Unavailable
from vitrail_server.savedmodel import functions, memory, prepared, separate
from vitrail_server.savedmodel.incremental.weights import Weights
from vitrail_server.savedmodel.loader import LoadedModel, Planning
from vitrail_server.savedmodel.messages import Prepared, Sizes
from vitrail_server.savedmodel.probe import Run
from vitrail_server.savedmodel.separate import MeasuredSizes, PreparingProcess, SeparateLoader
from vitrail_server.servable import ModelSettings, Servable, Signature
from vitrail_server.work import GradientRows, Kind, Objective, OccludeRows, Subject

T = TypeVar("T")


@pytest.fixture(scope="module")
def loader() -> Iterator[SeparateLoader]:
    """One loader, and as a rule one process, for all tests: TensorFlow takes long to import."""
    each = separate_loader()
    yield each
    each.close()


def ignore(_: int) -> None:
    """What a version takes is nobody's business here."""


def refuse(_: Callable[[], T], /) -> T:
    raise AssertionError("nothing should go through the device")


def load(
    loader: SeparateLoader,
    path: Path,
    run: Any = refuse,
    report: Callable[[int], object] = ignore,
    **settings: Any,
) -> LoadedModel:
    return loader.load(
        name="tested",
        version=3,
        path=path,
        complete=lambda signature: (signature, ModelSettings(**{"image_input": "image", **settings})),
        run=run,
        background=at_once,
        report=report,
    )


def answers(model: Servable, image: Any, output: str) -> tuple[Any, Any]:
    subject = Subject(image)
    rows = OccludeRows(subject, output, np.zeros((1, 4), np.int32))
    [forward] = model.program(Kind.FORWARD, image.shape[:2]).execute([rows])
    whole = GradientRows(subject, output, np.zeros(1, np.int32), Objective.OUTPUT, np.zeros(1, np.float32))
    [gradient] = model.program(Kind.GRADIENT, image.shape[:2]).execute([whole])
    return forward.outputs, gradient.gradients


def test_a_model_comes_back_as_if_it_had_been_loaded_here(
    saved: Saved, loader: SeparateLoader, device: DeviceThread
) -> None:
    """And nothing of it went through the device, where the streams of others would wait."""
    path = saved("convolutional", size=(None, None))
    sizes = ((12, 10), (8, 8))
    prepared = load(loader, path, image_sizes=sizes)
    here = load_model(path, device.run, image_sizes=sizes)
    assert prepared.description.capabilities.frozen_reason == ""
    for found, expected in ((prepared.description, here.description),):
        assert (found.signature, found.task, found.output_elements, found.probabilities) == (
            expected.signature,
            expected.task,
            expected.output_elements,
            expected.probabilities,
        )
    for size in sizes:
        image = numbers(*size, 3, seed=3)
        for output in ("logits", "probabilities"):
            for found, expected in zip(
                answers(prepared, image, output), answers(here, image, output), strict=True
            ):
                np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    for each in prepared.description.capabilities.batch_sizes:
        program = prepared.program(each.kind, each.image_size)
        assert (program.batch_size, program.seconds > 0) == (each.batch_size, True)


def graphs() -> set[int]:
    """Return which of TensorFlow's graphs there are in Python."""
    gc.collect()
    return {id(each) for each in gc.get_objects() if issubclass(type(each), tf.Graph)}


def test_nothing_of_the_tracing_stays(saved: Saved, loader: SeparateLoader) -> None:
    """A graph is an object per operation and a copy of the constants in it; only plans trace again."""
    before = graphs()
    model = load(loader, saved("convolutional", size=(None, None)), image_sizes=((12, 10), (8, 8)))
    assert model.description.capabilities.incremental_reason == ""
    assert model.gradient is not None
    assert graphs() <= before
    answers(model, numbers(12, 10, 3, seed=3), "logits")
    assert graphs() <= before


def test_weights_are_there_once_and_go_with_their_version(saved: Saved, loader: SeparateLoader) -> None:
    """Tensors are views of what was read; a plan's too."""
    model = load(loader, saved("convolutional", size=(None, None)), image_sizes=((12, 10), (8, 8)))
    forward: Any = model.forward
    weights = Weights(forward.flat.constants, forward.held)
    large = [name for name, value in forward.flat.constants.items() if value.size > 100]
    assert large
    for name in large:
        value = forward.flat.constants[name]
        assert np.shares_memory(value, np.asarray(memoryview(weights[name])))
    left = weakref.ref(forward.flat.constants[large[0]])
    del forward, weights, value
    model.close()
    del model
    gc.collect()
    assert left() is None


def test_a_graph_that_was_measured_is_not_measured_again(saved: Saved, loader: SeparateLoader) -> None:
    """The seconds are a measurement's, to the last digit; another bound is another question."""
    path = saved("sigmoid")
    first, again = (load(loader, path).description.capabilities.batch_sizes for _ in range(2))
    assert first == again
    bounded = load(loader, path, max_batch_size=2).description.capabilities.batch_sizes
    assert {each.seconds for each in bounded}.isdisjoint(each.seconds for each in first)


def test_the_graph_that_was_not_loaded_for_longest_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(separate, "MOST_GRAPHS", 2)
    sizes: dict[str, Sizes] = {
        graph: {(None, "FP32", Kind.FORWARD, (size, size)): (size, 0.5)}
        for size, graph in enumerate("abc", start=1)
    }
    measured = MeasuredSizes()
    for loaded in "aba":
        measured.keep(loaded, sizes[loaded])
    measured.keep("c", sizes["c"])
    assert [measured.of(graph) for graph in "abc"] == [sizes["a"], {}, sizes["c"]]


def test_what_a_model_added_to_memory_is_known(
    saved: Saved, loader: SeparateLoader, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = iter([1000, 1300])
    monkeypatch.setattr(memory, "resident_bytes", lambda: next(sizes))
    reported: list[int] = []
    load(loader, saved("convolutional"), report=reported.append)
    assert reported == [300]


def test_custom_gradients_come_back_too(saved: Saved, loader: SeparateLoader, device: DeviceThread) -> None:
    """A flat graph has no custom gradients any more, but the gradient was traced before."""
    path = saved("swish")
    prepared, here = load(loader, path), load_model(path, device.run)
    assert prepared.description.capabilities.gradient_reason == ""
    image = numbers(*IMAGE, seed=3)
    np.testing.assert_allclose(answers(prepared, image, "y")[1], answers(here, image, "y")[1], rtol=1e-4)


def test_what_cannot_be_handed_over_is_loaded_here(
    saved: Saved, loader: SeparateLoader, device: DeviceThread, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    model = load(loader, saved("table"), run=device.run)
    assert "cannot become a constant" in model.description.capabilities.frozen_reason
    assert "is loaded beside what is served" in caplog.text


@pytest.mark.parametrize("model", ["missing", "sigmoid"])
def test_what_is_refused_is_refused_as_it_would_be_here(
    saved: Saved, loader: SeparateLoader, tmp_path: Path, model: str
) -> None:
    def complete(_: Signature) -> tuple[Signature, ModelSettings]:
        raise FailedPrecondition("it does not fit the signature")

    path = tmp_path if model == "missing" else saved(model)
    message = "TensorFlow cannot read the SavedModel" if model == "missing" else "it does not fit"
    with pytest.raises(FailedPrecondition, match=message):
        loader.load(
            name="refused",
            version=1,
            path=path,
            complete=complete,
            run=refuse,
            background=at_once,
            report=ignore,
        )


def test_a_process_that_has_ended_is_started_again(saved: Saved, loader: SeparateLoader) -> None:
    """As when it was idle for long."""
    process = loader._process._process
    assert process is not None
    process.kill()
    process.wait()
    assert load(loader, saved("convolutional")).description.name == "tested"


def test_nothing_is_left_of_a_process_that_has_ended() -> None:
    """Nobody loads anything meanwhile, and still it is no zombie."""
    with ThreadPoolExecutor(1) as thread:
        waits: list[Future[object]] = []
        process = PreparingProcess(lambda wait: waits.append(thread.submit(wait)))
        process.start()
        assert process._process is not None
        entry = Path(f"/proc/{process._process.pid}")
        assert entry.exists()
        assert process._connection is not None
        process._connection.close()  # as idleness does, this ends it
        (wait,) = waits
        assert wait.result() == 0
        assert not entry.exists()


def test_a_server_that_is_killed_while_it_loads_leaves_no_file(
    saved: Saved, loader: SeparateLoader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The constants are in a file without a name, which is gone when nobody holds it."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    unpack, seen = prepared.unpack, []

    def looking(packed: Prepared, constants: BinaryIO, planning: Planning, run: Run) -> LoadedModel:
        seen.append((constants.seek(0, os.SEEK_END) > 0, list(tmp_path.iterdir())))
        return unpack(packed, constants, planning, run)

    monkeypatch.setattr(prepared, "unpack", looking)
    load(loader, saved("convolutional"))
    assert seen == [(True, [])]


class Killing:
    """Completes a signature, and kills the process that asks, so many times."""

    def __init__(self, process: PreparingProcess, times: int) -> None:
        self._process = process
        self._times = times

    def __call__(self, signature: Signature) -> tuple[Signature, ModelSettings]:
        if self._times:
            self._times -= 1
            assert self._process._process is not None
            os.kill(self._process._process.pid, signal.SIGKILL)
            self._process._process.wait()
        return signature, ModelSettings(image_input="image")


def test_a_process_that_dies_while_it_freezes_leaves_the_signature(
    saved: Saved, loader: SeparateLoader, device: DeviceThread
) -> None:
    model = loader.load(
        name="tested",
        version=1,
        path=saved("convolutional"),
        complete=Killing(loader._process, 1),
        run=device.run,
        background=at_once,
        report=ignore,
    )
    reason = "freezing it ended the process that tried it"
    assert model.description.capabilities.frozen_reason == reason
    assert model.forward is not None
    assert model.forward.flat is None


def test_a_model_that_ends_every_process_is_not_served(saved: Saved, loader: SeparateLoader) -> None:
    with pytest.raises(
        FailedPrecondition,
        match=r"cannot run this model here.*: the process that tried it ended with signal 9",
    ):
        loader.load(
            name="tested",
            version=1,
            path=saved("convolutional"),
            complete=Killing(loader._process, 2),
            run=refuse,
            background=at_once,
            report=ignore,
        )


def test_a_process_that_takes_too_long_is_ended(
    saved: Saved, loader: SeparateLoader, device: DeviceThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(separate, "LONGEST_SECONDS", 0.0)
    with pytest.raises(FailedPrecondition, match="it took longer than 0 s"):
        load(loader, saved("convolutional"))


def test_a_process_that_cannot_be_started_leaves_the_work_to_the_server(
    saved: Saved, device: DeviceThread, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "missing"))
    model = load(separate_loader(), saved("sigmoid"), run=device.run)
    assert isinstance(model.program(Kind.FORWARD, IMAGE[:2])._computation._forward, functions.Forward)  # type: ignore[attr-defined]


def test_nothing_is_loaded_once_it_is_closed(saved: Saved) -> None:
    loader = separate_loader()
    loader.close()
    with pytest.raises(Unavailable, match="shutting down"):
        load(loader, saved("sigmoid"))
