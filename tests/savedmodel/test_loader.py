"""Loading: what is found out about a model, where the work happens, and what is left afterwards."""

import ctypes
import gc
import threading
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.framework import func_graph

from saved_models import IMAGE, SUMS, numbers
from savedmodel.conftest import DeviceThread, Load, Saved, load_model, loader_of
from vitrail.errors import FailedPrecondition
from vitrail_server.savedmodel import freeze, functions, loader, warm
from vitrail_server.savedmodel.flat import FlatGraph
from vitrail_server.savedmodel.flatten import NotFlat
from vitrail_server.savedmodel.memory import release_memory
from vitrail_server.savedmodel.programs import Derivatives
from vitrail_server.servable import Capabilities, ModelSettings, Servable, Signature
from vitrail_server.work import GradientRows, Kind, Objective, OccludeRows, OutOfMemory, Subject


def capabilities(model: Servable) -> Capabilities:
    return model.description.capabilities


def answer(model: Servable, image: Any, output: str = "y") -> Any:
    rows = OccludeRows(Subject(image), output, np.zeros((1, 4), np.int32))
    return model.program(Kind.FORWARD, image.shape[:2]).execute([rows])[0].outputs[0]


def differentiate(model: Servable, image: Any, output: str = "y", rows: int = 1) -> Any:
    parts = GradientRows(
        Subject(image), output, np.zeros(rows, np.int32), Objective.OUTPUT, np.zeros(rows, np.float32)
    )
    return model.program(Kind.GRADIENT, image.shape[:2]).execute([parts])[0].gradients


def test_a_model_is_described(saved: Saved, load: Load) -> None:
    description = load(saved("convolutional")).description
    assert (description.name, description.version) == ("tested", 3)
    assert description.output_elements == {"logits": 4, "probabilities": 4}
    assert description.probabilities == {"probabilities"}
    assert description.task == "CLASSIFICATION"
    assert description.image_sizes == ((12, 10),)


def test_a_score_tensor_has_a_row_of_numbers_per_image(saved: Saved, load: Load) -> None:
    path = saved("convolutional")
    assert load(path, score_tensor="logits").description.settings.score_tensor == "logits"
    with pytest.raises(
        FailedPrecondition, match=r"'vitrail.score_tensor' is 'name', which has no row of num"
    ):
        load(path, score_tensor="name")


def test_a_plain_model_can_do_everything(saved: Saved, load: Load) -> None:
    model = load(saved("convolutional"))
    found = capabilities(model)
    assert found == Capabilities(batch_sizes=found.batch_sizes)
    assert [(each.kind, each.image_size) for each in found.batch_sizes] == [
        (Kind.FORWARD, (12, 10)),
        (Kind.GRADIENT, (12, 10)),
    ]
    for each in found.batch_sizes:
        program = model.program(each.kind, each.image_size)
        assert program is model.program(each.kind, each.image_size)
        assert (program.kind, program.batch_size) == (each.kind, each.batch_size)
        assert each.seconds > 0


@pytest.mark.parametrize(
    ("name", "settings", "task"),
    [
        ("sigmoid", {}, "CLASSIFICATION"),
        ("sigmoid", {"task": "REGRESSION"}, "REGRESSION"),
        ("two_inputs", {}, "REGRESSION"),
        ("two_inputs", {"labels": {"y": ("a", "b", "c")}}, "CLASSIFICATION"),
        ("argmax", {}, "REGRESSION"),
    ],
)
def test_the_task_follows_the_configuration_the_labels_and_the_probabilities(
    saved: Saved, load: Load, name: str, settings: dict[str, Any], task: str
) -> None:
    assert load(saved(name), **settings).description.task == task


