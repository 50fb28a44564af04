"""Damaged files: each gives one sentence, and nothing large is allocated because of numbers in them."""

from __future__ import annotations

import random
import struct
import tracemalloc
from pathlib import Path

import pytest

from core.errors import HeteGenError, ModelUnreadable, UnsupportedModel
from core.model.model_source import open_source
from core.weights.gguf.files import GgufFiles
from core.weights.gguf.header import Header, NeedsMore, parse
from core.weights.gguf.names import split_names
from tests.core.weights.gguf.tiny_gguf import make_model, write_gguf

MOST_BYTES = 4 << 20
U32, U64, STRING, ARRAY = "<I", "<Q", 8, 9


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_gguf("llama", make_model("llama"), tmp_path_factory.mktemp("gguf") / "m.gguf").read_bytes()


def text(value: bytes) -> bytes:
    return struct.pack(U64, len(value)) + value


def start(tensors: int, settings: int) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, settings)


def tensor(name: bytes, *shape: int, kind: int = 0, offset: int = 0) -> bytes:
    sizes = b"".join(struct.pack(U64, size) for size in shape)
    return text(name) + struct.pack(U32, len(shape)) + sizes + struct.pack("<IQ", kind, offset)


HUGE = 1 << 62
DAMAGED = {
    "empty": b"",
    "not GGUF": b"GGML" + bytes(100),
    "cut after the magic": b"GGUF",
    "more settings than bytes": start(0, HUGE) + bytes(64),
    "more tensors than bytes": start(HUGE, 0) + bytes(64),
    "a name longer than the file": start(0, 1) + struct.pack(U64, HUGE) + bytes(64),
    "a list longer than the file": start(0, 1) + text(b"a") + struct.pack("<IIQ", ARRAY, STRING, HUGE) + bytes(64),
    "lists in lists in lists": start(0, 1) + text(b"a") + struct.pack(U32, ARRAY) + struct.pack("<IQ", ARRAY, 1) * 9,
    "a setting of no kind": start(0, 1) + text(b"a") + struct.pack(U32, 99) + bytes(64),
    "a setting twice": start(0, 2) + (text(b"a") + struct.pack("<II", 4, 1)) * 2,
    "too many dimensions": start(1, 0) + text(b"t") + struct.pack(U32, 1 << 31) + bytes(64),
    "a tensor larger than the file": start(1, 0) + tensor(b"t", HUGE, HUGE) + bytes(64),
    "a tensor behind the end": start(1, 0) + tensor(b"t", 4, offset=HUGE) + bytes(64),
    "a row of half a block": start(1, 0) + tensor(b"t", 33, kind=8) + bytes(64),
    "a tensor twice": start(2, 0) + tensor(b"t", 1) * 2 + bytes(64),
    "an alignment of nothing": start(0, 1) + text(b"general.alignment") + struct.pack("<II", 4, 0),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_header_gives_one_sentence(name: str) -> None:
    with pytest.raises(ModelUnreadable, match=r"The model file f\.gguf cannot be read\. .+\."):
        parse(DAMAGED[name], "f.gguf")


@pytest.mark.parametrize(("content", "said"), [
    (b"GGUF" + struct.pack("<IQQ", 77, 0, 0), "version 77"),
    (start(1, 0) + tensor(b"t", 32, kind=4) + bytes(64), "not known here"),
])  # fmt: skip
def test_what_is_sound_but_unknown_is_said_to_be_so(content: bytes, said: str) -> None:
    with pytest.raises(UnsupportedModel, match=said):
        parse(content, "f.gguf")


def test_a_thousand_fuzzed_headers_give_a_header_or_one_sentence(whole: bytes) -> None:
    """Bytes are changed, cut and duplicated anywhere in the header."""
    source = random.Random(1)
    end = max(place.start for place in parse(whole, "f").tensors.values())
    refused = 0
    tracemalloc.start()
    for _ in range(1000):
        content = bytearray(whole)
        for _ in range(source.choice((1, 2, 8))):
            at = source.randrange(end if source.random() < 0.5 else 64)
            content[at : at + source.choice((1, 4, 8))] = source.randbytes(source.choice((1, 4, 8)))
        try:
            assert isinstance(parse(memoryview(content)[: source.choice((len(content), end))], "f.gguf"), Header)
        except HeteGenError as error:
            refused += error.what.endswith(".")
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 300 < refused < 1000
    assert most < MOST_BYTES


def test_whatever_the_header_says_opening_a_file_ends_in_one_sentence_or_a_model(whole: bytes, tmp_path: Path) -> None:
    source = random.Random(2)
    path = tmp_path / "m.gguf"
    opened = 0
    for _ in range(60):
        content = bytearray(whole)
        for _ in range(2):
            at = source.randrange(2000)
            content[at : at + 4] = source.randbytes(4)
        path.write_bytes(content)
        try:
            open_source(path)
            opened += 1
        except HeteGenError:
            pass
    assert opened < 60


def test_a_file_cut_anywhere_is_refused(whole: bytes) -> None:
    for length in range(0, len(whole), 9973):
        with pytest.raises(ModelUnreadable, match=r"cut off|too short"):
            parse(whole[:length], "f.gguf")


def test_a_header_that_is_only_partly_here_asks_for_more(whole: bytes) -> None:
    with pytest.raises(NeedsMore):
        parse(whole[:1000], "f.gguf", len(whole))
    assert parse(whole[:100_000], "f.gguf", len(whole)).tensors == parse(whole, "f.gguf").tensors


def test_names_of_parts_that_cannot_be_are_refused() -> None:
    assert split_names("a-00002-of-00003.gguf") == [f"a-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    for name in ("a-00004-of-00003.gguf", "a-00000-of-00003.gguf", "a-00001-of-99999.gguf"):
        with pytest.raises(ModelUnreadable):
            split_names(name)


def test_parts_that_are_one_file_twice_are_refused(whole: bytes, tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / f"m-0000{number}-of-00002.gguf").write_bytes(whole)
    with pytest.raises(ModelUnreadable, match="another of the files"):
        GgufFiles(tmp_path / "m-00001-of-00002.gguf")


def test_a_missing_part_is_named(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m-00001-of-00002.gguf"
    path.write_bytes(whole)
    with pytest.raises(ModelUnreadable, match=r"m-00002-of-00002\.gguf"):
        GgufFiles(path)
