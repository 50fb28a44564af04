"""The command line as the contracts describe it."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from core.__main__ import main
from core.events import Message
from tests.core.assistants import make_pair
from tests.core.families import make_model
from tests.core.mtp_heads import add_mtp, make_predictable
from tests.core.tiny_tokenizer import VOCABULARY, scripted_model, write_tokenizer

KEYS = {"text", "finish_reason", "prompt_tokens", "reused_tokens", "new_tokens", "ttft_s", "decode_tok_s"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scripted_model(tmp_path_factory.mktemp("scripted"), [Message("user", "hi")], ["<think>hm</think>Hello 😀."])


def chat(folder: Path, *options: str) -> int:
    return main(["chat", "--model", str(folder), "--threads", "1", "--temperature", "0", *options])


def last_line(capsys: pytest.CaptureFixture[str]) -> tuple[list[str], dict[str, Any]]:
    *lines, last = capsys.readouterr().out.splitlines()
    return lines, json.loads(last)


def test_chat_prints_the_reply(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert chat(folder, "--prompt", "hi") == 0
    assert capsys.readouterr().out.splitlines()[-3:] == ["hm", "", "Hello 😀."]


def test_the_model_may_be_named_without_its_option(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--threads", "1", "--temperature", "0"]
    assert main(["chat", str(folder), "--prompt", "hi", *options]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "Hello 😀."
    with pytest.raises(SystemExit):
        main(["chat", str(folder), "--model", str(folder), "--prompt", "hi", *options])


def test_chat_gives_its_figures_as_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert chat(folder, "--prompt", "hi", "--json") == 0
    _, result = last_line(capsys)
    assert result.keys() >= KEYS
    assert result["text"] == "Hello 😀."
    assert result["finish_reason"] == "stop"
    assert result["reused_tokens"] == 0
    assert result["prompt_tokens"] > 0
    assert result["new_tokens"] > len("Hello .")
    assert result["ttft_s"] > 0
    assert result["decode_tok_s"] > 0


def test_max_new_tokens_is_heeded(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert chat(folder, "--prompt", "hi", "--max-new-tokens", "2", "--json") == 0
    _, result = last_line(capsys)
    assert (result["finish_reason"], result["new_tokens"]) == ("length", 2)


def test_a_system_prompt_is_part_of_the_prompt(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lengths = []
    for options in ([], ["--system", "Be brief."]):
        assert chat(folder, "--prompt", "hi", "--max-new-tokens", "1", "--json", *options) == 0
        lengths.append(last_line(capsys)[1]["prompt_tokens"])
    assert lengths[1] > lengths[0] + len("Be brief.") / 2


def test_a_conversation_reuses_what_was_read(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("hi\nand now?\n\n"))
    assert chat(folder, "--max-new-tokens", "5", "--json") == 0
    _, result = last_line(capsys)
    assert result["reused_tokens"] > 0


def test_a_question_that_fails_does_not_end_the_conversation(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{'much too long ' * 1000}\nhi\n\n"))
    assert chat(folder, "--json") == 0
    captured = capsys.readouterr()
    assert "error: The message is longer" in captured.err
    assert json.loads(captured.out.splitlines()[-1])["text"] == "Hello 😀."


DEFECT = "import sys, core.commands.doctor as d; d.run = lambda *_: {}; import core.__main__ as m; "


OF_A_SYSTEM_CALL = "type('WindowsCallFailed', (OSError,), {'winerror': 1})(22, 'Invalid function')"


@pytest.mark.parametrize(
    ("defect", "error"),
    [("1 // 0", "ZeroDivisionError"), (f"(_ for _ in ()).throw({OF_A_SYSTEM_CALL})", "WindowsCallFailed")],
)
def test_a_defect_is_one_sentence_and_its_traceback_is_in_the_log(
    repository: Path, tmp_path: Path, defect: str, error: str
) -> None:
    environ = os.environ | {"HETEGEN_HOME": str(tmp_path)}
    command = [sys.executable, "-c", f"{DEFECT.format(defect)} sys.exit(m.main(['doctor']))"]
    ran = subprocess.run(command, cwd=repository, env=environ, capture_output=True, timeout=200, text=True)
    log = tmp_path / "logs" / "commands.log"
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr == f"error: This is a defect of the program; the details are in {log}.\n"
    assert error in log.read_text("utf-8")


AS_ON_WINDOWS = """
class Closed:
    fileno, flush = sys.stdout.fileno, sys.stdout.flush
    def write(self, text):
        raise OSError(22, "Invalid argument")
sys.stdout = Closed()
"""


@pytest.mark.parametrize("closed", ["", AS_ON_WINDOWS], ids=["here", "Windows"])
def test_output_that_nobody_reads_on_is_no_defect(repository: Path, tmp_path: Path, closed: str) -> None:
    script = f"import sys, core.__main__ as m\nsys.stdin.read()\n{closed}\nsys.exit(m.main(['models', '--json']))"
    environ = os.environ | {"HETEGEN_HOME": str(tmp_path)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", script], cwd=repository, env=environ, **pipes) as ran:  # type: ignore[call-overload]
        ran.stdout.close()
        ran.stdin.close()
        assert b"error" not in ran.stderr.read()
    assert ran.returncode == 1


def test_a_conversation_ends_with_the_input(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert chat(folder) == 0


def test_doctor_gives_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    _, result = last_line(capsys)
    assert isinstance(result, dict)
    assert result


@pytest.mark.parametrize("arguments", [[], ["sing"], ["chat", "--max-new-tokens"]])
def test_wrong_usage_exits_with_two(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage:" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["chat", "plan", "bench", "search", "download", "models", "remove", "doctor"])
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert "--json" in capsys.readouterr().out


def test_the_built_in_model_answers_in_a_real_process(repository: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "core",
        "chat",
        "--prompt",
        "Hello!",
        "--max-new-tokens",
        "20",
        "--threads",
        "1",
        "--json",
    ]
    ran = subprocess.run(command, cwd=repository, capture_output=True, timeout=200, text=True, encoding="utf-8")
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == ""
    *lines, last = ran.stdout.splitlines()
    result = json.loads(last)
    assert result["text"].strip()
    assert result["text"].strip() in "\n".join(lines)


def test_bench_says_what_drafting_gave(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_model("qwen3_5_text", tmp_path, tie_word_embeddings=False, vocab_size=VOCABULARY)
    add_mtp(write_tokenizer(folder), "qwen3_5_text")
    make_predictable(folder, "qwen3_5_text")
    options = ["--draft", "mtp", "--prompt-tokens", "24", "--new-tokens", "24", "--context", "512", "--json"]
    assert main(["bench", str(folder), *options]) == 0
    drafting = last_line(capsys)[1]["drafting"]
    assert drafting["drafter"] == "its MTP head"
    assert drafting["acceptance"] == 1.0
    assert drafting["tokens_per_pass"] > 1
    assert drafting["drafted_tok_s"] > 0


def test_bench_says_what_an_assistant_gave(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target, assistant = make_pair(tmp_path)
    options = ["--draft", str(assistant), "--prompt-tokens", "24", "--new-tokens", "24", "--context", "512", "--json"]
    assert main(["bench", str(target), *options]) == 0
    drafting = last_line(capsys)[1]["drafting"]
    assert drafting["drafter"] == "assistant"
    assert drafting["acceptance"] == 1.0
