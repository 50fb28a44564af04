"""Counts of experts' use are kept for a model's next load, and only for that model."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from core.events import LoadOptions
from core.kernels.native_library import instruction_sets
from core.model.placement import DevicePlacement
from core.paths import cache_folder
from core.runtime.expert_uses import FOLDER, KEPT_MODELS, keep_uses, recall_uses
from core.runtime.loaded_model import LoadedModel
from core.runtime.loader import load_model
from core.spec import LinearPlan, Rows
from tests.core.tiny_tokenizer import chat_model

USES = {"model.layers.0.mlp.experts": [3.0, 0.0, 12.5], "model.layers.1.mlp.experts": [1.0, 2.0, 3.0]}


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"weights")
    return [file]


def kept(folder: Path) -> Path:
    (found,) = (folder / FOLDER).glob("*.json")
    return found


def test_what_was_kept_is_recalled(tmp_path: Path, files: list[Path]) -> None:
    assert recall_uses(tmp_path, files) == {}
    keep_uses(tmp_path, files, USES)
    assert recall_uses(tmp_path, files) == USES


def test_another_model_and_changed_files_know_nothing(tmp_path: Path, files: list[Path]) -> None:
    keep_uses(tmp_path, files, USES)
    files[0].write_bytes(b"other weights")
    assert recall_uses(tmp_path, files) == {}
    files[0].unlink()
    assert recall_uses(tmp_path, files) == {}
    keep_uses(tmp_path, files, USES)


@pytest.mark.parametrize(
    "damaged",
    [
        "", "{", "[]", "null", '{"version": 1}', '{"version": 0, "uses": {"a": [1]}}', '{"version": 1, "uses": [1]}',
        '{"version": 1, "uses": {"a": [-1]}}', '{"version": 1, "uses": {"a": [NaN]}}',
        '{"version": 1, "uses": {"a": 3}}', '{"version": 1, "uses": {"a": ["many"]}}',
        '{"version": 1, "uses": {"a": [1e99]}}',
    ],
)  # fmt: skip
def test_what_is_damaged_counts_as_unknown(damaged: str, tmp_path: Path, files: list[Path]) -> None:
    keep_uses(tmp_path, files, USES)
    kept(tmp_path).write_text(damaged, encoding="utf-8")
    assert recall_uses(tmp_path, files) == {}


def test_random_weights_and_folders_that_cannot_be_written(tmp_path: Path, files: list[Path]) -> None:
    keep_uses(tmp_path, [], USES)
    assert recall_uses(tmp_path, []) == {}
    (tmp_path / FOLDER).write_text("a file", encoding="utf-8")
    keep_uses(tmp_path, files, USES)
    assert recall_uses(tmp_path, files) == {}


def test_the_models_used_last_are_remembered(tmp_path: Path, files: list[Path]) -> None:
    (tmp_path / FOLDER).mkdir()
    for number in range(KEPT_MODELS):
        old = tmp_path / FOLDER / f"{number}.json"
        old.write_text("{}", encoding="utf-8")
        os.utime(old, (number, number))
    keep_uses(tmp_path, files, USES)
    left = {file.name for file in (tmp_path / FOLDER).glob("*.json")}
    assert len(left) == KEPT_MODELS
    assert "0.json" not in left
    assert recall_uses(tmp_path, files) == USES


@pytest.mark.skipif(not instruction_sets(), reason="the package was built without a compiler")
def test_the_next_load_begins_with_what_this_one_counted(tmp_path: Path) -> None:
    chat_model(tmp_path, "qwen3_moe", hidden_size=256, moe_intermediate_size=512)
    counted = beside_a_card(tmp_path, read=True)
    assert counted
    assert beside_a_card(tmp_path) == counted
    file = kept(cache_folder())
    known = json.loads(file.read_text(encoding="utf-8"))
    known["uses"] = {path: [*uses, 1.0] for path, uses in known["uses"].items()}
    file.write_text(json.dumps(known), encoding="utf-8")
    assert beside_a_card(tmp_path) == {}


def beside_a_card(folder: Path, *, read: bool = False) -> dict[str, list[float]]:
    """Return the known use of experts after a load, and after a prompt was read."""
    card = "vram=64MiB,link=2GB/s,gpu=100GB/s"
    options = LoadOptions(context=256, format="int8", simulate_gpu=card, vram=7 << 20)
    *_, loaded = load_model(folder, options)
    assert isinstance(loaded, LoadedModel)
    assert isinstance(loaded.model.placement, DevicePlacement)
    if read:
        loaded.move_to(replace(loaded.plan, linears=tuple(map(half, loaded.plan.linears))))
        loaded.model.forward([1, 2, 3, 4], loaded.cache)
        assert loaded.expert_shares is not None
        assert loaded.expert_shares.on_card + loaded.expert_shares.copied + loaded.expert_shares.on_cpu == 1
    uses = loaded.model.placement.expert_uses
    loaded.close()
    return uses


def half(linear: LinearPlan) -> LinearPlan:
    rows = Rows(linear.rows // 2, 0, linear.rows - linear.rows // 2)
    return replace(linear, shares=(rows, rows, rows, rows))