INTEGER_PIXELS = (
    "the image input 'image' is UINT8, and integers have no gradient; "
    "export a signature that takes FP32 pixels"
)
INTEGER_OUTPUTS = (
    "no output holds floating point numbers, only class (INT64), and integers have no gradient; export the "
    "scores as well"
)
NO_PATH = (
    "no gradient of y reaches the image input 'image': a rounding, an argmax, a stop_gradient or Python code "
    "stands between them; export a signature without it"
)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("byte_pixels", INTEGER_PIXELS), ("argmax", INTEGER_OUTPUTS), ("stopped", NO_PATH)],
)
def test_a_model_without_gradient_says_why_and_what_would_work(
    saved: Saved, load: Load, name: str, reason: str
) -> None:
    model = load(saved(name))
    assert capabilities(model).gradient_reason == reason
    assert capabilities(model).occlusion_reason == ""
    with pytest.raises(FailedPrecondition) as refusal:
        model.program(Kind.GRADIENT, (5, 7))
    assert refusal.value.message == reason


def test_a_custom_gradient_that_was_not_saved_leaves_occlusion(swish: Path, load: Load) -> None:
    model = load(swish)
    assert capabilities(model).gradient_reason.startswith(
        "an operation has no gradient, as happens where the custom gradients of an activation (swish, for "
        "example) were not saved; export again with tf.saved_model.SaveOptions(experimental_custom_gradients="
        "True). TensorFlow says: LookupError: "
    )
    image = numbers(*IMAGE, seed=3)
    assert (answer(model, image) != answer(model, image * 0)).all()


def test_a_gradient_that_fails_when_it_runs_is_found_out(saved: Saved, load: Load) -> None:
    reason = capabilities(load(saved("failing_gradient"))).gradient_reason
    assert reason.startswith("TensorFlow cannot compute the gradient: ")
    assert "no way back" in reason


def test_a_model_that_depends_on_its_batch_is_run_one_image_at_a_time(saved: Saved, load: Load) -> None:
    found = capabilities(load(saved("batch_normalised")))
    assert (found.batch_dependent, found.non_deterministic) == (True, False)
    assert (found.gradient_reason, found.occlusion_reason) == ("", "")
    assert {each.batch_size for each in found.batch_sizes} == {1}


def test_a_model_that_depends_on_its_fixed_batch_cannot_be_explained(saved: Saved, load: Load) -> None:
    model = load(saved("batch_normalised", 4))
    found = capabilities(model)
    assert (found.batch_dependent, found.fixed_batch_size) == (True, 4)
    assert found.occlusion_reason == (
        "the signature takes batches of 4 only, and the answer for an image depends on the others in its "
        "batch; export it for inference (training=False), or with a free batch size"
    )
    assert found.gradient_reason == found.occlusion_reason


def test_a_model_that_is_not_deterministic_is_run_one_image_at_a_time(saved: Saved, load: Load) -> None:
    """What the noise of dropout hides may be a dependence on the batch."""
    found = capabilities(load(saved("dropping_out")))
    assert (found.batch_dependent, found.non_deterministic) == (False, True)
    assert {each.batch_size for each in found.batch_sizes} == {1}
    assert (
        found.frozen_reason == "the model answers differently every time, so nothing can be compared with it"
    )


@pytest.mark.parametrize("size", [1, 4])
def test_a_fixed_batch_size_is_kept(saved: Saved, load: Load, size: int) -> None:
    weights = numbers(5, 7, 3, 2)
    model = load(saved("linear", weights, np.zeros(2, np.float32), batch=size))
    found = capabilities(model)
    assert (found.fixed_batch_size, found.batch_dependent) == (size, False)
    assert {each.batch_size for each in found.batch_sizes} == {size}
    image = numbers(*IMAGE, seed=3)
    np.testing.assert_allclose(answer(model, image), np.tensordot(image, weights, 3), rtol=1e-5)


def test_a_model_that_only_says_it_takes_batches_is_found_out(saved: Saved, load: Load) -> None:
    found = capabilities(load(saved("one_row_only")))
    assert found.fixed_batch_size == 1
    assert {each.batch_size for each in found.batch_sizes} == {1}


def test_not_a_number_is_no_noise(saved: Saved, load: Load) -> None:
    found = capabilities(load(saved("not_a_number")))
    assert (found.non_deterministic, found.batch_dependent, found.frozen_reason) == (False, False, "")


