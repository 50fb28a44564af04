from pathlib import Path

import pytest

from app.system.paths import places


def test_home_variable_holds_everything(tmp_path: Path) -> None:
    found = places({"HETEGEN_HOME": str(tmp_path / "home")}).make()
    folders = (found.data, found.config, found.cache, found.logs)
    assert all(folder.is_dir() and folder.is_relative_to(tmp_path / "home") for folder in folders)
    assert len(set(folders)) == 4
    assert found.conversations.parent == found.data
    assert found.settings.parent == found.config
    assert found.log.parent == found.logs


def test_relative_home_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert places({"HETEGEN_HOME": "here"}).data == tmp_path / "here" / "data"


def test_the_systems_folders_name_the_program_once() -> None:
    found = places({"HETEGEN_HOME": " "})
    assert found.data.is_absolute()
    assert found.config.parts.count("HeteGen") == 1
