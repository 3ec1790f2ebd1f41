"""Structured logs: one JSON object a line, on standard error, which Ray keeps for each replica.

At info there is one line a request: its id, tenant, route, status, milliseconds and sizes.  Labels, pictures and keys are never
logged, and neither are paths, as they hold the ids of tasks.
"""

import json
import logging
import sys
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal

LogLevel = Literal["debug", "info", "warning", "error"]
FLOORS = ("serving", "training", "infra")
"""Loggers that are ours; Ray's keep their own form."""

current_request_id: ContextVar[str | None] = ContextVar("current_request_id", default=None)
"""Of the request that this code works for, in whichever deployment."""

requests_logger = logging.getLogger("serving.requests")


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON, whatever its message holds."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if (request_id := current_request_id.get()) is not None:
            line["request_id"] = request_id
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=True, default=str)


def configure_logs(level: LogLevel) -> None:
    """Set our loggers of this process up; doing so again changes the level only."""
    for name in FLOORS:
        logger = logging.getLogger(name)
        logger.setLevel(level.upper())
        if not any(isinstance(handler.formatter, JsonFormatter) for handler in logger.handlers):
            handler = logging.StreamHandler(sys.stderr)
            handler.setFormatter(JsonFormatter())
            logger.addHandler(handler)
            logger.propagate = False


def log_request(fields: Mapping[str, Any]) -> None:
    """The line of one request."""
    if requests_logger.isEnabledFor(logging.INFO):
        # made by hand: to look for the line of code that logs, which is this one, takes as long as all the rest
        record = logging.LogRecord(requests_logger.name, logging.INFO, __file__, 0, "request", None, None)
        record.fields = dict(fields)
        requests_logger.handle(record)
