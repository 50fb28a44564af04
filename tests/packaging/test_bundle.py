"""The bundle starts and answers wherever users put it, and with less than the usual environment."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from core.model.spec_cache import FOLDER

EXE = ".exe" if sys.platform == "win32" else ""
POSIX = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX")
LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the Secret Service is Linux's keyring")
ROOT_ONLY = pytest.mark.skipif(getattr(os, "geteuid", lambda: 1)() != 0, reason="only root can run as another person")


@pytest.fixture(scope="module")
def odd_place(bundle: Path) -> Iterator[Path]:
    """The bundle in a folder with spaces and letters of several scripts, which others may read."""
    base = Path(tempfile.mkdtemp())
    base.chmod(0o755)
    folder = base / "Ein Ordner – für 模型 und модели" / "hetegen"
    # macOS keeps the libraries two folders up: move the whole application.
    whole = bundle.parents[1] if bundle.name == "MacOS" else bundle
    shutil.copytree(whole, folder, symlinks=True, copy_function=link)
    yield folder / bundle.relative_to(whole)
    shutil.rmtree(base)


def link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def self_test(program: Path, environ: Mapping[str, str] = os.environ, user: str | None = None) -> dict[str, object]:
    done = subprocess.run(
        [program, "--self-test"], capture_output=True, encoding="utf-8", env=dict(environ), user=user, timeout=250,
        check=False, cwd=program.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    report: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return report


def test_answers_from_a_path_with_spaces_and_other_letters(odd_place: Path):
    report = self_test(odd_place / f"hetegen{EXE}")
    assert report["ok"]
    assert report["text"]


def test_the_first_start_need_not_survey_the_guide(bundle: Path, tmp_path: Path):
    environ = os.environ | {"HETEGEN_HOME": str(tmp_path)}
    command = [bundle / f"hetegen-cli{EXE}", "chat", "--prompt", "Hello"]
    subprocess.run(command, env=environ, capture_output=True, check=True, timeout=250)
    assert not (tmp_path / "cache" / FOLDER).exists()


@POSIX
@ROOT_ONLY
def test_answers_as_another_person_from_a_folder_that_is_not_theirs_without_a_home(odd_place: Path):
    # "nobody" has no home folder, and may not write to the bundle.
    environ = {name: value for name, value in os.environ.items() if name not in ("HOME", "HETEGEN_HOME", "HF_HOME")}
    report = self_test(odd_place / "hetegen", environ, user="nobody")
    assert report["ok"]


@POSIX
def test_answers_without_streams(odd_place: Path, tmp_path: Path):
    script = 'exec "$0" --self-test <&- >&- 2>&-'
    done = subprocess.run(["sh", "-c", script, odd_place / "hetegen"], check=False, timeout=250)
    assert done.returncode == 0


@POSIX
def test_says_which_screen_is_missing(odd_place: Path):
    environ = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY")}
    environ.pop("QT_QPA_PLATFORM", None)
    done = subprocess.run(
        [odd_place / "hetegen"], env=environ, capture_output=True, text=True, check=False, timeout=250
    )
    assert done.returncode == 1
    assert done.stderr.strip() == "error: There is no screen: neither DISPLAY nor WAYLAND_DISPLAY is set."


def test_the_kernels_are_in_the_bundle(command_line: Path):
    done = subprocess.run([command_line, "doctor", "--json"], capture_output=True, encoding="utf-8", check=True)
    assert json.loads(done.stdout.splitlines()[-1])["compiled_kernels"]


def test_every_library_has_its_licence(contents: Path):
    texts = next(contents.rglob("licences/texts"))
    lines = (texts / "index.tsv").read_text("utf-8").splitlines()[1:]
    assert len(lines) > 30
    for line in lines:
        files = line.split("\t")[3].split(", ")
        assert all((texts / file).is_file() for file in files), line


def test_development_tools_stay_behind(contents: Path):
    names = {path.name for path in next(contents.rglob("torch")).parent.iterdir()}
    assert not names & {"pytest", "setuptools", "tkinter", "scipy", "matplotlib"}


def test_a_broken_runtime_for_graphics_cards_is_told_in_words(told_inside: Callable[..., str]):
    assert told_inside("told = 'libcudart.so.13 is missing'") == "libcudart.so.13 is missing"


KEEP_A_TOKEN = """
import os
from core.errors import HeteGenError
from core.hub.environment import hub_environment
from core.hub.token import find_token, forget_token, keep_token
from core.keyring import system_keyring

environment, keyring = hub_environment({}), system_keyring()
try:
    keep_token(environment, "hf_of_this_test", keyring)
    found = find_token(environment, keyring)
    forget_token(environment, keyring)
    told = f"{found.value} from {found.source}, then {find_token(environment, keyring).source}"
except HeteGenError as problem:
    told = str(problem)
"""


@LINUX
@pytest.mark.skipif(shutil.which("dbus-run-session") is None, reason="needs dbus-run-session")
@pytest.mark.skipif(shutil.which("gnome-keyring-daemon") is None, reason="needs gnome-keyring-daemon")
def test_a_token_is_kept_in_the_desktops_keyring(
    told_inside: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    unlocked = 'printf secret | gnome-keyring-daemon --unlock --components=secrets >/dev/null; exec "$0" "$@"'
    told = told_inside(KEEP_A_TOKEN, around=["dbus-run-session", "--", "sh", "-c", unlocked])
    assert told == "hf_of_this_test from keyring, then none"


@LINUX
def test_without_a_keyring_the_token_is_not_kept_and_that_is_said(
    told_inside: Callable[..., str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("DBUS_SESSION_BUS_ADDRESS", raising=False)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    assert "The token was not kept." in told_inside(KEEP_A_TOKEN)
