"""How names, lists and failures are written in messages.

Messages travel in HTTP/2 trailers, which clients limit to 8 KiB, and names come from anyone: whatever
goes into a message passes through here and comes out printable and short.
"""

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from vitrail.errors import VitrailError

NAME_LIMIT = 64
"""Characters of a name that are shown."""
LIST_LIMIT = 10
"""Items of a list that are shown."""
REASON_LIMIT = 400
"""Characters of a reason that are shown."""
MESSAGE_LIMIT = 1000
"""Characters of a message; gRPC sends a message up to three times, in two encodings."""
CAUSE_LIMIT = 4000
"""Characters of a cause that are logged; TensorFlow may print a whole graph."""

_DIRECTORIES = re.compile(r"""(?<![^\s"'(\[{<=,;:])/(?:[^\s/:"']+/)+""")
"""The directories of an absolute path within a text; neither those of a URL nor TensorFlow's device names."""

PREAMBLE = ("Graph execution error:", "Detected at node ", "  File ", "<stack traces unavailable>")
"""How the lines begin that TensorFlow writes before what went wrong in a graph."""


def quoted(name: str) -> str:
    """Return the name in quotes, printable and cut to `NAME_LIMIT` characters."""
    return repr(shortened(name, NAME_LIMIT))


def printable(name: str) -> str:
    """Return the name without quotes, printable and cut to `NAME_LIMIT` characters."""
    return quoted(name)[1:-1]


def listed(items: Iterable[object], none: str = "none") -> str:
    """Return the items separated by commas, cut to `LIST_LIMIT`; `none` if there are none."""
    words = [str(item) for item in items]
    more = len(words) - LIST_LIMIT
    return (", ".join(words[:LIST_LIMIT]) + (f" and {more} more" if more > 0 else "")) or none


def shape_text(shape: Iterable[int] | None) -> str:
    """Return a shape as Triton writes it, without spaces."""
    return "of unknown rank" if shape is None else "[" + ",".join(str(size) for size in shape) + "]"


def reason_of(error: BaseException, below: Path | None = None) -> str:
    """Return the first line that says what went wrong, with the error's class unless it is one of ours.

    Reasons reach clients, whom the server's directories do not concern: of a file they tell the path from
    the directory `below`, where that is one, and of all others the name.
    """
    if isinstance(error, VitrailError):  # ours are written for clients
        return shortened(next(_telling_lines(str(error)), ""), REASON_LIMIT) or type(error).__name__
    text = str(error)
    if isinstance(error, OSError) and error.filename is not None:
        text = f"{error.strerror}: {_file(os.fsdecode(error.filename), below)}"
    if below is not None:
        text = text.replace(f"{below}{os.sep}", "")
    line = shortened(_DIRECTORIES.sub("", next(_telling_lines(text), "")), REASON_LIMIT)
    return f"{type(error).__name__}: {line}" if line else type(error).__name__


def cause_of(error: BaseException) -> str:
    """Return all that the foreign cause of an error says, in one line, for the log; empty if it has none."""
    cause = error.__cause__
    while isinstance(cause, VitrailError):  # its text is in that of the error already
        cause = cause.__cause__
    if cause is None:
        return ""
    return shortened(f"{type(cause).__name__}: {' '.join(str(cause).split())}", CAUSE_LIMIT)


def _file(path: str, below: Path | None) -> str:
    inside = path.removeprefix(f"{below}{os.sep}")
    return repr(shortened(Path(path).name if inside == path else inside, REASON_LIMIT))


def _telling_lines(text: str) -> Iterator[str]:
    """Yield an error's lines, without those in which TensorFlow says where the graph was built."""
    for line in text.strip().splitlines():
        if line.strip() and not line.startswith(PREAMBLE):
            yield line


def shortened(text: str, limit: int) -> str:
    """Return the text, its end replaced by dots if it is longer than the limit."""
    return text if len(text) <= limit else text[: limit - 3] + "..."
