"""Tool servers as real processes and over real HTTP: their answers, and every way in which they can fail."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from core.errors import ToolFailed
from core.tools.log_file import MOST_BYTES, LogFile
from core.tools.server import ToolServer
from tests.core.tools.conftest import PATIENCE_S, SCRIPT, Stage, script


def test_a_program_lists_its_tools_and_answers_calls(stage: Stage) -> None:
    stage.started(script())
    status = stage.until("test", lambda status: bool(status.tools))
    add = next(tool for tool in status.tools if tool.name == "add")
    assert (add.description, sorted(add.parameters["properties"])) == ("Add two numbers.", ["a", "b"])
    assert stage.call("add", a=2, b=3) == "5"
    assert stage.call("echo", text="grün\n✓") == "grün\n✓"
    assert any("✓ add" in line for line in stage.until("test", lambda now: "✓ echo" in str(now.log)).log)


def test_a_tools_own_error_is_a_failed_result_and_the_server_lives(stage: Stage) -> None:
    stage.started(script())
    result = stage.host.call("test", "fail", {}, 1000).result(PATIENCE_S)
    assert result.failed
    assert "fail" in result.text
    assert stage.call("add", a=1, b=1) == "2"


def test_a_long_result_is_cut_and_says_so(stage: Stage) -> None:
    stage.started(script())
    assert stage.call("big", 100, size=5000) == "x" * 100 + "\n[4900 more characters were left out.]"


@pytest.mark.parametrize(("tool", "why"), [("die", "has ended. Its exit code is 7"), ("rant", "was stopped. It sends")])
def test_a_server_that_dies_or_floods_ends_the_call_and_starts_again(stage: Stage, tool: str, why: str) -> None:
    stage.started(script())
    with pytest.raises(ToolFailed, match=f"test {why}"):
        stage.call(tool)
    assert stage.until("test", lambda status: status.phase == "failed").error
    assert stage.call("add", a=4, b=4) == "8", "the next call starts it again"


def test_what_is_no_tool_server_is_stopped(stage: Stage) -> None:
    stage.host.use([script("nonsense", name="nonsense"), script("swell", name="swell")])
    for name in ("nonsense", "swell"):
        error = stage.until(name, lambda status: status.phase == "failed").error
        assert str(error) == f"{name} was stopped. It sends what no tool server sends. Look at its log."


def test_a_call_that_hangs_is_given_up_and_others_go_on(stage: Stage) -> None:
    stage.started(script(), script(name="other"))
    hanging = stage.host.call("test", "hang", {}, 100)
    assert stage.call("add", server="other", a=1, b=2) == "3"
    assert not hanging.done()
    hanging.cancel()
    stage.until("test", lambda status: "■ hang" in str(status.log))


def left_of(children: list[psutil.Process]) -> list[psutil.Process]:
    """Return the processes that live on. One that was killed may end a moment later, where the processor is busy."""
    return psutil.wait_procs(children, PATIENCE_S)[1]


def test_no_process_and_no_thread_is_left(stage: Stage) -> None:
    stage.started(script(), script(name="other"))
    stage.host.call("test", "hang", {}, 100)
    children = psutil.Process().children(recursive=True)
    assert len(children) >= 2
    stage.host.close()
    assert not left_of(children)
    assert not [thread for thread in threading.enumerate() if thread.name == "tools"]


@pytest.mark.parametrize("late_s", [0.0, 0.6])
def test_a_program_that_has_to_be_killed_leaves_nothing_open(late_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a busy machine tells the event loop late that the program has ended."""
    wait, lost, before = os.waitpid, list[object](), threading.enumerate()

    def waited(pid: int, options: int) -> tuple[int, int]:
        found = wait(pid, options)
        time.sleep(late_s)
        return found

    monkeypatch.setattr(os, "waitpid", waited)
    monkeypatch.setattr(sys, "unraisablehook", lambda what: lost.append(what.exc_value))
    stage = Stage()
    stage.host.use([script("nonsense")])
    stage.until("test", lambda status: status.phase == "failed")
    stage.host.close()
    for thread in threading.enumerate():
        if thread not in before:  # asyncio's, which waits for the program
            thread.join()
    del stage
    gc.collect()
    assert not lost


def test_servers_that_are_being_ended_when_all_are_leave_nothing_behind(stage: Stage) -> None:
    stage.started(script(), script(name="other"))
    stage.host.call("test", "hang", {}, 100)
    stage.until("test", lambda status: "→ hang" in str(status.log))
    children = psutil.Process().children(recursive=True)
    stage.host.use([script(name="other"), script(name="late")])
    stage.host.close()
    children += psutil.Process().children(recursive=True)
    assert not left_of(children)


