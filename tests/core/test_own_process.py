"""A process that cannot be ended is left behind: whoever waits for it goes on, and its own program ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HELD = "Its driver holds the program that tried it, so that it cannot be ended."
TRY = """
import subprocess, sys
from pathlib import Path
from core import own_process
from core.accelerators import trial as card
from core.gpu_runtime import trial as runtime

# As for a process that its driver holds: it is told to end, and lives on.
subprocess.Popen.kill = lambda process: print(process.pid, flush=True)
own_process.END_S = card.LIMIT_S = runtime.LIMIT_S = 0.2
print({asked}.why)
"""
ASKED = {
    "the runtime": "runtime.attempt(Path(sys.argv[1]), 'driver')",
    "a card": "card.tried(0, sys.argv[1])",
}


@pytest.mark.parametrize("asked", ASKED)
def test_a_trial_whose_process_cannot_be_ended_is_over_all_the_same(asked: str, tmp_path: Path) -> None:
    for packages in (tmp_path, tmp_path / "lib/python/site-packages"):
        (packages / "torch").mkdir(parents=True)
        (packages / "torch" / "__init__.py").write_text("import time; time.sleep(600)", "utf-8")
    code = TRY.format(asked=ASKED[asked])
    with subprocess.Popen([sys.executable, "-c", code, tmp_path], cwd=ROOT, stdout=subprocess.PIPE, text=True) as tries:
        assert tries.stdout is not None
        held = int(tries.stdout.readline())
        try:
            assert tries.stdout.read().splitlines() == [HELD]
            assert tries.wait(120) == 0
            os.kill(held, 0)
        finally:
            tries.kill()
            os.kill(held, signal.SIGTERM)
