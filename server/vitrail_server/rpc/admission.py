"""Says no early: permits for explanations and inferences, and a budget for the bytes of unfinished uploads.

A permit is taken or refused at once; nobody waits at the door.
"""

import asyncio
from collections.abc import Callable

from vitrail.errors import ResourceExhausted, Unavailable


class Permit:
    """The right to one explanation or inference, until it is given back."""

    def __init__(self, leave: Callable[[], None]) -> None:
        self._leave: Callable[[], None] | None = leave

    def close(self) -> None:
        """Give the permit back; a second time does nothing."""
        if self._leave is not None:
            self._leave()
            self._leave = None


class Admission:
    """Counts what is in the server against its limits. Used on the event loop only."""

    def __init__(self, max_explanations: int, max_inferences: int, max_upload_bytes: int) -> None:
        self.in_flight = 0
        """Permits for explanations that are out."""
        self.inferences = 0
        """Permits for inferences that are out."""
        self.upload_bytes = 0
        """Bytes reserved for uploads that are not complete."""
        self.draining = False
        """The server is shutting down: nothing new is admitted."""
        self._returned = asyncio.Event()
        self._max_explanations = max_explanations
        self._max_inferences = max_inferences
        self._max_upload_bytes = max_upload_bytes

    def enter(self) -> Permit:
        """Take a permit for an explanation.

        Raises:
            ResourceExhausted: all are out.
            Unavailable: the server is shutting down.

        """
        self._check_draining()
        if self.in_flight >= self._max_explanations:
            raise ResourceExhausted(
                f"{self.in_flight} explanations are in flight, the most this server takes "
                "(--max-explanations): try again when some have ended",
                retry_delay=1.0,
            )
        self.in_flight += 1
        return Permit(self._leave)

    def enter_inference(self) -> Permit:
        """Take a permit for an inference.

        Raises:
            ResourceExhausted: all are out.
            Unavailable: the server is shutting down.

        """
        self._check_draining()
        if self.inferences >= self._max_inferences:
            raise ResourceExhausted(
                f"{self.inferences} inferences are in flight, the most this server takes (--max-inferences): "
                "try again when some have ended",
                retry_delay=1.0,
            )
        self.inferences += 1
        return Permit(self._leave_inference)

    async def emptied(self) -> None:
        """Return when no permit is out."""
        while self.in_flight or self.inferences:
            self._returned.clear()
            await self._returned.wait()

    def reserve(self, size: int) -> None:
        """Reserve `size` bytes for an upload; `release` gives them back.

        Raises:
            ResourceExhausted: uploads hold too much already.

        """
        if self.upload_bytes + size > self._max_upload_bytes:
            raise ResourceExhausted(
                f"{size} more bytes would bring the unfinished uploads to "
                f"{self.upload_bytes + size} bytes; at most {self._max_upload_bytes} are held "
                "(--max-upload-bytes): send smaller images, or try again later",
                field="start.upload_bytes",
            )
        self.upload_bytes += size

    def release(self, size: int) -> None:
        """Give back what `reserve` took."""
        self.upload_bytes -= size

    def _check_draining(self) -> None:
        if self.draining:
            raise Unavailable("the server is shutting down; ask another one", retry_delay=1.0)

    def _leave(self) -> None:
        self.in_flight -= 1
        self._returned.set()

    def _leave_inference(self) -> None:
        self.inferences -= 1
        self._returned.set()
