"""The log on disk: what was logged, and the tracebacks of errors that nobody foresaw."""

from __future__ import annotations

import logging
from contextlib import suppress
from logging.handlers import RotatingFileHandler
from pathlib import Path

MOST_BYTES, FILES = 1_000_000, 3


class _LogFile(RotatingFileHandler):
    """One that grows on where it cannot be turned over: on Windows while another program has it open."""

    def doRollover(self) -> None:  # noqa: N802  Python's name.
        with suppress(OSError):
            super().doRollover()


def start_log(path: Path, level: int = logging.INFO) -> None:
    """Log to a file that is made with the first line and turned over; to stderr where there can be no file."""
    handler: logging.Handler
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = _LogFile(path, maxBytes=MOST_BYTES, backupCount=FILES - 1, encoding="utf-8", delay=True)
    except OSError:
        handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level, handlers=[handler])
    logging.captureWarnings(capture=True)
