"""How every process logs: lines for people, or, with `DUNNOCK_LOG_FORMAT=json`, an object on each line. To standard error.

    configure(settings)                                  once, when a process starts
    log.info("%s %s", a, b, extra={"told": {...}})       fields of their own in such an object; lines for people leave them out

An object has `time` (RFC 3339, UTC), `level`, `logger`, `message`, with an exception `error` and `traceback`, and what was told.
"""

import datetime as dt
import json
import logging
from typing import Any

from core.settings import Settings

PLAIN = "%(asctime)s %(levelname)s %(name)s: %(message)s"
TALKATIVE = ("apscheduler", "gguf", "httpx")
"""They tell of every step at INFO."""
UVICORN = ("uvicorn", "uvicorn.error", "uvicorn.access")


class JsonLines(logging.Formatter):
    """Records as one line of JSON each."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        said: dict[str, Any] = {
            "time": dt.datetime.fromtimestamp(record.created, dt.UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "told", {}),
        }
        if record.exc_info and record.exc_info[0] is not None:
            said |= {"error": record.exc_info[0].__name__, "traceback": self.formatException(record.exc_info)}
        return json.dumps(said, ensure_ascii=False, default=str)


def configure(settings: Settings) -> None:
    """Have this process log as the settings say; where somebody has set up logging already, their way stays."""
    lines = settings.log_format == "json"
    writes = logging.StreamHandler()
    writes.setFormatter(JsonLines() if lines else logging.Formatter(PLAIN))
    logging.basicConfig(level=settings.log_level, handlers=[writes])
    for name in TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in UVICORN if lines else ():  # it brings a way of its own
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
