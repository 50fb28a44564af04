"""The script for whoever has a card: what it says where there is none, and how it goes on after a failure."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from core.accelerators.card import cards
from tests.bench import on_a_gpu
from tests.bench.on_a_gpu import CHECK, Row, measure, same_tokens, self_check, unusable
from tests.bench.transformers_offloaded import measured

MEASURED = "opt-6.7b bf16 80 GiB hetegen"


def test_a_computer_without_a_card_is_told_so_in_a_sentence(tmp_path: Path, repository: Path) -> None:
    """Also if the reason was another one before; what was measured then is kept."""
    if cards():
        pytest.skip("there is a card")
    rows = {CHECK: {"error": "The driver was missing."}, MEASURED: {"decode_tok_s": 7.5}}
    (tmp_path / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    command = [sys.executable, "-m", "tests.bench.on_a_gpu", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "")
    report, said = (tmp_path / "report.md").read_text(encoding="utf-8"), unusable("The installed torch finds no card.")
    assert said in report
    assert said in done.stdout
    assert "The driver was missing." not in report
    assert f"| {MEASURED} | 7.5 |" in report
    assert json.loads(done.stdout.splitlines()[-1])["failed"] == [CHECK]


def test_the_card_is_tried_with_the_torch_that_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which is the one that the window fetched for a card, if there is one."""
    fetched = tmp_path / "torch" / "__init__.py"
    fetched.parent.mkdir()
    fetched.write_text("raise ImportError('the one that was fetched')", encoding="utf-8")
    spec = ModuleSpec("torch", None, origin=str(fetched))
    monkeypatch.setattr(on_a_gpu, "find_spec", lambda _: spec)
    assert "the one that was fetched" in self_check(())["error"]


def test_only_what_failed_is_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, answers = list[str](), {"first": [{"decode_tok_s": 1}], "second": [{"error": "x"}, {"decode_tok_s": 2}]}

    def answering(name: str) -> Callable[[float], Row]:
        return lambda _: asked.append(name) or answers[name].pop(0)  # type: ignore[func-returns-value]

    def steps(_: argparse.Namespace) -> Iterator[tuple[str, Callable[[float], Row]]]:
        yield from ((name, answering(name)) for name in answers)

    monkeypatch.setattr(on_a_gpu, "steps", steps)
    kept = tmp_path / "rows.json"
    for _ in range(3):
        rows, missing = measure(argparse.Namespace(minutes=8.0), kept)
    assert asked == ["first", "second", "second"]
    assert (rows, missing) == ({"first": {"decode_tok_s": 1}, "second": {"decode_tok_s": 2}}, [])


def test_the_usual_way_is_measured_on_the_same_shape() -> None:
    """On the processor here: with a card, accelerate places the layers."""
    pytest.importorskip("accelerate")
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    found = measured({"model_type": "llama", "vocab_size": 99, "num_key_value_heads": 2, **sizes}, 1.0, 16, 3)
    assert min(found["prefill_tok_s"], found["decode_tok_s"]) > 0


def test_tokens_of_a_run_that_failed_are_not_compared() -> None:
    one, other, failed = {"output_sha256": "a"}, {"output_sha256": "b"}, {"error": "no room"}
    assert same_tokens({"same tokens 1": one, "same tokens 2": one}) is True
    assert same_tokens({"same tokens 1": one, "same tokens 2": other}) is False
    assert same_tokens({"same tokens 1": one, "same tokens 2": failed}) is None
