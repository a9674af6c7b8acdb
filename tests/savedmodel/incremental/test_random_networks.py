"""Random networks of all that is known, and of some that is not, against the full forward."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from savedmodel.incremental.nets import Tensor, check, kernel, net, numbers

SIZE = (21, 18)

Layer = Callable[[Tensor, int], Tensor]

LAYERS: dict[str, Layer] = {
    "3 x 3": lambda x, seed: tf.nn.conv2d(x, kernel(3, 3, x.shape[3], 4, seed=seed), 1, "SAME"),
    "3 x 3, valid": lambda x, seed: tf.nn.conv2d(x, kernel(3, 3, x.shape[3], 3, seed=seed), 1, "VALID"),
    "5 x 5, strided": lambda x, seed: tf.nn.conv2d(x, kernel(5, 5, x.shape[3], 4, seed=seed), 2, "SAME"),
    "1 x 1, strided": lambda x, seed: tf.nn.conv2d(x, kernel(1, 1, x.shape[3], 5, seed=seed), 2, "VALID"),
    "dilated": lambda x, seed: tf.nn.conv2d(
        x, kernel(3, 3, x.shape[3], 4, seed=seed), 1, "SAME", dilations=2
    ),
    "depthwise": lambda x, seed: tf.nn.depthwise_conv2d(
        x, kernel(3, 3, x.shape[3], 1, seed=seed), (1, 1, 1, 1), "SAME"
    ),
    "largest": lambda x, seed: tf.nn.max_pool2d(x, 3, 2, "SAME"),
    "average": lambda x, seed: tf.nn.avg_pool2d(x, 3, 1, "SAME"),
    "pad": lambda x, seed: tf.pad(x, [[0, 0], [seed % 3, 1], [0, seed % 2], [0, 0]]),
    "norm": lambda x, seed: x * numbers(x.shape[3], seed=seed) + numbers(x.shape[3], seed=seed + 1),
    "activation": lambda x, seed: tf.nn.relu6(x),
    "swish": lambda x, seed: x * tf.sigmoid(x),
    "squeeze and excite": lambda x, seed: x * tf.sigmoid(tf.reduce_mean(x, [1, 2], keepdims=True)),
    "mirror": lambda x, seed: tf.reverse(x, [2]),
}


def joined(one: Tensor, other: Tensor) -> Tensor:
    """Add what has one shape, concatenate what has one size, and crop the larger of two sizes first."""
    height, width = (min(one.shape[axis], other.shape[axis]) for axis in (1, 2))
    if one.shape[1:3] != other.shape[1:3]:
        one, other = one[:, :height, :width], other[:, :height, :width]
    return one + other if one.shape[3] == other.shape[3] else tf.concat([one, other], 3)


@settings(
    max_examples=8, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
@given(data=st.data())
def test_any_network(data: st.DataObject) -> None:
    """Each operation takes any of the maps before it; the last ones are the outputs."""
    choices = st.tuples(st.sampled_from([*LAYERS, "join"]), st.integers(0, 20), st.integers(0, 20))
    plan = data.draw(st.lists(choices, min_size=3, max_size=9), label="operations")
    patch = data.draw(st.tuples(st.integers(1, 6), st.integers(1, 6)), label="patch")
    fill = data.draw(st.sampled_from(["constant", "channels", "image"]), label="fill")
    edge: Any = data.draw(st.sampled_from(["CLIP", "SHIFT"]), label="edge")

    def predict(image: Tensor) -> list[Tensor]:
        maps = [image]
        for seed, (operation, one, other) in enumerate(plan):
            x = maps[-1 - one % min(3, len(maps))]
            if min(x.shape[1:3]) < 5:
                continue
            y = joined(x, maps[other % len(maps)]) if operation == "join" else LAYERS[operation](x, seed)
            maps.append(y)
        return [tf.reduce_mean(maps[-1], [1, 2]), maps[len(maps) // 2]]

    check(net(predict, SIZE), patch=patch, fill=fill, edge=edge)