def test_only_outputs_with_numbers_for_each_image_are_explained(saved: Saved, load: Load) -> None:
    description = load(saved("many_outputs")).description
    assert description.output_elements == {"count": 3, "double": 3, "half": 3, "map": 35}
    assert "text" in description.signature.outputs


def test_an_output_that_grows_with_the_image_is_left_out(saved: Saved, device: DeviceThread) -> None:
    path = saved("free_map", with_sums=True)
    one = load_model(path, device.run, image_sizes=((4, 4),))
    assert one.description.output_elements == {"map": 16, "y": 3}
    two = load_model(path, device.run, image_sizes=((4, 4), (4, 6)))
    assert two.description.output_elements == {"y": 3}


def test_a_model_with_nothing_but_such_outputs_serves_one_size(saved: Saved, device: DeviceThread) -> None:
    with pytest.raises(FailedPrecondition, match="list it alone in vitrail"):
        load_model(saved("free_map"), device.run, image_sizes=((4, 4), (4, 6)))


def test_a_size_that_the_model_cannot_take_is_named(saved: Saved, device: DeviceThread) -> None:
    path = saved("convolutional_without_edge")
    with pytest.raises(FailedPrecondition, match="fails on a random image of 1x6: InvalidArgumentError"):
        load_model(path, device.run, image_sizes=((6, 6), (1, 6)))


def test_a_model_that_does_not_run_is_refused(saved: Saved, device: DeviceThread) -> None:
    message = "the model fails on a random image of 5x7: InvalidArgumentError: "
    with pytest.raises(FailedPrecondition, match=message):
        load_model(saved("failing"), device.run)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("whole_batch_only", "no output has a row of numbers per image; export one of a numeric type"),
        (
            "image_and_text",
            "input 'words' is BYTES, which cannot be sent with an image; export it as numbers",
        ),
        ("image_and_rate", "input 'rate' has the shape [], without a batch dimension; export it"),
    ],
)
def test_a_model_that_cannot_be_explained_says_why(saved: Saved, load: Load, name: str, reason: str) -> None:
    model = load(saved(name))
    description = model.description
    assert (description.settings.image_input, description.image_sizes) == (None, ())
    assert description.output_elements == {}
    assert description.settings.image_reason.startswith(reason)
    found = description.capabilities
    assert found.gradient_reason == found.occlusion_reason == description.settings.image_reason
    for kind in (Kind.FORWARD, Kind.GRADIENT):
        with pytest.raises(FailedPrecondition) as refusal:
            model.program(kind, (5, 7))
        assert refusal.value.message == description.settings.image_reason


def test_a_model_without_an_image_is_loaded(saved: Saved, load: Load) -> None:
    settings = {"image_input": None, "image_reason": "there is none"}
    description = load(saved("sums_and_differences"), **settings).description
    assert sorted(description.signature.inputs) == ["INPUT0", "INPUT1"]
    assert description.capabilities == Capabilities(
        "there is none", "there is none", incremental_reason="there is none"
    )
    assert description.task == "REGRESSION"
    labelled = load(saved("sums_and_differences"), labels={"OUTPUT0": ("a",) * 16}, **settings)
    assert labelled.description.task == "CLASSIFICATION"
    with pytest.raises(LookupError, match="there is none"):
        _ = description.image


