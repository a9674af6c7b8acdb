"""Every client against a scripted server: UNAVAILABLE is tried again, and never after the first message."""

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from client.fake_server import UNTIL_CANCELLED, FakeServer
from client.messages import whole_map
from polyglot.programs import Program, every_program
from vitrail.errors import Internal, ResourceExhausted, Unavailable


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as running:
        yield running


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """Two MiB that this server does not look at: more than gRPC's libraries keep for retries by default."""
    path = tmp_path / "photo.png"
    path.write_bytes(bytes(2 << 20))
    return path


@every_program
async def test_unavailable_before_the_first_message_is_tried_again(
    program: Program, server: FakeServer, photo: Path
) -> None:
    server.scripts += [[Unavailable("loading", retry_delay=0.1)], [Unavailable("loading")], whole_map()]

    outcome = await program.run("--server", server.target, "--model", "net", photo)

    assert outcome.code == 0, outcome.error
    assert "COMPLETE: " in outcome.out
    assert [len(request.spec.image.encoded) for request in server.requests] == [2 << 20] * 3


@every_program
async def test_unavailable_after_the_first_message_is_not_tried_again(
    program: Program, server: FakeServer, photo: Path
) -> None:
    plan, tile, *_ = whole_map()
    server.scripts += [[plan, tile, Unavailable("going down", retry_delay=1.5)], whole_map()]

    outcome = await program.run("--server", server.target, "--model", "net", photo)

    assert outcome.code == 1
    assert outcome.error.endswith("error: UNAVAILABLE: going down\n  retry after: 1.5 s\n")
    assert len(server.requests) == 1


@every_program
@pytest.mark.parametrize("error", [Internal("a fault"), ResourceExhausted("full", retry_delay=1.0)])
async def test_nothing_but_unavailable_is_tried_again(
    program: Program, server: FakeServer, photo: Path, error: Internal | ResourceExhausted
) -> None:
    server.scripts += [[error], whole_map()]

    outcome = await program.run("--server", server.target, "--model", "net", photo)

    assert outcome.code == 1
    assert outcome.error.startswith(f"error: {error.reason}: {error.message}\n")
    assert ("retry after: 1 s" in outcome.error) == (error.retry_delay is not None)
    assert len(server.requests) == 1


@every_program
async def test_a_server_that_is_not_there_is_unavailable(program: Program, photo: Path) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        target = f"127.0.0.1:{nobody.getsockname()[1]}"
        outcome = await program.run("--server", target, "--model", "net", photo)

    assert outcome.code == 1
    assert outcome.error.startswith("error: UNAVAILABLE: ")


@every_program
async def test_the_deadline_is_a_little_later_than_the_time_budget(
    program: Program, server: FakeServer, photo: Path
) -> None:
    server.scripts += [whole_map(), whole_map()]

    await program.run("--server", server.target, "--model", "net", "--timeout", 60.5, photo)
    await program.run("--server", server.target, "--model", "net", photo)

    budgets = [request.spec.time_budget.ToNanoseconds() / 1e9 for request in server.requests]
    assert budgets == [60.5, 0.0]
    [limited, unlimited] = server.deadlines
    assert limited is not None
    assert 60.5 < limited < 60.5 * 1.05 + 2  # gRPC may round the 64.525 s up
    assert unlimited is None or unlimited > 10**6


@every_program
async def test_cancelling_reaches_a_server_that_has_nothing_more_to_say(
    program: Program, server: FakeServer, photo: Path
) -> None:
    plan, tile, *_ = whole_map()
    server.scripts += [[plan, tile, UNTIL_CANCELLED]]

    outcome = await program.run("--server", server.target, "--model", "net", "--cancel-after-tiles", 1, photo)

    assert outcome.code == 0, outcome.error
    assert await asyncio.to_thread(server.cancelled.wait, 30)
