import pytest

from vitrail.errors import BY_CODE, Code, Internal, InvalidArgument, Unavailable, VitrailError
from vitrail.status import from_status, to_status


@pytest.mark.parametrize("kind", BY_CODE.values())
def test_every_error_survives_the_wire(kind: type[VitrailError]) -> None:
    error = from_status(to_status(kind("what and why", field="spec.image", retry_delay=1.5)))

    assert type(error) is kind
    assert (error.message, error.field, error.retry_delay) == ("what and why", "spec.image", 1.5)


def test_what_an_error_does_not_say_is_not_invented() -> None:
    error = from_status(to_status(InvalidArgument("wrong")))

    assert (error.field, error.retry_delay) == ("", None)
    assert len(to_status(Unavailable("later")).details) == 1


def test_every_code_has_its_class() -> None:
    assert set(BY_CODE) == set(Code)


def test_a_code_that_vitrail_never_sends_is_a_fault() -> None:
    status = to_status(Internal("data loss"))
    status.code = 15

    assert type(from_status(status)) is Internal
