"""Loads models with the help of a process that prepares them (`preparing`).

What comes back is traced here and run once. What the process cannot hand over, because it cannot become a
flat graph, is loaded here as well.
"""

import logging
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from multiprocessing.connection import Connection
from multiprocessing.reduction import send_handle
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, BinaryIO

from vitrail.errors import FailedPrecondition, Unavailable
from vitrail_server.savedmodel.incremental.budget import CacheBudget
from vitrail_server.savedmodel.messages import (
    Answer,
    Completion,
    Prepared,
    Refused,
    Sizes,
    Taken,
    Task,
    Unprepared,
)
from vitrail_server.servable import ModelSettings, Signature
from vitrail_server.work import OutOfMemory

if TYPE_CHECKING:
    from vitrail_server.savedmodel.incremental.preparations import Background
    from vitrail_server.savedmodel.loader import Complete, LoadedModel
    from vitrail_server.savedmodel.probe import Run

LONGEST_SECONDS = 900.0
"""How long preparing one version may take."""

MOST_GRAPHS = 256
"""Graphs whose batch sizes are remembered: loading one again does not measure again."""

GONE = EOFError, BrokenPipeError, ConnectionResetError
"""What a connection raises whose other end is closed."""

Aside = Callable[[Callable[[], object]], object]
"""Has a call that only waits made on a thread of its own."""

log = logging.getLogger(__name__)


class Died(Exception):
    """The process ended, or was ended, while it had a task; the message says how."""


class NotStarted(Exception):
    """There is no process to give a task to; the message says why."""


class Reported(Exception):
    """What went wrong in the process; the message is all that was said of it."""


class PreparingProcess:
    """The process, started when it is needed; it ends by itself when it is idle.

    Its end is waited for `aside`, so that nothing of it is left then.
    """

    def __init__(self, aside: Aside) -> None:
        self._aside = aside
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._closed = False

    def start(self) -> None:
        """Start the process, if there is none or it has ended.

        Raises:
            NotStarted: that is not possible.
            Unavailable: the server is shutting down.

        """
        if self._process is not None and self._process.poll() is None:
            return
        self._end()
        here, there = multiprocessing.Pipe()
        with there:
            command = [sys.executable, "-m", "vitrail_server.savedmodel.preparing", str(there.fileno())]
            try:
                # In a session of its own, so that what interrupts the server by keyboard does not reach it.
                self._process = subprocess.Popen(  # noqa: S603 - our own module
                    command,
                    pass_fds=[there.fileno()],
                    stdin=subprocess.DEVNULL,
                    env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},  # it prepares for the CPU
                    start_new_session=True,
                )
            except OSError as error:
                here.close()
                raise NotStarted(f"the process that prepares models does not start: {error}") from error
        self._connection = here
        self._aside(self._process.wait)
        if self._closed:  # meanwhile, by another thread, which may not have seen the process
            self._process.kill()

    def prepare(self, task: Task, constants: BinaryIO, complete: "Complete") -> Prepared | Unprepared:
        """Have a version prepared, and its constants written to a file.

        Raises:
            Died: the process did.
            NotStarted: there is none.
            FailedPrecondition: the model cannot be served.
            OutOfMemory: not even one image fits.

        """
        connection = self._given(task, constants)
        try:
            while True:
                match self._receive(connection):
                    case Signature() as signature:
                        connection.send(Completion(_completed(connection, signature, complete)))
                    case Refused(message, cause, out_of_memory):
                        refusal = OutOfMemory(message) if out_of_memory else FailedPrecondition(message)
                        raise refusal from (Reported(cause) if cause else None)
                    case Prepared() | Unprepared() as answer:
                        return answer
                    case Taken():
                        pass
        except GONE as error:
            raise Died(self._end()) from error

    def close(self) -> None:
        """End the process, for good; from any thread. What waits for it fails with `Unavailable`."""
        self._closed = True
        if self._process is not None:
            self._process.kill()

    def _given(self, task: Task, constants: BinaryIO) -> Connection:
        """Give the task to the process; to another one if it has just ended because it was idle."""
        for _ in range(2):
            self.start()
            if self._connection is None:
                break
            try:
                self._connection.send(task)
                send_handle(self._connection, constants.fileno(), None)
                self._receive(self._connection)
            except GONE:
                self._end()
            else:
                return self._connection
        raise NotStarted("the process that prepares models ends at once")

    def _receive(self, connection: Connection) -> Answer:
        if not connection.poll(LONGEST_SECONDS):
            if self._process is not None:
                self._process.kill()
            self._end()
            raise Died(f"it took longer than {LONGEST_SECONDS:.0f} s")
        answer: Answer = connection.recv()
        return answer

    def _end(self) -> str:
        """Forget the process, which has ended or is about to, and return how it ended."""
        ended = ""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._process is not None:
            status = self._process.wait()
            self._process = None
            ended = f"signal {-status}" if status < 0 else f"status {status}"
        if self._closed:
            raise Unavailable("the server is shutting down")
        return f"the process that tried it ended with {ended}"


