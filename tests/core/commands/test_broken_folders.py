"""Randomly broken model folders: each gives a reply or one sentence, never a traceback.

HETEGEN_FUZZ_CASES sets the number of cases, HETEGEN_FUZZ_FIRST the seed of the first.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save_file

from core.__main__ import main
from tests.core.tiny_tokenizer import chat_model

FIRST = int(os.environ.get("HETEGEN_FUZZ_FIRST", "0"))
CASES = int(os.environ.get("HETEGEN_FUZZ_CASES", "150"))
WEIGHTS = "model.safetensors"
VALUES: list[Any] = [
    None, True, 0, -1, 1, 3, 7.5, 2**40, float("nan"), float("inf"), "", "x", "null", "ü" * 40, [], [[]], ["a", 1], {},
    {"a": {}},
]  # fmt: skip
NAMES = ["config.json", "tokenizer.json", "model.safetensors.index.json", "tokenizer.model", "vocab.json", "README.md"]
DTYPES = [torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.uint8, torch.int64, torch.float8_e4m3fn]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chat_model(tmp_path_factory.mktemp("whole"), hidden_size=32, num_hidden_layers=2, intermediate_size=48)


@pytest.mark.parametrize("seed", range(FIRST, FIRST + CASES))
def test_a_reply_or_one_sentence(seed: int, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "model"
    shutil.copytree(whole, folder)
    chance = random.Random(seed)
    broken = [chance.choice(WAYS)(folder, chance) for _ in range(chance.choice((1, 1, 1, 2, 3)))]
    code = main(["chat", "--model", str(folder), "--prompt", "hello", "--max-new-tokens", "3", "--threads", "1"])
    said = capsys.readouterr().err
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    assert (code, len(lines)) in ((0, 0), (1, 1)), f"{broken}: {said}"
    assert "Traceback" not in said, f"{broken}: {said}"


def change_file(folder: Path, chance: random.Random) -> str:
    """Delete, truncate, empty, rename or corrupt one file."""
    file = chance.choice(sorted(folder.iterdir()))
    way = chance.choice(("drop", "cut", "empty", "rename", "scribble", "pointer", "folder"))
    data = file.read_bytes() if file.is_file() else b""
    if way == "rename":
        file.replace(folder / f"{chance.choice(NAMES)}")
        return f"{way} {file.name}"
    shutil.rmtree(file) if file.is_dir() else file.unlink()
    if way == "folder":
        file.mkdir()
    elif way != "drop":
        file.write_bytes(_rewritten(way, data, chance))
    return f"{way} {file.name}"


def _rewritten(way: str, data: bytes, chance: random.Random) -> bytes:
    if way == "cut":
        return data[: chance.randrange(len(data) + 1)]
    if way == "scribble":
        place = chance.randrange(len(data) + 1)
        return data[:place] + chance.randbytes(8) + data[place + 8 :]
    return b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n" if way == "pointer" else b""


def change_json(folder: Path, chance: random.Random) -> str:
    """Delete, retype or rename one key, at any depth, of a JSON file."""
    files = sorted(path for path in folder.glob("*.json") if path.is_file())
    file = chance.choice([*files, *(path for path in files if path.name == "config.json")] or [folder / "none.json"])
    try:
        content = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        return "unreadable already"
    entry, key = _any_entry(content, chance)
    if key is None:
        return "nothing to change"
    way = chance.choice(("drop", "retype", "retype", "rename"))
    before = entry.pop(key)
    if way == "retype":
        before = chance.choice(VALUES)
    if way != "drop":
        entry.update({f"{key}{'_' * (way == 'rename')}": before})
    file.write_text(json.dumps(content), encoding="utf-8")
    return f"{way} {file.name}: {key} {before!r:.60}"


def _any_entry(content: Any, chance: random.Random) -> tuple[dict[str, Any], str | None]:
    """Return a dictionary in a tree and one of its keys, upper ones more often."""
    found = content if isinstance(content, dict) else {}
    while inner := [value for value in found.values() if isinstance(value, dict) and value]:
        if chance.random() < 0.5:
            break
        found = chance.choice(inner)
    return found, chance.choice(sorted(found)) if found else None


def change_tensors(folder: Path, chance: random.Random) -> str:
    """Delete, rename, retype, reshape, duplicate or fill one tensor."""
    file = folder / WEIGHTS
    try:
        tensors = {name: value.clone() for name, value in load(file.read_bytes()).items()}
    # Damaged already, in any way.
    except Exception:  # noqa: BLE001
        return "unreadable already"
    name = chance.choice(sorted(tensors))
    value = tensors.pop(name)
    way = chance.choice(("drop", "rename", "retype", "reshape", "rows", "nan", "beside"))
    ways: dict[str, Callable[[], dict[str, torch.Tensor]]] = {
        "drop": dict,
        "rename": lambda: {name.replace("layers", "blocks") + "_": value},
        "retype": lambda: {name: value.to(chance.choice(DTYPES))},
        "reshape": lambda: {name: value.reshape(-1)},
        "rows": lambda: {name: value[: max(1, len(value) // 2)].clone()},
        "nan": lambda: {name: torch.full_like(value, torch.nan)},
        "beside": lambda: {name: value, f"{name}_scale": torch.ones(1)},
    }
    save_file(tensors | ways[way](), file, metadata={"format": "pt"})
    return f"{way} {name}"


def change_header(folder: Path, chance: random.Random) -> str:
    """Retype a field of the weights' header, or change its length."""
    file = folder / WEIGHTS
    data = file.read_bytes() if file.is_file() else b""
    length = int.from_bytes(data[:8], "little")
    if not 8 < length < len(data):
        return "unreadable already"
    header = json.loads(data[8 : 8 + length])
    entry = header[chance.choice(sorted(header))]
    key = chance.choice(sorted(entry))
    entry[key] = chance.choice([*VALUES, [2**60], [-1, 4], ["a", "b"], "F4", "F99"])
    new = json.dumps(header).encode()
    file.write_bytes(len(new).to_bytes(8, "little") + new + data[8 + length :])
    return f"header {key} {entry[key]!r:.40}"


WAYS = (change_file, change_json, change_json, change_json, change_tensors, change_header)
