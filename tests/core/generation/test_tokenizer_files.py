"""Tokenizers in unusual folders are read, or one sentence says what is wrong."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from core.errors import ModelUnreadable
from core.events import Message
from core.generation.tokenizer import Tokenizer
from tests.core.families import make_model
from tests.core.greedy import GreedyPath
from tests.core.tiny_tokenizer import VOCABULARY, write_tokenizer

HELLO = [Message("user", "hello")]


def change(file: Path, **entries: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | entries), encoding="utf-8")


def test_program_code_of_its_own_is_passed_over_where_the_plain_file_is_there(tmp_path: Path) -> None:
    plain = Tokenizer.load(write_tokenizer(tmp_path)).render(HELLO)
    mapped = {"AutoTokenizer": ["tokenization_own.OwnTokenizer", None]}
    change(tmp_path / "tokenizer_config.json", auto_map=mapped, tokenizer_class="OwnTokenizer")
    assert Tokenizer.load(tmp_path).render(HELLO) == plain


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model", "vocab.json"])
def test_a_pointer_is_called_one(name: str, tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "utf-8")
    with pytest.raises(ModelUnreadable, match=f"{name} is only a pointer to the file"):
        Tokenizer.load(tmp_path)


def test_a_kind_that_the_library_does_not_know_yet(tmp_path: Path) -> None:
    change(write_tokenizer(tmp_path) / "tokenizer.json", model={"type": "Morphemes", "vocab": {}})
    with pytest.raises(ModelUnreadable, match="damaged, or newer than this version"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.model", "qwen.tiktoken", "tekken.json"])
def test_other_programs_files_alone_are_named(name: str, tmp_path: Path) -> None:
    make_model("llama", tmp_path)
    (tmp_path / name).write_bytes(b"\x0a\x0e\x0a\x05<unk>")
    with pytest.raises(ModelUnreadable, match=f"comes only as {name}"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("entry", [{"model_max_length": [1]}, {"model_max_length": {}}, {"truncation_side": 3}])
def test_settings_of_the_wrong_kind_give_a_tokenizer_or_a_sentence(entry: dict[str, Any], tmp_path: Path) -> None:
    change(write_tokenizer(tmp_path) / "tokenizer_config.json", **entry)
    with suppress(ModelUnreadable):
        assert Tokenizer.load(tmp_path).encode("hello")


def test_ids_beyond_the_table_are_said(tmp_path: Path) -> None:
    make_model("llama", tmp_path, vocab_size=40)
    ids = Tokenizer.load(write_tokenizer(tmp_path)).encode("hello")
    with pytest.raises(ModelUnreadable, match="do not belong together"):
        GreedyPath(tmp_path).tokens(ids, 1)


def test_ids_that_the_tokenizer_does_not_know_are_no_text(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(write_tokenizer(tmp_path))
    known = tokenizer.encode("hello")
    assert tokenizer.decode([*known, VOCABULARY + 5, VOCABULARY + 900]) == "hello"
