"""The log: lines for people, or one JSON object a line for machines.

Every explanation ends with one line that says which request it was, what answered and how it went.
Nothing of its content is logged: no pixels, no labels, no tokens.
"""

import json
import logging
from datetime import UTC, datetime

from vitrail_server.events import ExplanationEnded, InferenceEnded
from vitrail_server.settings import LogFormat, LogLevel

log = logging.getLogger("vitrail_server.explanations")
inferences = logging.getLogger("vitrail_server.inferences")

FIELDS = "fields"
"""The attribute of a log record that holds its further fields."""


def configure_logs(level: LogLevel, form: LogFormat) -> None:
    """Send the log to standard error, for the whole process."""
    logging.basicConfig(level=level.upper(), handlers=[logging.StreamHandler()])
    set_form(form)


def current_level() -> int:
    """Return the least severe level that is logged."""
    return logging.getLogger().level


def set_level(level: int) -> None:
    """Log what is at least so severe from now on."""
    logging.getLogger().setLevel(level)


def current_form() -> LogFormat:
    """Return the form of the log's lines."""
    handlers = logging.getLogger().handlers
    return "json" if any(isinstance(each.formatter, JsonFormatter) for each in handlers) else "text"


def set_form(form: LogFormat) -> None:
    """Write lines of this form from now on."""
    text = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    for handler in logging.getLogger().handlers:
        handler.setFormatter(JsonFormatter() if form == "json" else text)


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


def log_inference(event: InferenceEnded) -> None:
    """Log the end of one inference: there are many, so only with the level debug."""
    inferences.debug(
        "%s: inference by %s version %d %s in %.3f s",
        event.request_id,
        event.model or "no model",
        event.version,
        event.outcome,
        event.seconds,
        extra={
            FIELDS: {
                "request_id": event.request_id,
                "model": event.model,
                "version": event.version,
                "rows": event.rows,
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
