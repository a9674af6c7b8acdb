import math
from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest

from vitrail import Fill, Gradient, Occlusion
from vitrail.enums import choices
from vitrail.errors import InvalidArgument
from vitrail.methods import (
    ChannelReduction,
    Edge,
    Method,
    Order,
    Resolution,
    WindowScore,
    from_message,
    to_message,
)
from vitrail.tensors import to_tensor
from vitrail.v1 import explanation_pb2 as pb


@pytest.mark.parametrize(
    ("names", "enum"),
    [
        (ChannelReduction, pb.Gradient.ChannelReduction),
        (Edge, pb.Occlusion.Edge),
        (WindowScore, pb.Occlusion.WindowScore),
        (Resolution, pb.Occlusion.Resolution),
        (Order, pb.Occlusion.Order),
    ],
)
def test_the_names_are_those_of_the_wire(names: Any, enum: Any) -> None:
    assert list(get_args(names)) == choices(enum)


def test_a_gradient_is_the_message_with_every_field_set() -> None:
    assert to_message(Gradient()) == pb.Gradient(channel_reduction=pb.Gradient.CHANNEL_REDUCTION_MAX_ABS)
    assert to_message(Gradient(signed=True, channel_reduction="SUM", times_input=True)) == pb.Gradient(
        signed=True, channel_reduction=pb.Gradient.CHANNEL_REDUCTION_SUM, times_input=True
    )


def test_one_number_is_both_sides_of_a_patch_and_what_is_none_stays_unset() -> None:
    message = to_message(Occlusion(32))

    assert message == pb.Occlusion(
        patch=pb.Extent(rows=32, columns=32),
        edge=pb.Occlusion.EDGE_CLIP,
        window_score=pb.Occlusion.WINDOW_SCORE_SIGNED,
        resolution=pb.Occlusion.RESOLUTION_PIXELS,
        order=pb.Occlusion.ORDER_RASTER,
    )
    assert isinstance(message, pb.Occlusion)
    assert not message.HasField("stride")
    assert not message.HasField("fill")


def test_a_pair_is_rows_and_columns() -> None:
    message = to_message(Occlusion((4, 6), stride=(2, 3)))

    assert isinstance(message, pb.Occlusion)
    assert (message.patch.rows, message.patch.columns) == (4, 6)
    assert (message.stride.rows, message.stride.columns) == (2, 3)


IMAGE = np.arange(12, dtype=np.float32).reshape(2, 2, 3)


@pytest.mark.parametrize(
    ("fill", "message"),
    [
        (0.5, pb.Fill(constant=0.5)),
        (0, pb.Fill(constant=0)),
        (np.float32(0.25), pb.Fill(constant=0.25)),
        ((0.1, 0.2, 0.3), pb.Fill(channels=pb.ChannelValues(values=[0.1, 0.2, 0.3]))),
        (np.array([1.0, 2.0]), pb.Fill(channels=pb.ChannelValues(values=[1.0, 2.0]))),
        (IMAGE, pb.Fill(image=to_tensor(IMAGE))),
        (Fill.IMAGE_MEAN, pb.Fill(image_mean=pb.ImageMean())),
        (Fill.blur(3), pb.Fill(blur=pb.Blur(sigma=3))),
    ],
    ids=["number", "zero", "numpy number", "channels", "channel array", "image", "mean", "blur"],
)
def test_fills(fill: Any, message: pb.Fill) -> None:
    sent = to_message(Occlusion(2, fill=fill))

    assert isinstance(sent, pb.Occlusion)
    assert sent.fill == message


@pytest.mark.parametrize(
    "method",
    [
        Gradient(),
        Gradient(signed=True, channel_reduction="NONE", times_input=True),
        Occlusion(6),
        Occlusion((4, 6), (4, 3), 0.5, "SHIFT", "ABSOLUTE", "WINDOWS", "PROGRESSIVE"),
        Occlusion(6, fill=[1.0, 2.0]),
        Occlusion(6, fill=Fill.IMAGE_MEAN),
        Occlusion(6, fill=Fill.blur(2.5)),
        Occlusion(6, fill=IMAGE),
    ],
)
def test_a_method_survives_the_wire(method: Method) -> None:
    again = from_message(to_message(method))

    assert to_message(again) == to_message(method)
    assert type(again) is type(method)


def test_methods_compare_by_value_also_with_image_fills() -> None:
    assert Occlusion(6, fill=IMAGE) == Occlusion(6, fill=IMAGE.copy())
    assert Occlusion(6, fill=IMAGE) != Occlusion(6, fill=IMAGE + 1)
    assert len({Occlusion(6, fill=IMAGE), Occlusion(6, fill=IMAGE.copy()), Gradient(), Gradient()}) == 2


@pytest.mark.parametrize(
    ("make", "arguments", "field"),
    [
        (Gradient, {"channel_reduction": "MAX"}, "spec.gradient.channel_reduction"),
        (Gradient, {"signed": True}, "spec.gradient.signed"),
        (Occlusion, {"patch": 0}, "spec.occlusion.patch.rows"),
        (Occlusion, {"patch": (3, -1)}, "spec.occlusion.patch.columns"),
        (Occlusion, {"patch": (3, 3, 3)}, "spec.occlusion.patch"),
        (Occlusion, {"patch": "3"}, "spec.occlusion.patch"),
        (Occlusion, {"patch": 2.5}, "spec.occlusion.patch"),
        (Occlusion, {"patch": 2**32}, "spec.occlusion.patch.rows"),
        (Occlusion, {"patch": 4, "stride": 0}, "spec.occlusion.stride.rows"),
        (Occlusion, {"patch": 4, "stride": (4, 5)}, "spec.occlusion.stride.columns"),
        (Occlusion, {"patch": 4, "edge": "WRAP"}, "spec.occlusion.edge"),
        (Occlusion, {"patch": 4, "window_score": "MEAN"}, "spec.occlusion.window_score"),
        (Occlusion, {"patch": 4, "resolution": "PIXEL"}, "spec.occlusion.resolution"),
        (Occlusion, {"patch": 4, "order": "RANDOM"}, "spec.occlusion.order"),
        (Occlusion, {"patch": 4, "fill": math.nan}, "spec.occlusion.fill.constant"),
        (Occlusion, {"patch": 4, "fill": [0, math.inf]}, "spec.occlusion.fill.channels"),
        (Occlusion, {"patch": 4, "fill": []}, "spec.occlusion.fill.channels"),
        (Occlusion, {"patch": 4, "fill": "mean"}, "spec.occlusion.fill"),
        (Occlusion, {"patch": 4, "fill": [[1, 2]]}, "spec.occlusion.fill"),
        (Occlusion, {"patch": 4, "fill": np.zeros((2, 2), complex)}, "spec.occlusion.fill.image"),
        (Fill.blur, {"sigma": 0}, "spec.occlusion.fill.blur.sigma"),
        (Fill.blur, {"sigma": math.nan}, "spec.occlusion.fill.blur.sigma"),
    ],
)
def test_what_no_server_could_accept_is_refused_with_its_field(
    make: Callable[..., object], arguments: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        make(**arguments)

    assert caught.value.field == field
    assert field in caught.value.message
