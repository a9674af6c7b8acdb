import pytest

from vitrail.enums import choices, name_of, value_of
from vitrail.errors import InvalidArgument
from vitrail.v1 import explanation_pb2 as pb


def test_short_names_leave_the_prefix_and_the_unspecified_value_out() -> None:
    assert choices(pb.Occlusion.Edge) == ["CLIP", "SHIFT"]


def test_a_short_name_is_a_value_and_back() -> None:
    assert value_of(pb.Occlusion.Edge, "SHIFT", "spec.occlusion.edge") == pb.Occlusion.EDGE_SHIFT
    assert name_of(pb.Occlusion.Edge, pb.Occlusion.EDGE_SHIFT) == "SHIFT"


@pytest.mark.parametrize("name", ["UNSPECIFIED", "EDGE_CLIP", "clip", ""])
def test_any_other_name_is_refused_with_the_choices(name: str) -> None:
    with pytest.raises(InvalidArgument, match="use one of CLIP, SHIFT") as caught:
        value_of(pb.Occlusion.Edge, name, "spec.occlusion.edge")

    assert caught.value.field == "spec.occlusion.edge"


def test_a_number_from_a_newer_server_is_shown_as_it_is() -> None:
    message = pb.Occlusion.FromString(
        pb.Occlusion(edge=pb.Occlusion.EDGE_SHIFT).SerializeToString()[:-1] + b"\x63"
    )

    assert name_of(pb.Occlusion.Edge, message.edge) == "99"
