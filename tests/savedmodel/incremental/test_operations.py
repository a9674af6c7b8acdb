"""Every operation that is computed in part, against the whole graph: paddings, strides, dilations."""

from collections.abc import Callable

import numpy as np
import pytest
import tensorflow as tf

from savedmodel.incremental.nets import Tensor, check, is_regional, kernel, net, numbers

SIZE = (23, 26)
"""Not square, and neither even nor odd in both axes."""

WINDOWED: dict[str, Callable[..., Tensor]] = {
    "Conv2D": lambda x, size, stride, padding: tf.nn.conv2d(
        x, kernel(size, size, x.shape[3], 4), stride, padding
    ),
    "DepthwiseConv2dNative": lambda x, size, stride, padding: tf.nn.depthwise_conv2d(
        x, kernel(size, size, x.shape[3], 2), (1, stride, stride, 1), padding
    ),
    "MaxPool": lambda x, size, stride, padding: tf.nn.max_pool2d(x, size, stride, padding),
    "AvgPool": lambda x, size, stride, padding: tf.nn.avg_pool2d(x, size, stride, padding),
}


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("operation", WINDOWED)
def test_sliding_windows(operation: str, size: int) -> None:
    """All strides and paddings in one graph, each after an operation, so that its input is a region."""

    def predict(image: Tensor) -> list[Tensor]:
        features = tf.nn.relu(image) - 0.5
        return [
            WINDOWED[operation](features, size, stride, padding)
            for stride in (1, 2, 3)
            for padding in ("SAME", "VALID")
        ]

    plan = check(net(predict, SIZE), patch=(3, 4), stride=(2, 3), every=True)

    assert sum(step.node.op == operation for step in plan.steps) >= (6 if size < 5 else 4)


@pytest.mark.parametrize("dilation", [2, 3])
def test_dilations(dilation: int) -> None:
    def predict(image: Tensor) -> list[Tensor]:
        return [
            tf.nn.conv2d(image, kernel(3, 3, 3, 4), 1, padding, dilations=dilation)
            for padding in ("SAME", "VALID")
        ] + [
            tf.nn.depthwise_conv2d(image, kernel(3, 3, 3, 1), (1, 1, 1, 1), "SAME", dilations=(dilation,) * 2)
        ]

    tested = net(predict, SIZE)
    plan = check(tested, patch=(3, 4), every=True)

    assert is_regional(plan, "Conv2D")


def test_a_kernel_and_a_stride_for_each_axis() -> None:
    def predict(image: Tensor) -> list[Tensor]:
        wide = tf.nn.conv2d(image, kernel(1, 7, 3, 4), (1, 1), "SAME")
        return [
            tf.nn.conv2d(wide, kernel(7, 1, 4, 4), (2, 1), "SAME"),
            tf.nn.max_pool2d(wide, (3, 1), (1, 2), "SAME"),
        ]

    check(net(predict, SIZE), patch=(4, 3), every=True)


def test_explicit_paddings() -> None:
    paddings = [[0, 0], [3, 1], [0, 2], [0, 0]]

    def predict(image: Tensor) -> list[Tensor]:
        return [
            tf.nn.conv2d(image, kernel(3, 3, 3, 4), 2, paddings),
            tf.nn.depthwise_conv2d(image, kernel(3, 3, 3, 1), (1, 2, 2, 1), paddings),
            tf.raw_ops.MaxPool(
                input=image,
                ksize=(1, 3, 3, 1),
                strides=(1, 1, 1, 1),
                padding="EXPLICIT",
                explicit_paddings=[0, 0, 1, 0, 1, 1, 0, 0],
            ),
        ]

    check(net(predict, SIZE), patch=(3, 3), every=True)


@pytest.mark.parametrize("value", [0.0, 1.5])
def test_pads(value: float) -> None:
    def predict(image: Tensor) -> Tensor:
        padded = tf.pad(image * 2, [[0, 0], [2, 1], [0, 3], [0, 0]], constant_values=value)
        return tf.nn.conv2d(padded, kernel(5, 5, 3, 4), 2, "VALID")

    plan = check(net(predict, SIZE), patch=(3, 4), every=True)

    assert is_regional(plan, "Conv2D")


UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "Relu": tf.nn.relu,
    "Relu6": tf.nn.relu6,
    "LeakyRelu": tf.nn.leaky_relu,
    "Elu": tf.nn.elu,
    "Selu": tf.nn.selu,
    "Sigmoid": tf.sigmoid,
    "Tanh": tf.tanh,
    "Softplus": tf.nn.softplus,
    "Softmax": tf.nn.softmax,
    "Erf": tf.math.erf,
    "Exp": tf.exp,
    "Square": tf.square,
    "Neg": tf.negative,
    "Cast": lambda x: tf.cast(tf.cast(x, tf.float64), tf.float32),
    "ClipByValue": lambda x: tf.raw_ops.ClipByValue(t=x, clip_value_min=-0.5, clip_value_max=0.5),
    "Mul": lambda x: x * tf.sigmoid(x),  # swish
    "AddV2": lambda x: x + numbers(3),
    "Sub": lambda x: numbers(1, 1, 1, 3) - x,
    "RealDiv": lambda x: x / np.float32(127.5),
    "Maximum": lambda x: tf.maximum(x, 0.1 * x),
    "BiasAdd": lambda x: tf.nn.bias_add(x, numbers(3)),
    "FusedBatchNormV3": lambda x: tf.raw_ops.FusedBatchNormV3(
        x=x, scale=numbers(3), offset=numbers(3), mean=numbers(3), variance=numbers(3) ** 2, is_training=False
    )[0],
    "Mean": lambda x: x - tf.reduce_mean(x, -1, keepdims=True),
    "ReverseV2": lambda x: tf.reverse(x, [-1]),
    "StridedSlice": lambda x: x[..., ::-1],
    "SelectV2": lambda x: tf.where(x > 0, x, tf.zeros_like(x[..., :1]) - 0.3 * x),
}


