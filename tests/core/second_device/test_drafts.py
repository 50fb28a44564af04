"""Draft models beside the second device, and on it: no token changes, whichever memory each of both lies in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from core.events import MTP, SELF, LoadOptions
from core.planning import drafting
from tests.core.assistants import CLUSTERS, SHARED, make_assistant, make_target
from tests.core.families import make_model
from tests.core.greedy import loaded_model, random_prompt
from tests.core.mtp_heads import add_mtp
from tests.core.runtime.drafted import draft_long, said
from tests.core.second_device import SecondDevice, put_in
from tests.core.tiny_tokenizer import VOCABULARY, write_tokenizer

CARD = LoadOptions(context=512, threads=1, format="bf16", simulate_gpu="vram=64MiB,link=2GB/s,cores=1")


def with_assistant(folder: Path) -> tuple[Path, str]:
    return make_target(folder / "target", SHARED), str(make_assistant(folder / "assistant", SHARED, **CLUSTERS))


def with_head(folder: Path) -> tuple[Path, str]:
    made = make_model("glm4_moe", folder, tie_word_embeddings=False, vocab_size=VOCABULARY)
    return add_mtp(write_tokenizer(made), "glm4_moe"), MTP


def with_copy(folder: Path) -> tuple[Path, str]:
    return write_tokenizer(make_model("llama", folder)), SELF


@pytest.mark.parametrize(
    ("make", "there"), [(with_assistant, -1), (with_assistant, 0), (with_head, 0), (with_copy, -1), (with_copy, 0)]
)
def test_no_token_changes(
    make: Callable[[Path], tuple[Path, str]], there: int, second: SecondDevice, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """In RAM they read a copy of the KV cache that lies on the card."""
    put_in(second, monkeypatch)
    draft_long(monkeypatch)
    if there == 0:
        monkeypatch.setattr(drafting, "can_be_mirrored", lambda *_: False)
    folder, draft = make(tmp_path)
    plain = loaded_model(folder, CARD)
    expected, _ = said(plain, random_prompt(30))
    plain.close()
    model = loaded_model(folder, replace(CARD, draft=draft))
    assert model.draft is not None
    assert (model.plan.gpu, model.draft.plan.gpu) == (0, there)
    found, ahead = said(model, random_prompt(30))
    assert found == expected
    assert ahead.drafted > 0
    model.close()
