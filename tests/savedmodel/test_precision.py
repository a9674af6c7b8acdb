"""Forwards in 16 bits: which numbers are rounded and which are not, by hand, and what is refused."""

from tempfile import TemporaryFile
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from saved_models import numbers
from savedmodel.conftest import DeviceThread, Saved, load_model, loader_of
from vitrail.errors import FailedPrecondition
from vitrail_server.savedmodel import platform, precision
from vitrail_server.savedmodel.flat import FlatGraph
from vitrail_server.savedmodel.flatten import flatten
from vitrail_server.savedmodel.functions import flat_forward
from vitrail_server.savedmodel.passes import simplify
from vitrail_server.savedmodel.precision import lowered, processor_flags
from vitrail_server.savedmodel.prepared import pack, unpack
from vitrail_server.servable import ModelSettings, Servable
from vitrail_server.work import Kind, OccludeRows, Subject

A_BIT_MORE = 1 + 2**-8
"""The number after 1 in float16's reach, halfway to the next in bfloat16, where it becomes 1."""

LEAST_MORE = 1 + 2**-11
"""Halfway to the next number in float16, where it becomes 1."""


@pytest.fixture
def _capable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any processor computes in 16 bits, if need be by emulating it."""
    monkeypatch.setattr(precision, "processor_flags", lambda: {"avx512_bf16", "avx512_fp16"})


def kernel(*weights: float) -> Any:
    """Return a convolution's kernel that multiplies each channel by a number."""
    return tf.constant(np.diag(weights)[None, None].astype(np.float32))


def convolved(image: Any, *weights: float) -> Any:
    return tf.nn.conv2d(image, kernel(*weights), 1, "VALID")


def graphs(predict: Any, dtype: Any, channels: int = 1) -> tuple[FlatGraph, FlatGraph | None]:
    """Return a function of images as a flat graph, and that lowered."""
    spec = tf.TensorSpec((None, 1, 1, channels), tf.float32)
    graph = simplify(flatten(tf.function(predict, autograph=False).get_concrete_function(spec)))
    return graph, lowered(graph, dtype)


def answer(predict: Any, dtype: Any, *values: float) -> list[float]:
    """Return what a lowered function of one pixel gives."""
    _, graph = graphs(predict, dtype, len(values))
    assert graph is not None
    image = np.array(values, np.float32).reshape(1, 1, 1, -1)
    [found] = flat_forward(graph, ["image"], ["y"])({"image": image}, ["y"]).values()
    assert found.dtype == np.float32
    return [float(each) for each in found.reshape(-1)]


@pytest.mark.parametrize(
    ("dtype", "value", "rounded"),
    [
        (tf.bfloat16, A_BIT_MORE, 1),
        (tf.bfloat16, 3 * A_BIT_MORE, 3.015625),
        (tf.float16, A_BIT_MORE, A_BIT_MORE),
        (tf.float16, LEAST_MORE, 1),
    ],
)
def test_inner_kernels_see_rounded_numbers_and_the_last_one_does_not(
    dtype: Any, value: float, rounded: float
) -> None:
    assert answer(lambda image: convolved(convolved(image, 1), A_BIT_MORE), dtype, value) == [
        rounded * A_BIT_MORE
    ]
    assert answer(lambda image: convolved(convolved(image, value), 1), dtype, 1) == [rounded]


def test_sums_of_branches_stay_in_float32() -> None:
    def predict(image: Any) -> Any:
        return convolved(tf.nn.relu(convolved(image, 1)) + image, 1)

    assert answer(predict, tf.bfloat16, A_BIT_MORE) == [1 + A_BIT_MORE]


def test_a_bias_and_an_activation_follow_their_kernel() -> None:
    def predict(image: Any) -> Any:
        inner = tf.nn.relu(tf.nn.bias_add(convolved(image, 1, 1), [A_BIT_MORE, -4]))
        return convolved(tf.nn.max_pool2d(inner, 1, 1, "VALID"), 1, 1)

    assert answer(predict, tf.bfloat16, 2, 2) == [3, 0]
    _, graph = graphs(predict, tf.bfloat16, 2)
    assert graph is not None
    low = {node.op for node in graph.nodes.values() if node.attr["T"].type == tf.bfloat16.as_datatype_enum}
    assert low == {"Conv2D", "BiasAdd", "Relu", "MaxPool"}
    assert sum(node.op == "Cast" for node in graph.nodes.values()) == 2  # on the way in, and out


