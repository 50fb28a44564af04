"""The log on disk, if it cannot be rotated."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

LINES = 40
WRITES = f"""
import logging, sys
from pathlib import Path
from core.startup import log
log.MOST_BYTES = 500
log.start_log(Path(sys.argv[1]))
for number in range({LINES}):
    logging.info("line %02d", number)
"""


def test_every_line_is_kept_where_the_file_cannot_be_turned_over(tmp_path: Path) -> None:
    # As on Windows, where open files cannot be renamed: here folders already have the new names.
    for number in (1, 2):
        (tmp_path / f"log.txt.{number}").mkdir()
    file = tmp_path / "log.txt"
    done = subprocess.run([sys.executable, "-c", WRITES, file], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert [line.split()[-1] for line in file.read_text("utf-8").splitlines()] == [f"{n:02}" for n in range(LINES)]


def test_it_is_turned_over_where_it_can_be(tmp_path: Path) -> None:
    file = tmp_path / "log.txt"
    subprocess.run([sys.executable, "-c", WRITES, file], capture_output=True, check=True)
    assert "line 39" in file.read_text("utf-8")
    assert {path.name for path in tmp_path.iterdir()} == {"log.txt", "log.txt.1", "log.txt.2"}
