"""The bundle starts and answers where people put it, and where there is less than it is used to."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from core.gpu_runtime.trial import ARGUMENT

EXE = ".exe" if sys.platform == "win32" else ""
POSIX = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX")
ROOT_ONLY = pytest.mark.skipif(getattr(os, "geteuid", lambda: 1)() != 0, reason="only root can run as another person")


@pytest.fixture(scope="module")
def odd_place(bundle: Path) -> Iterator[Path]:
    """The bundle in a folder with spaces and letters of several scripts, which others may read."""
    base = Path(tempfile.mkdtemp())
    base.chmod(0o755)
    folder = base / "Ein Ordner – für 模型 und модели" / "hetegen"
    # macOS keeps the libraries two folders up: the whole application moves.
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
    done = subprocess.run([odd_place / "hetegen"], env=environ, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert done.stderr.strip() == "error: There is no screen: neither DISPLAY nor WAYLAND_DISPLAY is set."


def test_the_kernels_are_in_the_bundle(command_line: Path):
    done = subprocess.run([command_line, "doctor", "--json"], capture_output=True, encoding="utf-8", check=True)
    assert json.loads(done.stdout.splitlines()[-1])["compiled_kernels"]


def test_every_library_has_its_licence(bundle: Path):
    texts = next(bundle.parent.rglob("licences/texts"))
    lines = (texts / "index.tsv").read_text("utf-8").splitlines()[1:]
    assert len(lines) > 30
    for line in lines:
        files = line.split("\t")[3].split(", ")
        assert all((texts / file).is_file() for file in files), line


def test_development_tools_stay_behind(bundle: Path):
    names = {path.name for path in next(bundle.rglob("torch")).parent.iterdir()}
    assert not names & {"pytest", "setuptools", "tkinter", "scipy", "matplotlib", "PIL"}


def test_a_broken_runtime_for_graphics_cards_is_told_in_words(command_line: Path, tmp_path: Path):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise ImportError('libcudart.so.13 is missing')", "utf-8")
    done = subprocess.run(
        [command_line, ARGUMENT, tmp_path], capture_output=True, encoding="utf-8", check=True, timeout=120
    )
    assert "libcudart.so.13 is missing" in json.loads(done.stdout.splitlines()[-1])["why"]