def test_what_hands_on_numbers_takes_its_other_inputs_as_they_are() -> None:
    """Shapes, paddings and orders of axes are whole numbers."""

    def predict(image: Any) -> Any:
        padded = tf.pad(convolved(image, 1), [[0, 0], [1, 0], [0, 0], [0, 0]])
        turned = tf.transpose(tf.reshape(padded, (-1, 1, 2, 1)), [0, 2, 1, 3])
        return convolved(turned, 1)

    assert answer(predict, tf.bfloat16, A_BIT_MORE) == [0, 1]
    _, graph = graphs(predict, tf.bfloat16)
    assert graph is not None
    assert [node.attr["DstT"].type for node in graph.nodes.values() if node.op == "Cast"] == [
        tf.bfloat16.as_datatype_enum,
        tf.float32.as_datatype_enum,
    ]


def test_an_activation_by_itself_is_left_alone() -> None:
    def predict(image: Any) -> Any:
        return convolved(tf.nn.relu(image + 0.0 * convolved(image, 1)), 1)

    assert answer(predict, tf.bfloat16, A_BIT_MORE) == [A_BIT_MORE]


@pytest.mark.parametrize(
    "predict",
    [
        lambda image: convolved(image, 2),
        lambda image: image * 2,
        lambda image: (convolved(image, 2), convolved(image, 3)),
        lambda image: tf.matmul(tf.matmul(tf.cast(image, tf.float64), [[2.0]]), [[2.0]]),
    ],
)
def test_a_graph_without_inner_kernels_has_no_lower_form(predict: Any) -> None:
    assert graphs(predict, tf.bfloat16)[1] is None


def test_every_output_keeps_its_own_last_kernel() -> None:
    def predict(image: Any) -> Any:
        inner = convolved(image, 1)
        return convolved(inner, A_BIT_MORE), inner, convolved(inner, 3)

    _, graph = graphs(predict, tf.bfloat16)
    assert graph is not None
    found = flat_forward(graph, ["image"], ["a", "b", "c"])(
        {"image": np.full((1, 1, 1, 1), A_BIT_MORE, np.float32)}, ["a", "b", "c"]
    )
    assert [float(each.reshape(())) for each in found.values()] == [A_BIT_MORE, 1, 3]


def test_products_of_what_is_computed_are_lowered_too() -> None:
    """As in attention, where neither side is a weight."""

    def predict(image: Any) -> Any:
        rows = tf.reshape(image, (-1, 1, 1))
        return tf.matmul(tf.matmul(rows, rows), tf.constant([[[A_BIT_MORE]]]))

    assert answer(predict, tf.bfloat16, A_BIT_MORE) == [A_BIT_MORE]


# Whole models


def occluded(model: Servable, image: Any) -> Any:
    rows = OccludeRows(Subject(image), "probabilities", np.zeros((1, 4), np.int32))
    return model.program(Kind.FORWARD, image.shape[:2]).execute([rows])[0].outputs


@pytest.mark.usefixtures("_capable")
@pytest.mark.parametrize("name", ["BF16", "FP16"])
def test_a_model_is_computed_in_what_it_asks_for(saved: Saved, device: DeviceThread, name: Any) -> None:
    path = saved("local")
    model = load_model(path, device.run, precision=name)
    plain = load_model(path, device.run)
    image = numbers(64, 64, 3, seed=4)
    found, expected = occluded(model, image), occluded(plain, image)
    difference = np.abs(found - expected).max() / np.abs(expected).max()
    assert 0 < difference < 0.02
    assert found.dtype == np.float32
    assert 0 < model.description.capabilities.precision_difference < 0.02
    assert plain.description.capabilities.precision_difference == 0
    assert model.description.precision(Kind.FORWARD) == name
    assert model.description.precision(Kind.GRADIENT) == "FP32"
    assert model.description.capabilities.frozen_reason == ""


