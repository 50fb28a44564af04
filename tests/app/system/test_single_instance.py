import subprocess
import sys
from pathlib import Path

import pytest
from PySide6.QtNetwork import QLocalServer, QLocalSocket
from pytestqt.qtbot import QtBot

from app.system.single_instance import SingleInstance
from tests.app.conftest import LONG_MS
from tests.app.waiting import until

OTHER = """
import sys
from pathlib import Path
from PySide6.QtCore import QCoreApplication
from app.system import single_instance
qt = QCoreApplication([])
single_instance.ANSWER_MS, single_instance.ENDING_S = int(sys.argv[2]), float(sys.argv[3])
sys.exit(3 if single_instance.SingleInstance(Path(sys.argv[1])).claim(sys.argv[4]) else 4)
"""
AT_ONCE = """
import sys, time
from pathlib import Path
from PySide6.QtCore import QCoreApplication
from PySide6.QtNetwork import QLocalServer
from app.system import single_instance

class Late(QLocalServer):
    def listen(self, name):
        time.sleep(1)  # by now the other has found nobody, too
        return super().listen(name)

qt = QCoreApplication([])
single_instance.QLocalServer, single_instance.ANSWER_MS = Late, int(sys.argv[2])
one = single_instance.SingleInstance(Path(sys.argv[1]))
print("here", flush=True)
sys.stdin.readline()
if not one.claim():
    sys.exit(4)
one.woken.connect(lambda: print("woken", flush=True))
qt.exec()  # as a window, which stays: one that ended now could not hear the other out
"""
FIRST, SECOND = 3, 4
LONG_S = LONG_MS / 1000
ON_WINDOWS = """
import ctypes
from types import SimpleNamespace
told = SimpleNamespace(AllowSetForegroundWindow=lambda who: print(hex(who), flush=True))
ctypes.windll = SimpleNamespace(user32=told)
"""


def start(data: Path, answer_ms: int = 60_000, ending_s: float = 60.0, model: str = "") -> subprocess.Popen[bytes]:
    """Start the program again; its exit code says whether it is the first."""
    return subprocess.Popen([sys.executable, "-c", OTHER, str(data), str(answer_ms), str(ending_s), model])


def test_the_second_wakes_the_first(qtbot: QtBot, tmp_path: Path) -> None:
    first = SingleInstance(tmp_path)
    assert first.claim()
    with qtbot.waitSignal(first.woken):
        other = start(tmp_path)
    assert other.wait(LONG_S) == SECOND
    first.release()
    second = SingleInstance(tmp_path)
    assert second.claim()
    second.release()


@pytest.mark.skipif(sys.platform == "win32", reason="a stand-in for what is there")
def test_on_windows_the_second_lets_the_first_come_to_the_front(qtbot: QtBot, tmp_path: Path) -> None:
    first = SingleInstance(tmp_path)
    assert first.claim()
    code = ON_WINDOWS + OTHER.replace("qt = ", "sys.platform = 'win32'\nqt = ")
    with qtbot.waitSignal(first.woken):
        other = subprocess.Popen([sys.executable, "-c", code, tmp_path, "60000", "60", ""], stdout=subprocess.PIPE)
    assert other.communicate(timeout=LONG_S)[0].split() == [b"0xffffffff"]
    first.release()


def test_one_that_is_ending_is_waited_for(qapp: object, tmp_path: Path) -> None:
    """Its window is closed and its event loop has ended: nobody would see it raised."""
    ending, woken = SingleInstance(tmp_path), list[bool]()
    ending.woken.connect(lambda: woken.append(True))
    assert ending.claim()
    other = start(tmp_path, answer_ms=50)
    with pytest.raises(subprocess.TimeoutExpired):
        other.wait(3)  # no event is processed meanwhile
    ending.release()
    assert other.wait(LONG_S) == FIRST
    assert not woken


def test_when_two_start_at_once_one_is_first(tmp_path: Path) -> None:
    command = [sys.executable, "-c", AT_ONCE, str(tmp_path), "60000"]
    both = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(2)]
    try:
        for each in both:
            assert each.stdout is not None
            assert each.stdout.readline().strip() == b"here"
        for each in both:
            assert each.stdin is not None
            each.stdin.write(b"\n")
            each.stdin.flush()
        until(lambda: any(each.poll() is not None for each in both))
        second, first = sorted(both, key=lambda each: each.poll() is None)
        assert second.returncode == SECOND
        assert first.stdout is not None
        assert first.stdout.readline().strip() == b"woken"
        assert first.poll() is None
    finally:
        for each in both:
            each.kill()
            each.communicate()


def test_one_that_does_not_end_is_not_waited_for_for_ever(qapp: object, tmp_path: Path) -> None:
    hung = SingleInstance(tmp_path)
    assert hung.claim()
    assert start(tmp_path, answer_ms=50, ending_s=0.3).wait(LONG_S) == FIRST
    hung.release()


def test_other_data_is_another_program(qapp: object, tmp_path: Path) -> None:
    first, second = SingleInstance(tmp_path / "a"), SingleInstance(tmp_path / "b")
    assert first.claim()
    assert second.claim()
    first.release()
    second.release()


def test_what_a_crash_left_is_no_hindrance(qapp: object, tmp_path: Path) -> None:
    again, dead = SingleInstance(tmp_path), QLocalServer()
    assert dead.listen(again.name)
    place = Path(dead.fullServerName())
    dead.close()
    if sys.platform != "win32":  # there it is a pipe, which ends with its program
        place.touch()
    assert again.claim()
    caller = QLocalSocket()
    caller.connectToServer(again.name)
    assert caller.waitForConnected(1000)
    caller.abort()
    again.release()
    assert QLocalServer.removeServer(again.name)


def test_the_second_hands_its_file_over(qtbot: QtBot, tmp_path: Path) -> None:
    first = SingleInstance(tmp_path)
    assert first.claim()
    with qtbot.waitSignal(first.asked) as heard:
        other = start(tmp_path, model="/models/ü ä.gguf")
    assert heard.args == ["/models/ü ä.gguf"]
    assert other.wait(LONG_S) == SECOND
    first.release()


@pytest.mark.parametrize("said", [b"\n", b"{}\n", b"no json\n", b"\xff\n", b"x" * 200_000])
def test_nonsense_opens_nothing(qtbot: QtBot, tmp_path: Path, said: bytes) -> None:
    first, asked = SingleInstance(tmp_path), list[str]()
    first.asked.connect(asked.append)
    assert first.claim()
    caller = QLocalSocket()
    caller.connectToServer(first.name)
    assert caller.waitForConnected(5000)
    with qtbot.waitSignal(caller.disconnected):
        caller.write(said)
    first.release()
    assert asked == []
