"""Says no early: permits for explanations, and a budget for the bytes of unfinished uploads.

A permit is taken or refused at once; nobody waits at the door.
"""

import asyncio

from vitrail.errors import ResourceExhausted, Unavailable


class Permit:
    """The right to one explanation, until it is given back."""

    def __init__(self, admission: "Admission") -> None:
        self._admission: Admission | None = admission

    def close(self) -> None:
        """Give the permit back; a second time does nothing."""
        if self._admission is not None:
            self._admission.leave()
            self._admission = None


class Admission:
    """Counts what is in the server against its limits. Used on the event loop only."""

    def __init__(self, max_explanations: int, max_upload_bytes: int) -> None:
        self.in_flight = 0
        """Permits out."""
        self.upload_bytes = 0
        """Bytes reserved for uploads that are not complete."""
        self.draining = False
        """The server is shutting down: nothing new is admitted."""
        self._returned = asyncio.Event()
        self._max_explanations = max_explanations
        self._max_upload_bytes = max_upload_bytes

    def enter(self) -> Permit:
        """Take a permit.

        Raises:
            ResourceExhausted: all are out.
            Unavailable: the server is shutting down.

        """
        if self.draining:
            raise Unavailable("the server is shutting down; ask another one", retry_delay=1.0)
        if self.in_flight >= self._max_explanations:
            raise ResourceExhausted(
                f"{self.in_flight} explanations are in flight, the most this server takes "
                "(--max-explanations): try again when some have ended",
                retry_delay=1.0,
            )
        self.in_flight += 1
        return Permit(self)

    def leave(self) -> None:
        """Take a permit back."""
        self.in_flight -= 1
        self._returned.set()

    async def emptied(self) -> None:
        """Return when no permit is out."""
        while self.in_flight:
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
