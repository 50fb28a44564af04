"""What a command refuses in a sentence: numbers out of range, models of other computers, and what the system lacks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from core.__main__ import main
from core.hardware.disk_rate import measure_disk
from core.hardware.profile import measured_profile
from tests.core.machines import LAPTOP
from tests.core.tiny_tokenizer import chat_model

CHAT = "import sys; from core.__main__ import main; sys.exit(main(['chat', '--threads', '1', *sys.argv[1:]]))"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chat_model(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize(
    ("command", "options", "says"),
    [
        ("bench", ["--prompt-tokens", "0"], "0 tokens cannot be measured. Choose 1 or more."),
        ("bench", ["--new-tokens", "-1"], "-1 tokens cannot be measured. Choose 1 or more."),
        ("bench", ["--prompt-tokens", "1000"], "1,064 tokens do not fit into a context of 1,024."),
        ("plan", ["--context", "0"], "A context of 0 tokens is out of range."),
        ("plan", ["--context", "5000"], "This model reads at most 1,024 tokens."),
        ("plan", ["--threads", "0"], "0 threads cannot be used."),
        ("chat", ["--prompt", "hi", "--ram", "1KiB"], "the limit is 1 kB of memory."),
        ("chat", ["--prompt", "hi", "--seed", "-1"], "Choose a value from 0 to 9223372036854775807."),
        ("chat", ["--picture", "cat.png"], "A picture needs a question."),
    ],
)
def test_numbers_out_of_range(
    folder: Path, capsys: pytest.CaptureFixture[str], command: str, options: list[str], says: str
) -> None:
    assert main([command, str(folder), *options]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert says in said


@pytest.mark.parametrize("command", [["plan"], ["bench"], ["quality"]])
def test_a_model_on_another_computer_has_no_files(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Some text.", encoding="utf-8")
    rest = [str(text)] if command == ["quality"] else []
    assert main([*command, "remote:http://127.0.0.1:1/v1#x", *rest]) == 1
    assert "This command needs the model's files." in capsys.readouterr().err


def test_a_folder_without_a_name_of_its_own_is_named_in_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("", "."):
        assert main(["chat", "--model", name, "--prompt", "hi"]) == 1
        assert f"error: {tmp_path} holds no model." in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="descriptors cannot be closed in the shell there")
@pytest.mark.parametrize(
    ("closing", "status", "says"),
    [
        ("--prompt hi --max-new-tokens 2 >&-", 0, ""),
        ("<&-", 0, "Ask away"),
        pytest.param(
            "--prompt hi --max-new-tokens 2 > /dev/full", 1, "error: The output cannot be written. The disk is full.",
            marks=pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full device here"),
        ),
    ],
)  # fmt: skip
def test_closed_and_full_streams_are_no_defects(folder: Path, closing: str, status: int, says: str) -> None:
    command = f'"$0" -c "$1" --model "$2" {closing}'
    ended = subprocess.run(
        ["sh", "-c", command, sys.executable, CHAT, str(folder)], capture_output=True, text=True, timeout=300,
        check=False, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert ended.returncode == status, ended.stderr
    assert says in ended.stderr
    assert "Traceback" not in ended.stderr
    assert "defect" not in ended.stderr


def test_a_machine_is_measured_without_a_place_to_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.hardware.benchmark.measure_cpu", lambda: LAPTOP.cpu)  # takes seconds
    (tmp_path / "file").write_bytes(b"")
    nowhere = tmp_path / "file" / "cache"
    assert measure_disk(nowhere) is None
    assert measured_profile(nowhere, [], None, 1).disk_bytes_s > 0
