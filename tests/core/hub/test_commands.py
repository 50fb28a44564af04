"""The four commands, run as programs against the fake Hub."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from core.commands.models import progress_line, terminal_report
from core.errors import HeteGenError
from core.hub.progress import Progress, duration
from tests.core.hub.conftest import ID, NEEDED, run
from tests.core.hub.fake_hub import Double, Repo, model_files


def test_from_search_to_removal(
    hub: Double, here: Path, files: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    (found,) = run("search", "model")
    assert (found["id"], found["license"], found["gated"]) == (ID, "apache-2.0", False)
    result = run("download", f"{ID}@main", "--json")
    size = sum(len(files[name]) for name in NEEDED)
    sha = hub.repos[ID].sha
    assert result == {
        "id": ID, "revision": sha, "path": str(here / "models--org--model" / "snapshots" / sha),
        "bytes": size, "downloaded_bytes": size, "resumed_bytes": 0, "verified": True,
    }  # fmt: skip
    (model,) = run("models")
    assert model == {
        "id": ID, "revision": result["revision"], "path": result["path"], "bytes": size, "complete": True
    }  # fmt: skip
    assert "every file checked" in capsys.readouterr().out
    freed = run("remove", ID, "--yes")["freed_bytes"]
    assert freed >= size
    assert run("models") == []
    json.dumps([found, result, model])


def test_removal_asks(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run("download", ID)
    with pytest.raises(HeteGenError, match="Add --yes"):
        run("remove", ID)

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", Terminal("n\n"))
    with pytest.raises(HeteGenError, match="Nothing was removed"):
        run("remove", ID)
    monkeypatch.setattr(sys, "stdin", Terminal("y\n"))
    assert run("remove", ID)["freed_bytes"] > 0


def test_gated_model_with_the_token_of_the_environment(
    here: Path, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Double(Repo(ID, files, gated=True, allowed=("hf_good",))) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        with pytest.raises(HeteGenError, match="Accept the licence"):
            run("download", ID)
        monkeypatch.setenv("HF_TOKEN", "hf_good")
        assert run("download", ID)["verified"]


def test_token_for_a_mirror_is_kept_back_and_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://mirror.invalid")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(HeteGenError, match="Offline"):
        run("search", "x")
    err = capsys.readouterr().err
    assert "HF_TOKEN is not sent to mirror.invalid; set HETEGEN_TOKEN_HOST=mirror.invalid" in err
    assert "hf_secret" not in err


def test_progress_on_terminals_and_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.commands.models.time", SimpleNamespace(monotonic=lambda: 1000.0))

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    progress = Progress("a/b", "", "fetching", 5_000_000, 10_000_000, 5_000_000, 1e6, 5.0, (), "Waiting.")
    live, log = Terminal(), io.StringIO()
    for out in (live, log):
        report = terminal_report(out)
        report(progress)
        report(progress)
        report(Progress("a/b", "", "done", 10, 10))
    over, done = live.getvalue().split("\r")[1:]
    assert len(done.strip("\n")) == len(over)
    assert "\033" not in live.getvalue()
    assert log.getvalue().count("\n") == 2
    line = "a/b: 5 MB of 10 MB, 1 MB/s, 5 s left. Waiting."
    assert progress_line(progress) == line
    assert line in log.getvalue()
    terminal_report(None)(progress)


@pytest.mark.parametrize(("seconds", "words"), [(0.4, "1 s"), (59, "59 s"), (61, "1 min"), (7300, "2 h 1 min")])
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_needs_neither_torch_nor_qt(here: Path) -> None:
    code = (
        "import sys, core.commands.models, core.hub.remote_spec\n"
        "print(*(name for name in ('torch', 'PySide6', 'transformers', 'huggingface_hub', 'keyring', 'app')"
        " if name in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert done.stdout.strip() == ""


def test_one_file_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Double(Repo("tiny", model_files(shards=1))) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
        assert run("download", "tiny")["verified"]
        assert run("search", "nothing-like-it") == []
