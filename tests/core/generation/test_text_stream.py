"""Streamed text equals decoded text, however a tokenizer splits characters into ids."""

from __future__ import annotations

import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend
from transformers import PreTrainedTokenizerFast

from core.generation.reasoning import ReplySplitter
from core.generation.tokenizer import Tokenizer
from tests.core.tiny_tokenizer import write_tokenizer

WORDS = ("the", "▁the", "▁", "▁▁", "▁dog", "at", "th", "he", "▁d", "og", "do", "<0x41", "é")
SAMPLES = (
    "😀😁😂", "日本語です", "👨\u200d👩\u200d👧\u200d👦 family", "🇩🇪🇫🇷",
    " leading", "the dog 😀 the", "é\ufffd", "a<0x41>b",
    "e\u0301\u0302", "\n\n\t", "நி", "", "the the  the",
)  # fmt: skip


def spm(dummy_prefix: bool, split: bool) -> Tokenizer:
    """Make a tokenizer with byte tokens, as in Llama 2 and Mistral 0.1, or without a prefix as in Gemma."""
    letters = [*string.ascii_letters, *string.punctuation]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{value:02X}>" for value in range(256)), *letters, *WORDS]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    halves = [(word[:n], word[n:]) for word in WORDS for n in range(1, len(word))]
    merges = [(a, b) for a, b in halves if a in vocabulary and b in vocabulary]
    backend = Backend(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    steps: list[decoders.Decoder] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if dummy_prefix:
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        steps.append(decoders.Strip(" ", 1, 0))
    else:
        backend.normalizer = normalizers.Replace(" ", "▁")
    if split:
        backend.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    backend.decoder = decoders.Sequence(steps)
    backend.add_special_tokens([AddedToken(text, special=True) for text in ("<unk>", "<s>", "</s>")])
    return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", bos_token="<s>"))


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    byte_level = Tokenizer.load(write_tokenizer(tmp_path_factory.mktemp("tokenizer")))
    return {
        "byte-level": byte_level,
        "llama-2": spm(True, True),
        "mistral": spm(True, False),
        "gemma": spm(False, False),
    }


KINDS = ("byte-level", "llama-2", "mistral", "gemma")
TEXT = (
    st.text(max_size=40) | st.text(st.sampled_from("😀日é a<t▁\u200d🇩\ufffd"), max_size=40) | st.sampled_from(SAMPLES)
)


def pieces(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    stream = tokenizer.stream()
    return [*(stream.push(token) for token in ids), stream.finish()]


@pytest.mark.parametrize("kind", KINDS)
@given(text=TEXT)
def test_streamed_text_is_the_decoded_text(kinds: dict[str, Tokenizer], kind: str, text: str) -> None:
    tokenizer = kinds[kind]
    ids = tokenizer.encode(text)
    given_out = pieces(tokenizer, ids)
    backend = tokenizer.backend.decode(ids, clean_up_tokenization_spaces=False)
    assert "".join(given_out) == tokenizer.decode(ids) == backend
    assert all("\ufffd" not in piece or "\ufffd" in text for piece in given_out)


@pytest.mark.parametrize("kind", KINDS)
@given(text=TEXT, data=st.data())
def test_every_beginning_streams_to_what_it_decodes_to(
    kinds: dict[str, Tokenizer], kind: str, text: str, data: st.DataObject
) -> None:
    """After any prefix, whole characters are present, and an incomplete one is a replacement mark at the end."""
    tokenizer = kinds[kind]
    ids = tokenizer.encode(text)
    cut = data.draw(st.integers(0, len(ids)))
    shown = "".join(pieces(tokenizer, ids[:cut]))
    assert shown == tokenizer.decode(ids[:cut])
    assert tokenizer.decode(ids).startswith(shown.rstrip("\ufffd"))


@pytest.mark.parametrize("kind", KINDS)
@given(ids=st.lists(st.integers(0, 300), max_size=40))
def test_any_ids_stream_to_what_they_decode_to(kinds: dict[str, Tokenizer], kind: str, ids: list[int]) -> None:
    tokenizer = kinds[kind]
    assert "".join(pieces(tokenizer, ids)) == tokenizer.decode(ids)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_bytes_that_are_no_character_spoil_nothing_around_them(kinds: dict[str, Tokenizer], kind: str) -> None:
    tokenizer = kinds[kind]
    smile, dog = tokenizer.encode("😀")[-4:], tokenizer.backend.convert_tokens_to_ids(["▁dog"])
    assert tokenizer.decode([*smile, *smile[:2], *smile, *dog]) == "😀\ufffd😀 dog"
    assert tokenizer.decode([*smile[1:], *dog]) == "\ufffd\ufffd\ufffd dog"


@pytest.mark.parametrize("kind", KINDS)
def test_every_character_is_shown_as_soon_as_it_is_whole(kinds: dict[str, Tokenizer], kind: str) -> None:
    tokenizer = kinds[kind]
    shown = [piece for piece in pieces(tokenizer, tokenizer.encode("x😀😁日本")) if piece]
    assert shown == ["x", "😀", "😁", "日", "本"]


@pytest.mark.parametrize("kind", KINDS)
@given(before=TEXT, after=TEXT)
def test_stops_and_thoughts_are_found_wherever_ids_are_cut(
    kinds: dict[str, Tokenizer], kind: str, before: str, after: str
) -> None:
    tokenizer = kinds[kind]
    ids = tokenizer.encode(f"<think>{before}</think>é😀日{after}")
    whole = tokenizer.decode(ids)
    splits = [ReplySplitter(["😀日"]), ReplySplitter(["😀日"])]
    shown = []
    for splitter, parts in zip(splits, ([whole], pieces(tokenizer, ids)), strict=True):
        found = [piece for part in parts for piece in splitter.push(part)] + list(splitter.finish())
        shown.append({kind: "".join(p.text for p in found if p.kind == kind) for kind in ("answer", "reasoning")})
    assert shown[0] == shown[1]
    assert all(splitter.stopped for splitter in splits)


def test_a_token_that_only_looks_like_a_byte_is_text(tmp_path: Path) -> None:
    backend = Backend(models.BPE({"<0x41>": 0, "<0xF0>": 1, "a": 2}, []))
    backend.decoder = decoders.Fuse()
    tokenizer = Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend))
    assert "".join(pieces(tokenizer, [0, 1, 2])) == "<0x41><0xF0>a"
