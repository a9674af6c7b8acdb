"""A real server with closed-form models behind it, and a connection that speaks bytes."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from conformance.api import Connection
from conformance.models import everything
from fakes.serving import Served, served


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    """One server for every test of a module that leaves nothing behind."""
    async with served(tmp_path_factory.mktemp("conformance"), everything()) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def wire(server: Served) -> Connection:
    """A connection to it."""
    return Connection(server.channel)
