"""The log on disk: what was logged, and the tracebacks of errors that nobody foresaw."""

from __future__ import annotations

import logging
from logging.handlers import RotatingFileHandler
from pathlib import Path

MOST_BYTES, FILES = 1_000_000, 3


def start_log(path: Path, level: int = logging.INFO) -> None:
    """Log to a file that is made with the first line and turned over; to stderr where there can be no file."""
    handler: logging.Handler
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = RotatingFileHandler(path, maxBytes=MOST_BYTES, backupCount=FILES - 1, encoding="utf-8", delay=True)
    except OSError:
        handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level, handlers=[handler])
    logging.captureWarnings(capture=True)
