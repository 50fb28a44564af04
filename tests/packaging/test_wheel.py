"""What `pip install .` installs: the wheel contains everything the program needs without its sources."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from core.paths import assets

ROOT = Path(__file__).parents[2]
ONLY_IN_TESTS = {"safetensors", "huggingface-hub", "tokenizers"}
USED = {"numpy", "torch", "transformers", "psutil", "platformdirs", "keyring", "packaging", "jinja2"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names in a wheel built from these sources with the installed tools; no kernels are compiled for it."""
    folder = tmp_path_factory.mktemp("wheel")
    make = "import sys; sys.argv = ['setup.py', '-q', 'egg_info', '-e', sys.argv[1], 'build_py', '-d', sys.argv[2]]; "
    command = [sys.executable, "-c", make + "exec(open('setup.py').read())", str(folder), str(folder / "lib")]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=250)
    return {path.relative_to(folder / "lib").as_posix() for path in (folder / "lib").rglob("*") if path.is_file()}


def test_assets_are_where_the_program_looks(wheel: set[str]) -> None:
    source = assets()
    wanted = {f"core/_assets/{path.relative_to(source).as_posix()}" for path in source.rglob("*") if path.is_file()}
    assert wanted <= wheel
    assert "core/_assets/builtin-model/model.safetensors" in wheel
    assert "core/_assets/translations/de.json" in wheel


def test_every_module_and_the_kernel_for_cards_is_there(wheel: set[str]) -> None:
    sources = {path.relative_to(ROOT).as_posix() for room in ("core", "app") for path in (ROOT / room).rglob("*.py")}
    assert sources <= wheel
    assert "core/kernels/device.cu" in wheel
    assert not [name for name in wheel if name.startswith(("tests", "packaging"))]


def test_what_is_imported_is_declared_and_nothing_else() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    declared = {line.split(">")[0].strip().lower() for line in project["dependencies"]}
    assert declared >= USED
    assert not declared & ONLY_IN_TESTS
