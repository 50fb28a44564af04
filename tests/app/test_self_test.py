"""`python -m app --self-test`: the check that also serves a frozen bundle."""

import json
import os
import subprocess
import sys
from pathlib import Path


def test_the_self_test_runs_and_leaves_nothing(tmp_path: Path) -> None:
    home = tmp_path / "home of a person"
    environ = {**os.environ, "HETEGEN_HOME": str(home)}
    command = [sys.executable, "-m", "app", "--self-test"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=200, check=False)
    report = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == 0, report
    assert report["ok"]
    assert report["new_tokens"] > 0
    assert not home.exists()


def test_the_self_test_says_what_is_wrong(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "app", "--self-test", "--model", str(tmp_path / "nothing here")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 1
    assert "nothing here" in json.loads(done.stdout.splitlines()[-1])["reason"]
