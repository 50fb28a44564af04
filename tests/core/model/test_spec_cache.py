"""Cached specifications are read from disk, and equal those of a survey."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from core.model import spec_cache
from core.model.model_source import open_source
from core.model.spec_cache import specification
from core.model.trace import survey


@pytest.fixture(scope="module")
def guide() -> Any:
    return open_source(None).module


def test_is_what_a_survey_finds(guide: Any, tmp_path: Path) -> None:
    assert specification(guide, "Guide", tmp_path) == survey(guide, "Guide")
    assert specification(guide, "Another name", tmp_path) == survey(guide, "Another name")


def test_is_surveyed_once(guide: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = specification(guide, "Guide", tmp_path)
    monkeypatch.setattr(spec_cache, "survey", lambda *_: pytest.fail("surveyed again"))
    assert specification(guide, "Guide", tmp_path) == found


def test_what_a_bundle_brings_is_not_surveyed(guide: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = specification(guide, "Guide", tmp_path / "brought")
    monkeypatch.setattr(spec_cache, "made_before", lambda: tmp_path / "brought")
    monkeypatch.setattr(spec_cache, "survey", lambda *_: pytest.fail("surveyed again"))
    assert specification(guide, "Guide", tmp_path / "cache") == found


def test_another_type_of_weights_is_another_model(tmp_path: Path) -> None:
    module = open_source(None).module
    specification(module, "Guide", tmp_path)
    assert specification(module.to(torch.float32), "Guide", tmp_path).stored_dtype == "fp32"


@pytest.mark.parametrize("damaged", ["", "[]", "{}", '{"linears": [{"no": 1}], "kv_layers": []}'])
def test_a_damaged_file_is_made_again(guide: Any, tmp_path: Path, damaged: str) -> None:
    found = specification(guide, "Guide", tmp_path)
    (file,) = (tmp_path / spec_cache.FOLDER).iterdir()
    whole = file.read_text(encoding="utf-8")
    file.write_text(damaged, encoding="utf-8")
    assert specification(guide, "Guide", tmp_path) == found
    assert file.read_text(encoding="utf-8") == whole


def test_only_so_many_are_kept(guide: Any, tmp_path: Path) -> None:
    folder = tmp_path / spec_cache.FOLDER
    folder.mkdir()
    for number in range(spec_cache.KEPT_SPECS + 5):
        (folder / f"old{number}.json").touch()
    specification(guide, "Guide", tmp_path)
    assert len(list(folder.iterdir())) == spec_cache.KEPT_SPECS


def test_needs_no_place_to_write(guide: Any, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert specification(guide, "Guide", tmp_path / "file") == survey(guide, "Guide")
