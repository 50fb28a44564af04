"""transformers' table of models, cached on disk between starts: equal to transformers' own, or made again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from core.startup.transformers_index import KeptTable, Table

TABLE: Table = {frozenset(): {"a.config": {"A"}}, frozenset({"torch"}): {"a.modeling": {"B", "C"}}}
IMPORT = """
import sys
from pathlib import Path
from core.startup.transformers_index import KeptTable, keep_model_index
keep_model_index(Path(sys.argv[1]))
import transformers.utils.import_utils as utils
from transformers import LlamaConfig
kept, models = utils.define_import_structure, Path(utils.__file__).parents[1] / "models"
made = utils.spread_import_structure(utils.create_import_structure_from_path(models))
assert isinstance(kept, KeptTable)
assert kept(models) == made
assert kept(models, prefix="models") == {n: {f"models.{k}": v for k, v in each.items()} for n, each in made.items()}
assert type(utils.__loader__).__module__ != "core.startup.transformers_index"
"""


class Maker:
    """Makes TABLE and counts how often."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, module_path: str | Path, prefix: str | None = None) -> Table:
        self.calls += 1
        return TABLE


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


def test_importing_gives_transformers_own_table(tmp_path: Path) -> None:
    command = [sys.executable, "-c", IMPORT, str(tmp_path)]
    subprocess.run(command, check=True, timeout=200)
    (file,) = tmp_path.glob("models-*.json")
    subprocess.run(command, check=True, timeout=200)
    file.write_bytes(b"{")
    subprocess.run(command, check=True, timeout=200)


def test_is_made_once_and_then_read(models: Path, tmp_path: Path) -> None:
    make = Maker()
    for _ in range(3):
        kept = KeptTable(make, models, "1", tmp_path)
        assert kept(models) == TABLE
        assert kept(str(models / "__init__.py"), "m")[frozenset({"torch"})] == {"m.a.modeling": {"B", "C"}}
    assert make.calls == 1


def test_is_made_again_for_another_version_and_after_damage(models: Path, tmp_path: Path) -> None:
    make = Maker()
    KeptTable(make, models, "1", tmp_path)(models)
    KeptTable(make, models, "2", tmp_path)(models)
    for damaged in ("", "[1]", '{"a": 1}'):
        for file in tmp_path.glob("models-1-*.json"):
            file.write_text(damaged, encoding="utf-8")
        assert KeptTable(make, models, "1", tmp_path)(models) == TABLE
    assert make.calls == 5


def test_needs_no_place_to_write(models: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert KeptTable(Maker(), models, "1", tmp_path / "file")(models) == TABLE


def test_other_folders_are_left_to_transformers(models: Path, tmp_path: Path) -> None:
    make = Maker()
    kept = KeptTable(make, models, "1", tmp_path)
    kept(models / "llama")
    kept(models / "llama")
    assert make.calls == 2