@pytest.fixture
def _slots_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether they are depends on the processor, and with it the sizes that are chosen."""
    monkeypatch.setattr(warm, "results_alike", lambda *_: True)


@pytest.mark.usefixtures("_slots_alike")
@pytest.mark.parametrize(("allowed", "chosen"), [(1, 1), (3, 2), (4, 4)])
def test_max_batch_size_is_respected(saved: Saved, device: DeviceThread, allowed: int, chosen: int) -> None:
    model = load_model(saved("sigmoid"), device.run, max_batch_size=allowed)
    assert {each.batch_size for each in capabilities(model).batch_sizes} == {chosen}


@pytest.mark.usefixtures("_slots_alike")
def test_memory_bounds_the_batch(saved: Saved, device: DeviceThread) -> None:
    """A gradient keeps its activations, so fewer of its rows fit; one row is run however large it is."""
    bounded = load_model(saved("convolutional"), device.run)
    sizes = {each.kind: each.batch_size for each in capabilities(bounded).batch_sizes}
    assert sizes == {Kind.FORWARD: 16, Kind.GRADIENT: 8}
    model = loader_of(time_slice=1000, batch_bytes=1).load(
        name="small",
        version=1,
        path=saved("sigmoid"),
        complete=lambda signature: (signature, ModelSettings(image_input="image")),
        run=device.run,
    )
    assert {each.batch_size for each in capabilities(model).batch_sizes} == {1}


@pytest.mark.usefixtures("_slots_alike")
def test_a_batch_has_no_more_inputs_than_memory_is_kept_for(
    saved: Saved, device: DeviceThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved("convolutional", size=(8, 8))
    monkeypatch.setattr(loader, "LARGEST_KEPT", 5 * numbers(8, 8, 3).nbytes)
    model = load_model(path, device.run)
    assert {each.batch_size for each in capabilities(model).batch_sizes} == {4}


def test_the_frozen_graph_answers_as_the_signature_does(
    saved: Saved, load: Load, device: DeviceThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen = load(saved("convolutional"))
    assert capabilities(frozen).frozen_reason == ""

    def refuse(_: object) -> FlatGraph:
        raise NotFlat("it has variables in a loop")

    monkeypatch.setattr(freeze, "flatten", refuse)
    plain = load_model(saved("convolutional"), device.run)
    assert capabilities(plain).frozen_reason == "it has variables in a loop"
    image = numbers(12, 10, 3, seed=3)
    for output in ("logits", "probabilities"):
        np.testing.assert_allclose(answer(frozen, image, output), answer(plain, image, output), rtol=1e-5)


def test_a_frozen_graph_that_answers_differently_is_not_used(
    saved: Saved, device: DeviceThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    def falsified(graph: FlatGraph) -> FlatGraph:
        wrong = {name: value * 1.1 for name, value in graph.constants.items() if value.dtype == np.float32}
        return replace(graph, constants={**graph.constants, **wrong})

    monkeypatch.setattr(freeze, "simplify", falsified)
    model = load_model(saved("convolutional"), device.run)
    assert capabilities(model).frozen_reason == "the frozen graph gives other outputs than the signature"


def test_where_freezing_fails_the_signature_serves(
    saved: Saved, device: DeviceThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("an internal error\nwith a stack trace")

    monkeypatch.setattr(freeze, "flatten", broken)
    model = load_model(saved("sigmoid"), device.run)
    reason = "TensorFlow cannot freeze the graph: RuntimeError: an internal error"
    assert capabilities(model).frozen_reason == reason
    assert answer(model, numbers(*IMAGE), "p").shape == (1,)


def test_the_device_executes_and_the_caller_traces(
    saved: Saved, device: DeviceThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    executing: set[int] = set()
    tracing: set[int] = set()

    def spied(kind: Any, name: str, seen: set[int]) -> None:
        original = getattr(kind, name)

        def spy(*args: Any, **kwargs: Any) -> Any:
            seen.add(threading.get_ident())
            return original(*args, **kwargs)

        monkeypatch.setattr(kind, name, spy)

    spied(functions.Forward, "__call__", executing)
    spied(functions.Gradient, "__call__", executing)
    spied(func_graph.FuncGraph, "__init__", tracing)
    load_model(saved("convolutional"), device.run)
    assert executing == {device.ident}
    assert tracing == {threading.get_ident()}


def test_nothing_is_traced_after_loading(
    saved: Saved, device: DeviceThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the image, its size or the rows of a batch."""
    graphs = 0
    original = func_graph.FuncGraph.__init__

    def counted(*args: Any, **kwargs: Any) -> None:
        nonlocal graphs
        graphs += 1
        original(*args, **kwargs)

    monkeypatch.setattr(func_graph.FuncGraph, "__init__", counted)
    path = saved("convolutional", size=(None, None))
    model = load_model(path, device.run, image_sizes=((12, 10), (8, 8)))
    after_loading = graphs
    assert after_loading > 0
    for height, width in model.description.image_sizes:
        for rows in (1, 2, 3, 1):
            differentiate(model, numbers(height, width, 3, seed=rows), "logits", rows)
            answer(model, numbers(height, width, 3, seed=rows), "logits")
    assert model.program(Kind.GRADIENT, (8, 8)).halve()
    differentiate(model, numbers(8, 8, 3), "logits")
    assert graphs == after_loading


