"""Saved servers, and the command that serves a model on a larger computer."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.remote.larger import larger
from core.remote.saved import SavedEndpoint, put, read_saved, write_saved

BOX, LOCAL = SavedEndpoint("Box", "box.lan:8000", "big/model"), SavedEndpoint("Ollama", "http://127.0.0.1:11434/v1")


def test_servers_are_kept_in_their_order_and_renamed_in_place(tmp_path: Path) -> None:
    path = tmp_path / "config" / "servers.json"
    assert read_saved(path) == ()
    write_saved(path, (BOX, LOCAL))
    assert read_saved(path) == (BOX, LOCAL)
    renamed = SavedEndpoint("Rack", "box.lan:9000")
    assert put((BOX, LOCAL), renamed, "Box") == (renamed, LOCAL)
    assert put((BOX, LOCAL), SavedEndpoint("Ollama", "x")) == (BOX, SavedEndpoint("Ollama", "x"))
    assert put((BOX,), LOCAL) == (BOX, LOCAL)
    assert BOX.url == "http://box.lan:8000/v1"


@pytest.mark.parametrize("text", ["", "{}", "[1]", '[{"name": "x"}]'])
def test_a_damaged_file_is_no_server(tmp_path: Path, text: str) -> None:
    path = tmp_path / "servers.json"
    path.write_text(text, "utf-8")
    assert read_saved(path) == ()


@pytest.mark.parametrize(("gb", "limit", "context", "says"), [
    (16, 131072, None, "vllm serve a/b --max-model-len 32768 --tensor-parallel-size 1"),
    (61, 8192, None, "vllm serve a/b --max-model-len 8192 --tensor-parallel-size 1"),
    (65, 131072, 65536, "vllm serve a/b --max-model-len 65536 --tensor-parallel-size 2"),
    (141, 40960, None, "vllm serve a/b --max-model-len 32768 --tensor-parallel-size 4"),
    (1300, 163840, None, "vllm serve a/b --max-model-len 32768 --tensor-parallel-size 32"),
])  # fmt: skip
def test_the_command_has_the_cards_and_the_context_that_the_model_needs(
    gb: int, limit: int, context: int | None, says: str
) -> None:
    assert larger("a/b", gb * 10**9, limit, context).command == says
