"""The process that prepares models for the server: loads, freezes, tries and measures them.

What takes seconds of Python and of the processor happens here, at a low priority, so that the streams of
other models go on; and what ends the process ends nothing else. Run as a module with the number of a file
descriptor, it serves the connection there until it is idle or the other end is closed.
"""

import os
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle
from typing import BinaryIO, TypeVar

from vitrail.errors import FailedPrecondition, VitrailError
from vitrail_server.savedmodel.messages import (
    Answer,
    Completion,
    NotPrepared,
    Refused,
    Taken,
    Task,
    Unprepared,
)
from vitrail_server.servable import ModelSettings, Signature
from vitrail_server.wording import cause_of
from vitrail_server.work import OutOfMemory

T = TypeVar("T")

IDLE_SECONDS = 5.0
"""How long the process waits for another model."""

NICENESS = 10
"""Its priority: a tenth of what the server gets, where they compete for a core."""


class _Abandoned(Exception):
    """The server refuses the model."""


def main() -> None:
    """Serve the connection."""
    os.nice(NICENESS)
    connection = Connection(int(sys.argv[1]))
    try:
        while connection.poll(IDLE_SECONDS):
            task: Task = connection.recv()
            with os.fdopen(recv_handle(connection), "wb") as constants:
                connection.send(Taken())
                try:
                    answer = prepare(task, connection, constants)
                except _Abandoned:
                    continue
            connection.send(answer)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the server has gone


def prepare(task: Task, connection: Connection, constants: BinaryIO) -> Answer:
    """Return the model, prepared, or why it is not; its constants are written to a file."""
    # TensorFlow takes seconds to import; the server should learn before that the process is alive.
    from vitrail_server.savedmodel.loader import SavedModelLoader
    from vitrail_server.savedmodel.memory import release_memory
    from vitrail_server.savedmodel.platform import configure
    from vitrail_server.savedmodel.prepared import pack

    configure(task.intra_op_threads, task.inter_op_threads)

    def complete(signature: Signature) -> tuple[Signature, ModelSettings]:
        connection.send(signature)
        completion: Completion = connection.recv()
        if completion.completed is None:
            raise _Abandoned
        return completion.completed

    loader = SavedModelLoader(time_slice=task.time_slice, batch_bytes=task.batch_bytes, sizes=task.sizes)
    try:
        model = loader.load(
            name=task.name,
            version=task.version,
            path=task.path,
            complete=complete,
            run=_at_once,
            freezes=task.freezes,
        )
        prepared = pack(model, constants)
    except NotPrepared as error:
        return Unprepared(str(error))
    except OutOfMemory as error:
        return Refused(str(error), out_of_memory=True)
    except FailedPrecondition as error:
        return Refused(error.message, cause_of(error))
    except VitrailError:
        raise
    except _Abandoned:
        raise
    except Exception as error:  # noqa: BLE001 - the server tries for itself, and says what it finds
        return Unprepared(f"{type(error).__name__}: {error}")
    finally:
        model = None  # type: ignore[assignment]  # what follows must find it gone
        release_memory()
    return prepared


def _at_once(execute: Callable[[], T], /) -> T:
    return execute()


if __name__ == "__main__":
    main()
