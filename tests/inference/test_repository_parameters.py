"""The parameters of the repository's rpcs: what they may be, and what is refused with Triton's texts."""

from typing import Any

import pytest

from vitrail.errors import InvalidArgument, Unimplemented
from vitrail_server.kserve.v2 import grpc_service_pb2 as pb
from vitrail_server.rpc.inference.repository import (
    LoadOptions,
    load_options,
    refuse_repository,
    unload_waits,
)


def parameters(**values: Any) -> dict[str, pb.ModelRepositoryParameter]:
    kinds = {bool: "bool_param", int: "int64_param", str: "string_param", bytes: "bytes_param"}
    return {
        name: pb.ModelRepositoryParameter(**{kinds[type(value)]: value}) for name, value in values.items()
    }


def test_what_comes_with_a_load_is_read() -> None:
    assert load_options({}) == LoadOptions(None, {}, force=False)
    given = parameters(config="{}", vitrail_force=True, **{"file:1/model": b"\0"})
    assert load_options(given) == LoadOptions("{}", {"file:1/model": b"\0"}, force=True)
    assert not load_options(parameters(vitrail_force=False)).force


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (parameters(force=True), "unrecognized load parameter 'force'."),
        (
            parameters(config=b"{}"),
            "invalid value type for load parameter 'config', expected string_param.",
        ),
        (
            parameters(vitrail_force="true"),
            "invalid value type for load parameter 'vitrail_force', expected bool_param.",
        ),
        (
            parameters(**{"file:1/model": "text"}),
            "invalid value type for load parameter 'file:1/model', expected bytes_param.",
        ),
    ],
)
def test_what_a_load_cannot_take_is_refused(
    given: dict[str, pb.ModelRepositoryParameter], message: str
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        load_options(given)
    assert caught.value.message == message


def test_an_unload_waits_if_it_is_asked_to() -> None:
    assert not unload_waits({})
    assert not unload_waits(parameters(unload_dependents=True))
    assert unload_waits(parameters(vitrail_wait=True, unload_dependents=False))
    with pytest.raises(InvalidArgument, match="unrecognized unload parameter 'wait'"):
        unload_waits(parameters(wait=True))
    with pytest.raises(InvalidArgument, match="'vitrail_wait', expected bool_param"):
        unload_waits(parameters(vitrail_wait=1))


def test_one_of_several_repositories_cannot_be_named() -> None:
    refuse_repository("")
    with pytest.raises(Unimplemented, match="'repository_name' specification is not supported"):
        refuse_repository("models")
