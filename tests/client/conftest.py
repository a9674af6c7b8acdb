"""Fixtures of the client's tests."""

from collections.abc import Iterator

import pytest

from vitrail import Client

from .fake_server import FakeServer


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as running:
        yield running


@pytest.fixture
def client(server: FakeServer) -> Iterator[Client]:
    with Client(server.target) as connected:
        yield connected
