"""`vitrail-server` with an event loop that hangs when the server is to stop, for tests of a whole process.

Run as `python -m fakes.hanging_server` with the arguments of `vitrail-server`. It prints a dot when it
serves, another one when it hangs, and goes on when standard input is closed.
"""

import sys
from typing import Self

import vitrail_server.server
from vitrail_server.cli import main
from vitrail_server.settings import Settings


class HangingServer:
    """Serves nothing, and waits for ever on the event loop's own thread."""

    def __init__(self, settings: Settings) -> None:
        pass

    async def __aenter__(self) -> Self:
        return self

    async def load(self) -> bool:
        print(".", end="", flush=True)  # noqa: T201 - this is how the test learns of it
        return True

    async def __aexit__(self, *_: object) -> None:
        print(".", end="", flush=True)  # noqa: T201
        sys.stdin.buffer.read()


if __name__ == "__main__":
    vitrail_server.server.Server = HangingServer  # type: ignore[assignment,misc]
    main()