@pytest.mark.parametrize("part", range(3))
def test_operations_on_single_pixels(part: int) -> None:
    """Each before and after a convolution."""
    operations = list(UNARY)[part::3]

    def predict(image: Tensor) -> list[Tensor]:
        return [
            tf.reduce_mean(
                UNARY[each](tf.nn.conv2d(UNARY[each](image), kernel(3, 3, 3, 3), 1, "SAME")), [1, 2]
            )
            for each in operations
        ]

    plan = check(net(predict, (19, 16)), patch=(3, 4))

    assert [each for each in operations if not is_regional(plan, each)] == []
    assert sum(step.node.op == "Conv2D" for step in plan.steps) == len(operations)


def fused(kind: str, x: Tensor, filters: Tensor, arguments: list[Tensor], names: list[str]) -> Tensor:
    """An operation that TensorFlow's optimiser makes of several."""
    graph = x.graph
    attributes = {
        "T": tf.float32,
        "strides": [1, 1, 1, 1],
        "padding": "SAME",
        "data_format": "NHWC",
        "dilations": [1, 1, 1, 1],
        "fused_ops": names,
        "epsilon": 0.0,
        "num_args": len(arguments),
    }
    if kind == "_FusedConv2D":
        attributes |= {"explicit_paddings": [], "filter_format": "HWIO", "leakyrelu_alpha": 0.2}
        attributes |= {"TArgs": [tf.float32] * len(arguments), "num_host_args": 0, "use_cudnn_on_gpu": True}
    definition = tf.compat.v1.NodeDef(name=f"fused_{len(graph.get_operations())}", op=kind)
    definition.input.extend(["x", "filters", *(f"argument_{n}" for n in range(len(arguments)))])
    for name, value in attributes.items():
        attribute = definition.attr[name]
        match value:
            case bool():
                attribute.b = value
            case int():
                attribute.i = value
            case float():
                attribute.f = value
            case str():
                attribute.s = value.encode()
            case tf.DType():
                attribute.type = value.as_datatype_enum
            case _ if name == "TArgs":
                attribute.list.type.extend(each.as_datatype_enum for each in value)
            case _ if name == "fused_ops":
                attribute.list.s.extend(each.encode() for each in value)
            case _:
                attribute.list.i.extend(value)
    tensors = {"x:0": x, "filters:0": filters}
    tensors |= {f"argument_{n}:0": tf.convert_to_tensor(each) for n, each in enumerate(arguments)}
    graph_definition = tf.compat.v1.GraphDef()
    graph_definition.node.append(definition)
    [output] = tf.graph_util.import_graph_def(graph_definition, tensors, [f"{definition.name}:0"], name="")
    return output


def test_fused_convolutions() -> None:
    """With a bias and an activation, and with a residual that goes along with the output."""

    def predict(image: Tensor) -> list[Tensor]:
        first = fused("_FusedConv2D", image, kernel(3, 3, 3, 4), [numbers(4)], ["BiasAdd", "Relu"])
        second = fused(
            "_FusedConv2D", first, kernel(3, 3, 4, 4, seed=2), [numbers(4), first], ["BiasAdd", "Add"]
        )
        third = fused(
            "_FusedDepthwiseConv2dNative", second, kernel(3, 3, 4, 1), [numbers(4)], ["BiasAdd", "Relu6"]
        )
        return [tf.nn.relu(third)]

    plan = check(net(predict, (20, 22)), patch=(3, 3), every=True)

    assert [step.node.op for step in plan.steps] == [
        "_FusedConv2D",
        "_FusedConv2D",
        "_FusedDepthwiseConv2dNative",
        "Relu",
    ]


def test_grouped_convolutions() -> None:
    def predict(image: Tensor) -> Tensor:
        return tf.nn.conv2d(tf.nn.conv2d(image, kernel(3, 3, 3, 4), 1, "SAME"), kernel(3, 3, 2, 6), 2, "SAME")

    plan = check(net(predict, SIZE), patch=(3, 4), every=True)

    assert len(plan.steps) == 2


def test_a_stride_may_step_over_whole_windows() -> None:
    """Some windows change nothing at all, and their regions stand for what does not change."""

    def predict(image: Tensor) -> Tensor:
        return tf.nn.conv2d(image, kernel(1, 1, 3, 4), 3, "VALID")

    check(net(predict, (17, 19)), patch=(1, 1), every=True)