class MeasuredSizes:
    """The batch sizes of the graphs that were loaded last."""

    def __init__(self) -> None:
        self._by_graph: dict[str, Sizes] = {}

    def of(self, graph: str) -> Sizes:
        """Return what is known of a graph; nothing if that is none of the last ones."""
        return self._by_graph.get(graph, {})

    def keep(self, graph: str, sizes: Sizes) -> None:
        """Remember the sizes of the graph just loaded, and forget the one not loaded for longest."""
        self._by_graph.pop(graph, None)  # what is loaded again is not the oldest any more
        self._by_graph[graph] = sizes
        if len(self._by_graph) > MOST_GRAPHS:
            del self._by_graph[next(iter(self._by_graph))]


class SeparateLoader:
    """Loads SavedModels; the bounds are those of `SavedModelLoader`. One load at a time."""

    def __init__(
        self,
        *,
        time_slice: float,
        batch_bytes: int,
        caches: CacheBudget,
        aside: Aside,
        intra_op_threads: int = 0,
        inter_op_threads: int = 0,
    ) -> None:
        """Plans of incremental occlusions keep what `caches` allow; the process is waited for `aside`."""
        self._caches = caches
        self._time_slice = time_slice
        self._batch_bytes = batch_bytes
        self._threads = intra_op_threads, inter_op_threads
        self._process = PreparingProcess(aside)
        self._imported = False
        self._measured = MeasuredSizes()

    def start(self) -> None:
        """Start the process already; TensorFlow, which takes seconds, is imported in both at a time."""
        with suppress(NotStarted):  # a load will find that out
            self._process.start()

    def load(
        self,
        *,
        name: str,
        version: int,
        path: Path,
        complete: "Complete",
        run: "Run",
        background: "Background",
        report: Callable[[int], object],
        separate: bool = True,
    ) -> "LoadedModel":
        """Return the version whose SavedModel is at `path`, ready to serve; see `SavedModelLoader.load`.

        Plans of incremental occlusions are made in the `background`; `report` is told what memory the
        version takes, now and whenever one comes or goes. Unless it is prepared `separate`, everything is
        done by this process.

        Raises:
            FailedPrecondition: the model cannot be served; the message says why and what would work.
            OutOfMemory: not even one image fits.

        """
        from vitrail_server.savedmodel.memory import (
            keep_freed_memory,
            leave_imports_alone,
            resident_bytes,
            settled_bytes,
        )
        from vitrail_server.savedmodel.platform import configure

        configure(*self._threads)
        before = resident_bytes()
        if not self._imported:
            leave_imports_alone()
            keep_freed_memory()
            self._imported = True
        graph = f"{_digest(path)} {separate}"  # elsewhere than here another device computes
        sizes = self._measured.of(graph)
        model = self._loaded(name, version, path, complete, run, background, sizes, separate=separate)
        model.settle(max(0, settled_bytes() - before), report)
        for each in model.description.capabilities.batch_sizes:
            settings = model.description.settings
            key = settings.max_batch_size, settings.precision, each.kind, each.image_size
            sizes = {**sizes, key: (each.batch_size, each.seconds)}
        self._measured.keep(graph, sizes)
        return model

    def _loaded(
        self,
        name: str,
        version: int,
        path: Path,
        complete: "Complete",
        run: "Run",
        background: "Background",
        sizes: Sizes,
        *,
        separate: bool,
    ) -> "LoadedModel":
        from vitrail_server.savedmodel.loader import Planning, SavedModelLoader
        from vitrail_server.savedmodel.prepared import unpack

        planning = Planning(background, self._caches, self._time_slice)
        freezes = True
        if separate:
            # Without a name, so that nothing is left of it when the server is killed.
            with TemporaryFile() as constants:
                answer, freezes = self._prepared(name, version, path, constants, complete, sizes)
                if isinstance(answer, Prepared):
                    return unpack(answer, constants, planning, run)
            log.info("model %s version %d is loaded beside what is served: %s", name, version, answer.reason)
        loader = SavedModelLoader(
            time_slice=self._time_slice, batch_bytes=self._batch_bytes, planning=planning, sizes=sizes
        )
        return loader.load(name=name, version=version, path=path, complete=complete, run=run, freezes=freezes)

    def close(self) -> None:
        """End the process; from any thread. A load that waits for it fails with `Unavailable`."""
        self._process.close()

    def _prepared(
        self, name: str, version: int, path: Path, constants: BinaryIO, complete: "Complete", sizes: Sizes
    ) -> tuple[Prepared | Unprepared, bool]:
        """Return what the process makes of a version, and whether it survived freezing it."""
        bounds = self._time_slice, self._batch_bytes, *self._threads
        how = ""
        for freezes in (True, False):
            task = Task(name, version, path, freezes, sizes, *bounds)
            try:
                return self._process.prepare(task, constants, complete), freezes
            except Died as error:
                how = str(error)
                log.warning("model %s version %d, frozen %s: %s", name, version, freezes, how)
            except NotStarted as error:
                return Unprepared(str(error)), freezes
        raise FailedPrecondition(
            f"TensorFlow cannot run this model here, frozen or not: {how}; the server's log says more"
        )


def _digest(path: Path) -> str:
    """Return what tells a graph from others, whatever its weights; of a model without one, its path."""
    try:
        return sha256((path / "saved_model.pb").read_bytes()).hexdigest()
    except OSError:
        return str(path)


def _completed(
    connection: Connection, signature: Signature, complete: "Complete"
) -> tuple[Signature, ModelSettings]:
    try:
        return complete(signature)
    except BaseException:
        connection.send(Completion(None))
        raise
