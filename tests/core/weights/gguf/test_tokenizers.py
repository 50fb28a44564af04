"""Tokenizers of GGUF files give the same ids as in llama.cpp, for which the files are made."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any
from unicodedata import combining

import gguf
import numpy as np
import pytest

from core.errors import UnsupportedModel
from core.weights.gguf.header import Settings, parse
from core.weights.gguf.pre_tokenizers import PATTERNS
from core.weights.gguf.tokenizer import make_tokenizer
from tests.core.weights.gguf.tiny_gguf import finish

TEXTS = (
    "Hello world", " leading", "  two", "   three spaces", "trailing  ", "a  b   c",
    "tabs\t\tand\tmore", "\n", "\n\n x\r\n y", "line one\n\n\nline two \n three",
    "I'm you're THEY'LL we'd it's 'S 'Re", "don't DON'T Don'T", "123 4567 89012345", "v1.2.3-rc4",
    "x=1;y+=22", "Über straße naïve ÉCOLE", "日本語のテキスト", "中文字符 and English混合", "한국어 문장입니다",
    "Привет, мир! ПРИВЕТ", "مرحبا بالعالم", "नमस्ते दुनिया", "🎉🎊 emoji 👩\u200d👩\u200d👧",
    "e\u0301 combining a\u0300\u0301", "!!! ??? ...---", "foo_bar fooBar FooBAR HTTPServer",
    "http://a.b/c?d=e&f=g", "<div class=\"x\">\n  <p>y</p>\n</div>", "// comment\n\tcode();\n",
    "price: $12.50 €3,00 ¥400", "½ ² ³ ١٢٣ Ⅷ", "\u00a0nbsp\u3000wide", "a\u200bb", "end.\n",
    "#include <x>\n\n\n", "a/b//c /d", "''' ''", "\u0000\u0001",
)  # fmt: skip
CORPUS = " ".join(TEXTS) * 2
MARKS = ("gpt-4o", "llama4", "minimax-m2", "kanana2", "tekken")
"""Pre-tokenizers whose expressions in llama.cpp split combining marks, unlike the models' tokenizers."""
CONTROL = ("<s>", "</s>", "<|im_start|>")


def llama_ids(path: Path, texts: Sequence[str]) -> dict[str, list[int]]:
    llama_cpp = pytest.importorskip("llama_cpp", reason="the peer is an extra")
    with closing(llama_cpp.Llama(str(path), vocab_only=True, verbose=True)) as model:
        return {text: list(model.tokenize(text.encode(), add_bos=False, special=True)) for text in texts}


def our_ids(path: Path, texts: Sequence[str]) -> dict[str, list[int]]:
    settings: Settings = parse(path.read_bytes(), path.name).settings
    tokenizer = make_tokenizer(settings, path.name)
    return {text: list(tokenizer.encode(text, add_special_tokens=False)) for text in texts}


def trained(alphabet: Sequence[str], before: Any, size: int) -> tuple[list[str], list[str]]:
    """Return tokens and merges without words, so that the ids reveal where a text is split."""
    from tokenizers import Tokenizer, models, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = before
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator([CORPUS[at:] for at in range(0, 200, 7)], trainer)
    model = json.loads(made.to_str())["model"]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    return sorted(model["vocab"], key=model["vocab"].__getitem__), merges


def byte_level(path: Path, pre: str) -> Path:
    from tokenizers import pre_tokenizers

    before = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokens, merges = trained(pre_tokenizers.ByteLevel.alphabet(), before, 1500)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([*tokens, *CONTROL])
    writer.add_token_types([1] * len(tokens) + [3] * len(CONTROL))
    writer.add_token_merges(merges)
    writer.add_bos_token_id(len(tokens))
    writer.add_eos_token_id(len(tokens) + 1)
    return finished(writer, path)


def sentence_pieces(path: Path, *, prefix: bool | None) -> Path:
    """Return pieces with scores, byte tokens for everything else, and added tokens."""
    from tokenizers import pre_tokenizers

    found, _ = trained([], pre_tokenizers.Metaspace(prepend_scheme="never", split=False), 900)
    known = [token for token in found if not any(letter in token for letter in "日本語🎉½\n\x00")]
    special, bytes_ = ["<unk>", "<s>", "</s>"], [f"<0x{value:02X}>" for value in range(256)]
    added = ["<|tool|>", "▁▁▁▁", "[INST]"]
    tokens = [*special, *bytes_, *known, *added]
    kinds = [2, 3, 3, *[6] * 256, *[1] * len(known), 4, 4, 4]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * 259 + [-float(rank) for rank in range(len(known))] + [0.0] * len(added))
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    if prefix is not None:
        writer.add_add_space_prefix(prefix)
    return finished(writer, path)


def finished(writer: Any, path: Path) -> Path:
    """Add the metadata that llama.cpp requires even when it only reads a vocabulary."""
    for key in ("block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count"):
        writer.add_uint32(f"llama.{key}", 64)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_tensor("token_embd.weight", np.zeros((1, 32), np.float32))
    finish(writer)
    return path


@pytest.mark.parametrize("pre", sorted(PATTERNS))
def test_texts_are_cut_as_llama_cpp_cuts_them(pre: str, tmp_path: Path) -> None:
    path = byte_level(tmp_path / "v.gguf", pre)
    texts = [text for text in TEXTS if pre not in MARKS or not any(combining(letter) for letter in text)]
    assert our_ids(path, texts) == llama_ids(path, texts)


@pytest.mark.parametrize("prefix", [None, True, False])
def test_sentence_pieces_are_those_of_llama_cpp(prefix: bool | None, tmp_path: Path) -> None:
    path = sentence_pieces(tmp_path / "v.gguf", prefix=prefix)
    texts = [*TEXTS, "<|tool|>call</s>", "a <|tool|> b", "[INST] Hi [/INST]", "<|tool|><|tool|>", "x</s> y", "<0x41>"]
    assert our_ids(path, texts) == llama_ids(path, texts)


def test_a_way_of_cutting_that_is_not_known_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="cuts text in the way 'tomorrow'"):
        our_ids(byte_level(tmp_path / "v.gguf", "tomorrow"), TEXTS)
