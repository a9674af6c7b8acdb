"""docs/clients/triton.md is held to the code."""

import re
from pathlib import Path
from typing import Any

import pytest

from vitrail.v1 import explanation_pb2 as v1
from vitrail_server.rpc.codec import METHODS
from vitrail_server.rpc.inference.handlers import REFUSED
from vitrail_server.rpc.inference.options import COMMON, OPTIONS

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "clients" / "triton.md").read_text("utf-8")


def test_every_option_is_on_the_page() -> None:
    documented: dict[str, str] = {}
    for line in PAGE.splitlines():
        if match := re.match(r"\| `vitrail_(\w+)` \|.*\| ([\w ]+) \|$", line):
            documented[match[1]] = match[2]
    expected = {"method": "required"} | dict.fromkeys(COMMON, "every method")
    for method, of_method in OPTIONS.items():
        expected |= dict.fromkeys(of_method, method)
    assert documented == expected
    assert set(OPTIONS) == set(METHODS)


@pytest.mark.parametrize(("method", "message"), [("gradient", v1.Gradient), ("occlusion", v1.Occlusion)])
def test_every_parameter_of_a_method_is_an_option(method: str, message: Any) -> None:
    assert set(OPTIONS[method]) == {field.name for field in message.DESCRIPTOR.fields}


def test_what_is_refused_is_said() -> None:
    families = {re.sub("(Status|Register|Unregister|Setting)$", "", name) for name in REFUSED}
    assert families == {"Trace", "SystemSharedMemory", "CudaSharedMemory"}
    assert "shared memory and traces, refused by name" in PAGE
