"""Quality: measures of a format against the weights as stored, through the command line."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from core.__main__ import main
from core.runtime.quality import windows
from tests.core.tiny_tokenizer import chat_model

TEXT = "The quick brown fox jumps over the lazy dog. " * 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = chat_model(tmp_path_factory.mktemp("model"))
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    return folder


def figures(folder: Path, format: str, capsys: pytest.CaptureFixture[str]) -> dict[str, float]:
    assert main(["quality", str(folder), str(folder / "text.txt"), "--format", format, "--threads", "1", "--json"]) == 0
    found: dict[str, float] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return found


def test_as_stored_is_transformers_own_perplexity(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from core.generation.tokenizer import Tokenizer

    found = figures(folder, "bf16", capsys)
    ids = Tokenizer.load(folder).encode(TEXT)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    lost = []
    for window in windows(ids):
        with torch.no_grad():
            told = model(torch.tensor([window])).logits[0, len(window) // 4 : -1].float().log_softmax(1)
        lost += (-told.gather(1, torch.tensor(window[len(window) // 4 + 1 :])[:, None])).flatten().tolist()
    assert found["tokens"] == len(lost)
    assert found["perplexity"] == pytest.approx(math.exp(sum(lost) / len(lost)), rel=2e-3)
    assert (found["kl"], found["top1"]) == (0, 1)


def test_fewer_bits_differ_more(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = chat_model(tmp_path, hidden_size=256, intermediate_size=512)  # rows are padded: smaller ones show nothing
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    eight, four = (figures(folder, format, capsys) for format in ("int8", "int4"))
    assert 0 < eight["kl"] < four["kl"]
    assert four["bytes"] < eight["bytes"]
    assert eight["format"] == "int8"


def test_a_text_that_says_too_little_or_cannot_be_read(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "short.txt").write_text("Hi", encoding="utf-8")
    assert main(["quality", str(folder), str(folder / "short.txt")]) == 1
    assert "too short" in capsys.readouterr().err
    assert main(["quality", str(folder), str(folder / "missing.txt")]) == 1
    assert "cannot be read" in capsys.readouterr().err
