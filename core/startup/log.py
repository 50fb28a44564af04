"""The log file: log messages, warnings, and tracebacks of unexpected errors."""

from __future__ import annotations

import logging
from contextlib import suppress
from logging.handlers import RotatingFileHandler
from pathlib import Path

MOST_BYTES, FILES = 1_000_000, 3


class _LogFile(RotatingFileHandler):
    """A log file that keeps growing if it cannot be rotated: on Windows, while another program has it open."""

    def doRollover(self) -> None:  # noqa: N802  Python's name.
        with suppress(OSError):
            super().doRollover()


def start_log(path: Path, level: int = logging.INFO) -> None:
    """Log to a rotating file, created with the first line; to stderr if it cannot be created."""
    handler: logging.Handler
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = _LogFile(path, maxBytes=MOST_BYTES, backupCount=FILES - 1, encoding="utf-8", delay=True)
    except OSError:
        handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level, handlers=[handler])
    logging.captureWarnings(capture=True)
