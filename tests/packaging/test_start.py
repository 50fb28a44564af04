"""The guards before the start: a home, the environment, missing libraries in words."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from app.system import start
from core.documents import reader
from core.gpu_runtime import trial


@pytest.mark.parametrize(
    ("message", "package"),
    [
        ("libEGL.so.1: cannot open shared object file: No such file or directory", "libegl1"),
        ("libxcb-cursor.so.0: cannot open shared object file: No such file or directory", "libxcb-cursor0"),
        ("libxkbcommon-x11.so.0: cannot open shared object file: No such file or directory", "libxkbcommon-x11-0"),
    ],
)
def test_a_missing_library_is_named_with_its_package(message: str, package: str):
    library = message.partition(":")[0]
    assert start.missing(message) == (
        f"The system library {library} is missing. On Debian or Ubuntu: sudo apt install {package}"
    )


def test_an_unknown_missing_library_is_named():
    said = start.missing("libodd.so.3: cannot open shared object file: No such file or directory")
    assert "libodd.so.3 is missing" in said
    assert "system's packages" in said


def test_another_failure_of_the_loader_is_passed_on():
    assert "invalid ELF header" in start.missing("/opt/x.so: invalid ELF header")


def test_the_environment_is_set_but_a_persons_own_values_stay():
    environ = {"HF_HUB_DISABLE_TELEMETRY": "0", "HOME": "/home/someone"}
    start.prepare(environ)
    assert environ["USE_HUB_KERNELS"] == "NO"
    assert environ["HF_HUB_DISABLE_TELEMETRY"] == "0"
    assert environ["HOME"] == "/home/someone"


def test_programs_that_a_bundle_starts_get_the_systems_own_libraries(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    environ = {"LD_LIBRARY_PATH": "/opt/hetegen/_internal", "LD_LIBRARY_PATH_ORIG": "/usr/local/lib"}
    start.restore_library_path(environ)
    assert environ == {"LD_LIBRARY_PATH": "/usr/local/lib"}


def test_from_source_the_library_path_is_the_persons():
    environ = {"LD_LIBRARY_PATH": "/usr/local/cuda/lib64"}
    start.restore_library_path(environ)
    assert environ == {"LD_LIBRARY_PATH": "/usr/local/cuda/lib64"}


def test_a_bundle_trusts_whom_this_system_trusts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    ours = tmp_path / "ca-bundle.crt"
    ours.touch()
    environ: dict[str, str] = {}
    start.find_certificates(environ, [str(tmp_path / "elsewhere.crt"), str(ours)])
    assert environ == {"SSL_CERT_FILE": str(ours)}


def test_certificates_that_a_person_names_stay(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    (tmp_path / "system.crt").touch()
    environ = {"SSL_CERT_FILE": "/etc/proxy.crt"}
    start.find_certificates(environ, [str(tmp_path / "system.crt")])
    assert environ == {"SSL_CERT_FILE": "/etc/proxy.crt"}


@pytest.mark.parametrize("home", ["nowhere", None])
def test_without_a_home_one_is_made_and_said(
    home: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    def find_home() -> Path:
        if home is None:
            raise RuntimeError("Could not determine home directory.")
        return tmp_path / home

    monkeypatch.setattr(Path, "home", find_home)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    environ: dict[str, str] = {}
    start.ensure_home(environ)
    assert Path(environ["HOME"]).parent == tmp_path
    assert Path(environ["HOME"]).is_dir()
    assert environ["HOME"] in capsys.readouterr().err


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux starts without a screen")
def test_no_screen_is_said_in_words():
    environ = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY")}
    environ.pop("QT_QPA_PLATFORM", None)
    code = (
        "from app.system import start\ntry: start.check_window()\nexcept start.CannotStart as problem: print(problem)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "There is no screen: neither DISPLAY nor WAYLAND_DISPLAY is set."


def test_the_loaders_words_are_found_behind_those_of_pyinstaller(monkeypatch: pytest.MonkeyPatch):
    def as_in_a_bundle(name: str) -> None:
        cause = OSError("libxcb-cursor.so.0: cannot open shared object file: No such file or directory")
        raise OSError(f"Failed to load dynlib/dll {name!r}.") from cause

    monkeypatch.setattr("ctypes.CDLL", as_in_a_bundle)
    with pytest.raises(start.CannotStart, match="apt install libxcb-cursor0"):
        start.load_library(Path("libqxcb.so"))


def test_a_library_that_is_no_library_stops_the_start_in_words(tmp_path: Path):
    broken = tmp_path / "libbroken.so"
    broken.write_bytes(b"not a library")
    with pytest.raises(start.CannotStart, match="cannot be loaded"):
        start.load_library(broken)


def test_a_bundle_tries_the_runtime_when_it_is_asked_as_the_trial_asks(repository: Path):
    sources = (repository / "packaging" / "launch.py").read_text("utf-8")
    assert f'TRY_GPU_RUNTIME = "{trial.ARGUMENT}"' in sources
    assert f'READ_DOCUMENT = "{reader.ARGUMENT}"' in sources