def test_what_cannot_be_started_says_why_and_its_log_stays(stage: Stage) -> None:
    stage.host.use([ToolServer("lost", "no-such-program-here"), script("crash", name="crash")])
    error = stage.until("lost", lambda status: status.phase == "failed").error
    assert str(error).startswith("lost could not be started. no-such-program-here: ")
    crashed = stage.until("crash", lambda status: status.phase == "failed" and "my files" in str(status.log))
    assert str(crashed.error) == "crash has ended. Its exit code is 3. Look at its log."


def test_a_program_that_closes_its_output_and_lives_on_is_stopped(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.tools.stdio.CODE_S", 0.1)
    stage.host.use([script("close")])
    error = stage.until("test", lambda status: status.phase == "failed").error
    assert str(error) == "test was stopped. It has closed its output. Look at its log."


def test_a_server_that_says_nothing_does_not_block_and_can_be_switched_off(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.tools.link.START_S", 1.0)
    stage.host.use([script("mute")])
    error = stage.until("test", lambda status: status.phase == "failed").error
    assert str(error) == "test does not answer. It was given up after a while. Look at its log."
    stage.host.use([script("mute", on=False)])
    stage.until("test", lambda status: status.phase == "off")
    with pytest.raises(ToolFailed, match="switched off"):
        stage.call("add", a=1, b=1)


def test_keys_are_given_to_the_server_and_shown_nowhere(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_of_another_program")
    server = script(environment={"API_KEY": "sk-very-secret"})
    stage.started(server)
    assert stage.call("key") == "sk-very-secret"
    assert stage.call("secrets") == "none", "the program's own environment is not passed on"
    log = stage.until("test", lambda status: "using" in str(status.log)).log
    assert "sk-very-secret" not in f"{log} {server}"


def test_a_servers_log_outlives_the_program_and_goes_with_the_server(tmp_path: Path) -> None:
    first = Stage(tmp_path)
    first.started(script(environment={"API_KEY": "sk-very-secret"}))
    first.call("key")
    first.until("test", lambda status: "using" in str(status.log))
    first.host.close()
    [file] = tmp_path.iterdir()
    assert "using •••" in file.read_text("utf-8")
    assert "sk-very-secret" not in file.read_text("utf-8")

    second = Stage(tmp_path)
    second.host.use([script(on=False), script(on=False, name="te/st")])
    assert "using •••" in str(second.until("test", lambda status: bool(status.log)).log)
    assert not second.until("te/st", lambda status: True).log
    second.host.use([script(on=False, name="other")])
    second.host.restart(script(name="other"))
    second.until("other", lambda status: status.phase == "on")
    second.host.close()
    assert not file.exists()


def test_a_log_on_disk_stays_small_and_its_latest_lines_are_found_over_both_files(tmp_path: Path) -> None:
    file = LogFile(tmp_path, "CON: a/b\\c")
    for number in range(40):
        file.write([f"{number} {'ü' * 10_000}"])
    assert sum(each.stat().st_size for each in tmp_path.iterdir()) <= 2 * MOST_BYTES
    assert [line.split()[0] for line in file.latest(14)] == [str(number) for number in range(26, 40)]
    blocked = LogFile(file.path / "no folder", "x")
    blocked.write(["nothing is kept, and nothing fails"])
    assert blocked.latest(3) == []


@pytest.fixture
def address() -> Iterator[str]:
    """Run the same server in another process, listening on loopback."""
    command = [sys.executable, str(SCRIPT), "http"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.kill()


def test_a_server_behind_an_address_answers_and_its_death_is_a_sentence(stage: Stage, address: str) -> None:
    stage.started(ToolServer("web", url=address))
    assert stage.call("add", server="web", a=20, b=22) == "42"
    with pytest.raises(ToolFailed, match="web"):
        stage.call("die", server="web")
    with pytest.raises(ToolFailed, match="web"):
        stage.call("add", server="web", a=1, b=1)


def test_an_address_where_nobody_listens_is_a_sentence(stage: Stage) -> None:
    stage.host.use([ToolServer("web", url="http://127.0.0.1:9/mcp")])
    error = stage.until("web", lambda status: status.phase == "failed").error
    assert str(error).startswith("web failed. It says: ")