def test_running_out_of_memory_is_told_apart(saved: Saved, load: Load) -> None:
    def exhausted(*_: Any) -> Any:
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating\nmany lines")

    forward = functions.Forward(exhausted, ["image"], ["y"], keep=None)
    with pytest.raises(OutOfMemory, match=r"^ResourceExhaustedError: OOM when allocating$"):
        forward({"image": numbers(1, *IMAGE)}, ["y"])
    gradient = functions.Gradient(exhausted, ["image"], ["y"], ["y"], keep=None)
    zeros = np.zeros(1, np.int32)
    rows = Derivatives(zeros, zeros, zeros, np.zeros(1, np.float32))
    with pytest.raises(OutOfMemory):
        gradient({"image": numbers(1, *IMAGE)}, rows, ["y"])


def test_what_the_settings_refuse_is_not_loaded(saved: Saved, device: DeviceThread) -> None:
    def refuse(_: object) -> tuple[Signature, ModelSettings]:
        raise FailedPrecondition("it does not fit the signature")

    with pytest.raises(FailedPrecondition, match="does not fit"):
        loader_of(time_slice=1, batch_bytes=1 << 20).load(
            name="refused", version=1, path=saved("sigmoid"), complete=refuse, run=device.run
        )


def remembered_roots(monkeypatch: pytest.MonkeyPatch) -> "list[weakref.ref[Any]]":
    """Return a list that gets a reference to everything TensorFlow loads from now on."""
    roots: list[weakref.ref[Any]] = []
    load = tf.saved_model.load

    def remembered(path: str) -> Any:
        root = load(path)
        roots.append(weakref.ref(root))
        return root

    monkeypatch.setattr(tf.saved_model, "load", remembered)
    return roots


def test_a_closed_model_is_gone(saved: Saved, device: DeviceThread, monkeypatch: pytest.MonkeyPatch) -> None:
    roots = remembered_roots(monkeypatch)
    model = load_model(saved("convolutional"), device.run)
    gc.collect()
    assert roots[0]() is not None, "the gradient needs its variables"
    model.close()
    assert roots[0]() is None


def test_without_a_gradient_the_variables_go_at_once(
    saved: Saved, device: DeviceThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The frozen graph holds its own weights."""
    roots = remembered_roots(monkeypatch)
    model = load_model(saved("byte_pixels"), device.run)
    gc.collect()
    assert roots[0]() is None
    image = np.zeros(IMAGE, np.uint8)
    np.testing.assert_array_equal(answer(model, image), [0, 0, 0])


def test_a_graph_with_a_table_is_not_frozen(saved: Saved, device: DeviceThread) -> None:
    model = load_model(saved("table"), device.run)
    assert capabilities(model).frozen_reason.endswith(
        "uses something that cannot become a constant: a table, for example, or a variable within a loop"
    )
    gc.collect()
    image = numbers(*IMAGE, seed=3)
    assert answer(model, image, "class") == [10 + np.argmax(np.tensordot(image, SUMS, 3))]


def test_a_model_from_tensorflow_1_can_do_everything(saved: Saved, load: Load) -> None:
    model = load(saved("tensorflow_1"), image_input="image:0")
    image = numbers(*IMAGE, seed=3)
    found = capabilities(model)
    assert "(Shape) needs its whole input" in found.incremental_reason
    assert found == Capabilities(batch_sizes=found.batch_sizes, incremental_reason=found.incremental_reason)
    np.testing.assert_allclose(answer(model, image, "a/y"), np.tensordot(image, SUMS, 3), rtol=1e-5)
    np.testing.assert_allclose(differentiate(model, image, "a/y")[0], SUMS[..., 0], rtol=1e-6)


def test_memory_is_released_without_glibc_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    release_memory()
