"""Decoding as a function: every crop lies in the picture, and no file brings it down."""

import struct

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from fakes.properties import examples
from vitrail.errors import VitrailError
from vitrail.v1 import explanation_pb2 as pb
from vitrail.v1.tensor_pb2 import Tensor
from vitrail_server.rpc import codec
from vitrail_server.rpc.images import decode, source_box

from .files import SIGNATURE, chunk, described, saved

SHAPE = (6, 8, 3)
COLOURS = np.random.default_rng(0).integers(0, 256, SHAPE, np.uint8)

ORIENTATION = int(ExifTags.Base.Orientation)

SIDES = st.integers(1, 70_000)


@given(SIDES, SIDES, st.tuples(SIDES, SIDES))
@example(29, 97, (224, 224))  # 29 / 224 * 224 is more than 29 in floating point
@examples(300)
def test_a_crop_lies_in_the_picture_and_has_the_models_proportions(
    height: int, width: int, size: tuple[int, int]
) -> None:
    part = source_box(height, width, size, crop=True)

    assert min(part.top, part.left) >= 0
    assert part.top + part.height <= height
    assert part.left + part.width <= width
    assert part.height == height or part.width == width
    assert np.isclose(part.height * size[1], part.width * size[0])


def _victims() -> list[bytes]:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    exif[int(ExifTags.Base.ImageDescription)] = "a picture"
    exif[int(ExifTags.IFD.Exif)] = {int(ExifTags.Base.DateTimeOriginal): "2020:01:01 00:00:00"}
    exif[int(ExifTags.IFD.GPSInfo)] = {1: "N", 2: (1.0, 2.0, 3.0)}
    notes = PngInfo()
    notes.add_text("a", "b" * 50, zip=True)
    notes.add_itxt("c", "d" * 50, zip=True)
    deep = COLOURS[:, :, 0].astype(np.uint16) * 257
    return [
        saved(COLOURS, exif=exif),
        saved(COLOURS, pnginfo=notes, icc_profile=b"profile"),
        saved(deep),
        saved(COLOURS, "JPEG", exif=exif),
        saved(COLOURS, "JPEG", exif=exif, progressive=True),
    ]


VICTIMS = _victims()
MUTATIONS = st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=4), st.integers(0, 4)), max_size=5)


def with_right_checksums(png: bytes) -> bytes:
    """Return a PNG whose chunks pass the check, so that what is wrong in them is read."""
    result, rest = png[:8], png[8:]
    while len(rest) >= 12:
        (size,) = struct.unpack(">I", rest[:4])
        if size > len(rest) - 12:
            break
        result, rest = result + chunk(rest[4:8], rest[8 : 8 + size]), rest[12 + size :]
    return result + rest


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@given(st.sampled_from(VICTIMS), MUTATIONS)
@examples(300)
def test_whatever_is_wrong_with_a_file_is_an_error_of_ours(
    victim: bytes, mutations: list[tuple[float, bytes, int]]
) -> None:
    file = victim
    for where, inserted, removed in mutations:
        at = int(where * len(file))
        file = file[:at] + inserted + file[at + removed :]
    if victim.startswith(SIGNATURE):
        file = with_right_checksums(file)
    try:
        image, covered = decode(file, described(SHAPE), 1_000_000)
    except VitrailError as error:
        refused = error
    else:
        assert image.shape == SHAPE
        assert np.isfinite(image).all()
        assert covered.height >= 1
        return
    assert refused.field == "spec.image.encoded"


def tensor_of(*shape: int) -> pb.Image:
    return pb.Image(tensor=Tensor(shape=shape))


@pytest.mark.parametrize(
    ("spec", "light"),
    [
        (pb.ExplanationSpec(gradient=pb.Gradient(), image=tensor_of(224, 224, 3)), True),
        (pb.ExplanationSpec(gradient=pb.Gradient(), image=tensor_of(1024, 1024, 3)), False),
        (pb.ExplanationSpec(gradient=pb.Gradient(), image=tensor_of(*[0] * 9)), False),
        (pb.ExplanationSpec(gradient=pb.Gradient(), image=pb.Image(encoded=b"a photo")), False),
        (pb.ExplanationSpec(occlusion=pb.Occlusion(), image=tensor_of(224, 224, 3)), False),
        (pb.ExplanationSpec(image=tensor_of(224, 224, 3)), False),
        (pb.ExplanationSpec(gradient=pb.Gradient()), False),
    ],
)
def test_only_small_tensors_whose_gradient_is_asked_for_stay_on_the_event_loop(
    spec: pb.ExplanationSpec, light: bool
) -> None:
    assert codec.is_light(spec) == light
