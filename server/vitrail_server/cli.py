"""`vitrail-server`: reads the settings, runs the server until it is told to stop.

The first SIGTERM or SIGINT drains the server, a second one ends it at once.
"""

import asyncio
import os
import signal
import sys
from typing import Final

from vitrail_server.logs import configure_logs
from vitrail_server.settings import Settings, parse

SIGNALS: Final = signal.SIGTERM, signal.SIGINT


def main() -> None:
    """Run the command line."""
    settings = parse(sys.argv[1:])
    configure_logs(settings.log_level, settings.log_format)
    # TensorFlow and gRPC read their environment when they are imported, which comes after this. What
    # gRPC's core has to say of a port that cannot be had is said by us.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from vitrail.errors import VitrailError

    try:
        sys.exit(asyncio.run(_serve(settings)))
    except VitrailError as error:
        print(f"vitrail-server: {error.message}", file=sys.stderr)
        sys.exit(1)


async def _serve(settings: Settings) -> int:
    """Serve until a signal; return the exit status."""
    from vitrail_server.server import Server

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal(number: int) -> None:
        # The second one must not need the event loop, which may wait for a batch that hangs.
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        if stop.is_set():  # it came before the first one was answered
            signal.raise_signal(number)
        stop.set()

    for each in SIGNALS:
        loop.add_signal_handler(each, on_signal, each)
    async with Server(settings) as server:
        loading = asyncio.create_task(server.load())
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait((loading, stopping), return_when=asyncio.FIRST_COMPLETED)
        if loading.done() and not loading.result() and settings.exit_on_error:
            print("vitrail-server: a model failed to load (--exit-on-error)", file=sys.stderr)
            return 1
        await stopping
        if not loading.done():
            loading.cancel()
    return 0
