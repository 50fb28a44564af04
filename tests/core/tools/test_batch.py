"""Arguments of batch files reach the program unchanged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from core.errors import ToolFailed
from core.tools.batch import batch_line, is_batch

ARGS = [
    "-y", "@scope/server", "a&b", "50%", "%PATH%", 'say "hi"', "c:\\my dir\\", "x^y|z>w", "", "k=v", "wow!", "ä ö",
    '\\"',
]  # fmt: skip


def test_what_cmd_would_take_as_its_own_is_quoted() -> None:
    line = batch_line(r"C:\Program Files\nodejs\npx.cmd", ARGS)
    assert line == (
        r'"C:\Program Files\nodejs\npx.cmd" -y @scope/server "a&b" "50%%cd:~,%" "%%cd:~,%PATH%%cd:~,%" "say ""hi"""'
        r' "c:\my dir\\" "x^y|z>w" "" "k=v" "wow!" "ä ö" "\\"""'
    )


@pytest.mark.parametrize("arg", ["two\nlines", "two\rlines", "nothing\0more"])
def test_a_line_break_cannot_be_handed_on(arg: str) -> None:
    with pytest.raises(ToolFailed, match="line break"):
        batch_line("npx.cmd", [arg])


def test_batch_files_are_known_by_their_names() -> None:
    assert is_batch(r"C:\nodejs\NPX.CMD")
    assert is_batch("run.bat. ")
    assert not is_batch(r"C:\tools.cmd\node.exe")


@pytest.mark.skipif(os.name != "nt", reason="batch files run on Windows only")
def test_a_batch_file_hands_its_arguments_to_a_program(tmp_path: Path) -> None:
    (tmp_path / "show.py").write_text("import json, sys; print(json.dumps(sys.argv[1:]))", "utf-8")
    (tmp_path / "show.cmd").write_text(f'@"{sys.executable}" "%~dp0show.py" %*\n', "utf-8")
    line = batch_line(str(tmp_path / "show.cmd"), ARGS)
    shown = subprocess.run(line, shell=True, capture_output=True, check=True, encoding="utf-8")
    assert json.loads(shown.stdout) == ARGS
