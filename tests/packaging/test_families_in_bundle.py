"""Every family gives the same tokens in the bundle as from source."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from core.engine import Engine
from core.events import Failed, Finished, LoadOptions, Message, Piece, Request, Sampling
from tests.core.families import FAMILIES, RARER_FAMILIES
from tests.core.tiny_tokenizer import chat_model

PROMPT = "who jumps over the lazy dog"
NEW_TOKENS = 32


def from_source(folder: Path) -> str:
    engine = Engine()
    for event in engine.load(str(folder), LoadOptions(context=256, threads=1)):
        assert not isinstance(event, Failed), event
    request = Request(
        (Message("user", PROMPT),), Sampling(temperature=0.0, repetition_penalty=1.0, max_new_tokens=NEW_TOKENS, seed=0)
    )
    events = list(engine.chat(request))
    engine.close()
    assert isinstance(events[-1], Finished)
    return "".join(event.text for event in events if isinstance(event, Piece))


@pytest.mark.parametrize("family", sorted(FAMILIES | RARER_FAMILIES))
def test_says_the_same_as_from_source(family: str, command_line: Path, tmp_path: Path):
    # The seed decides how soon a random model ends its turn; with this one all of them say something.
    folder = chat_model(tmp_path / "model", family, seed=2)
    done = subprocess.run(
        [
            *(command_line, "chat", "--model", folder, "--prompt", PROMPT, "--json"),
            *("--temperature", "0", "--seed", "0", "--max-new-tokens", str(NEW_TOKENS)),
            *("--context", "256", "--threads", "1"),
        ],
        capture_output=True, encoding="utf-8", env=os.environ.copy(), timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["reasoning"] + answer["text"] == from_source(folder)
    assert answer["new_tokens"] > 0


IMPORT_ALL = """
import sys
# This stands in torch's place: away, and the bundle's own takes it.
del sys.modules["torch"], sys.path[0]
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

names, failed = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()), []
for name in sorted(names):
    try:
        getattr(transformers, name)
    except Exception as error:
        failed.append(f"{name}: {error!r}")
told = "; ".join(failed) or f"{len(names)} imported"
"""


def test_every_causal_model_can_be_imported(told_inside: Callable[..., str]):
    told = told_inside(IMPORT_ALL, limit_s=280)
    assert told.endswith(" imported"), told
    assert int(told.split()[0]) > 150
