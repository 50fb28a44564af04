"""Measures the time from the program's start to a visible window, and from there until the guide is ready.

`python -m tests.bench.startup [--runs 7]` prints one JSON line with medians, after one start that fills the caches.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile

# The program's self-test, but with a home that persists, like a user's.
ONE_START = """
import sys
from app.__main__ import arguments, prepare_environment, run
prepare_environment()
sys.exit(run(arguments(["--self-test"])))
"""


def start(home: str) -> dict[str, float]:
    """Return the seconds from process start to the window, and from the window to the loaded guide."""
    environ = {"QT_QPA_PLATFORM": "offscreen", **os.environ, "HETEGEN_HOME": home}
    done = subprocess.run([sys.executable, "-c", ONE_START], env=environ, check=True, capture_output=True, text=True)
    report = json.loads(done.stdout.splitlines()[-1])
    return {"window_s": report["window_s"], "guide_s": report["ready_s"] - report["window_s"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7)
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        start(home)
        starts = [start(home) for _ in range(runs)]
    columns = {name: sorted(one[name] for one in starts) for name in starts[0]}
    figures = {name: {"median": statistics.median(column), "all": column} for name, column in columns.items()}
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
