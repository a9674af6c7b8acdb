"""The log: lines for people, or one JSON object a line for machines.

Every explanation ends with one line that says which request it was, what answered and how it went.
Nothing of its content is logged: no pixels, no labels, no tokens.
"""

import json
import logging
from datetime import UTC, datetime

from vitrail_server.events import ExplanationEnded
from vitrail_server.settings import LogFormat, LogLevel

log = logging.getLogger("vitrail_server.explanations")

FIELDS = "fields"
"""The attribute of a log record that holds its further fields."""


def configure_logs(level: LogLevel, form: LogFormat) -> None:
    """Send the log to standard error, for the whole process."""
    handler = logging.StreamHandler()
    text = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    handler.setFormatter(JsonFormatter() if form == "json" else text)
    logging.basicConfig(level=level.upper(), handlers=[handler])


def log_explanation(event: ExplanationEnded) -> None:
    """Log the end of one explanation."""
    log.info(
        "%s: %s by %s version %d %s in %.3f s",
        event.request_id,
        event.method or "explanation",
        event.model or "no model",
        event.version,
        event.outcome,
        event.seconds,
        extra={
            FIELDS: {
                "request_id": event.request_id,
                "model": event.model,
                "version": event.version,
                "method": event.method,
                "outcome": event.outcome,
                "seconds": round(event.seconds, 6),
            }
        },
    )


class JsonFormatter(logging.Formatter):
    """Formats a record as one JSON object: time (RFC 3339, UTC), level, logger, message, further fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, FIELDS, {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)