@pytest.mark.usefixtures("_capable")
def test_a_model_in_16_bits_comes_from_another_process_bit_for_bit(
    saved: Saved, device: DeviceThread
) -> None:
    loader = loader_of(time_slice=1000.0)
    model = loader.load(
        name="tested",
        version=1,
        path=saved("local"),
        complete=lambda signature: (signature, ModelSettings("image", precision="BF16")),
        run=device.run,
    )
    planning = loader._planning
    assert planning is not None
    with TemporaryFile() as constants:
        other = unpack(pack(model, constants), constants, planning, device.run)
    assert other.description == model.description
    image = numbers(64, 64, 3, seed=4)
    assert occluded(other, image).tobytes() == occluded(model, image).tobytes()


@pytest.mark.usefixtures("_capable")
def test_what_cannot_be_computed_in_it_is_refused(saved: Saved, device: DeviceThread) -> None:
    def reason(path: Any, **settings: Any) -> str:
        with pytest.raises(FailedPrecondition) as caught:
            load_model(path, device.run, **{"precision": "BF16", **settings})
        return caught.value.message

    before = "parameter 'vitrail.precision' is BF16, and the model cannot be computed in it: "
    after = "; leave it out for FP32"
    assert reason(saved("linear", numbers(12, 10, 3, 2), numbers(2))) == (
        before + "beside the last one, no convolution or matrix product of its graph is in float32" + after
    )
    assert reason(saved("dropping_out")) == (
        before + "that needs a frozen graph: the model answers differently every time, so nothing can be "
        "compared with it" + after
    )
    cancelled = reason(saved("cancelling", 100.0))
    assert cancelled.startswith(before + "outputs for random images differ by ")
    assert cancelled.endswith(" of the largest, and more than 0.2 is refused" + after)
    overflown = reason(saved("cancelling", 1e4), precision="FP16")
    assert "outputs for random images differ by inf of the largest" in overflown
    assert reason(saved("convolved_with_mean")) == (
        "parameter 'vitrail.precision' is BF16, and 'mean' cannot be computed in it, without a row of "
        "numbers per image; list only other outputs in the configuration"
    )
    assert reason(saved("image_and_text"), image_input=None, image_reason="there is none") == (
        "parameter 'vitrail.precision' is BF16, which is for models with an image: there is none"
    )


@pytest.mark.parametrize(
    ("name", "flags", "capability", "reason"),
    [
        ("FP32", set(), None, ""),
        ("BF16", {"avx2", "avx512f"}, None, "has none of the instructions avx512_bf16, amx_bf16"),
        ("BF16", {"amx_bf16"}, None, ""),
        ("FP16", {"avx512_bf16"}, None, "has none of the instructions avx512_fp16, amx_fp16"),
        ("TF32", {"avx512_bf16"}, None, "only NVIDIA's GPUs have it, and this model runs on the CPU"),
        ("TF32", set(), (8, 0), ""),
        ("TF32", set(), (7, 5), "this GPU has compute capability 7.5, and TF32 needs 8.0"),
        ("BF16", set(), (9, 0), ""),
        ("FP16", set(), (7, 0), ""),
        ("FP16", set(), (6, 1), "this GPU has compute capability 6.1, and FP16 needs 7.0"),
    ],
)
def test_the_device_must_have_it(
    monkeypatch: pytest.MonkeyPatch, name: Any, flags: set[str], capability: Any, reason: str
) -> None:
    monkeypatch.setattr(precision, "processor_flags", lambda: flags)
    monkeypatch.setattr(precision, "gpu_capability", lambda: capability)
    if not reason:
        precision.require(name)
        return
    with pytest.raises(FailedPrecondition) as caught:
        precision.require(name)
    assert reason in caught.value.message
    assert caught.value.message.startswith(f"parameter 'vitrail.precision' is {name}, and the model cannot")


def test_a_cpu_has_no_compute_capability() -> None:
    assert platform.gpu_capability() is None


def test_the_processors_flags_are_read() -> None:
    assert all(each.isascii() and " " not in each for each in processor_flags())
