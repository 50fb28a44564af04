"""Reads the tokenizer of a model folder, and explains failures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from core.errors import ModelUnreadable
from core.sentence import sentence

FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tekken.json")
PATTERNS = ("*.tiktoken", "*.model")
CONFIG = "tokenizer_config.json"
POINTER = b"version https://git-lfs.github.com/spec/"
TRIAL = "Hello"


def has_tokenizer(folder: Path) -> bool:
    """Return whether a folder holds a tokenizer's files."""
    return bool(_files(folder)) or (folder / CONFIG).exists()


def read_tokenizer(folder: Path) -> Any:
    """Load transformers' tokenizer of a model folder. Raises ModelUnreadable."""
    found = _files(folder)
    if not has_tokenizer(folder):
        raise ModelUnreadable(
            "The model has no tokenizer.",
            sentence("{} holds none of the files it could be in.", folder.name),
            "Download it again.",
        )
    if pointer := next((file.name for file in found if _is_pointer(file)), None):
        raise ModelUnreadable(
            sentence("{} is only a pointer to the file.", pointer),
            "It was copied without Git LFS.",
            "Download the model again.",
        )
    try:
        backend = _read(folder)
        backend.decode(backend.encode(TRIAL, add_special_tokens=False))
    # The Rust errors of tokenizers are plain Exceptions, and each kind of tokenizer fails differently.
    except Exception as error:
        raise _unreadable(found, error) from error
    return backend


def _read(folder: Path) -> Any:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception:
        # The folder asks for custom code, which is never run; tokenizer.json is sufficient without it.
        if not (folder / FILES[0]).is_file():
            raise
        return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)


def _files(folder: Path) -> list[Path]:
    patterned = (file for pattern in PATTERNS for file in sorted(folder.glob(pattern)))
    return [file for file in (*(folder / name for name in FILES), *patterned) if file.is_file()]


def _is_pointer(file: Path) -> bool:
    try:
        with file.open("rb") as stream:
            return stream.read(len(POINTER)) == POINTER
    except OSError:
        return False


def _unreadable(found: list[Path], error: Exception) -> ModelUnreadable:
    what, reason = "The model's tokenizer cannot be read.", (str(error).strip().splitlines() or ["unreadable"])[0]
    if "untagged enum" in reason or "unknown variant" in reason:
        return ModelUnreadable(what, "It is damaged, or newer than this version of HeteGen.", "Update HeteGen.")
    if found and not any(file.name in ("tokenizer.json", "vocab.json", "vocab.txt") for file in found):
        return ModelUnreadable(
            what,
            sentence("It comes only as {}: {}.", found[0].name, reason.rstrip(".")),
            "Choose a version with a tokenizer.json.",
        )
    kind = "" if isinstance(error, ImportError | ValueError) else f"{type(error).__name__}: "
    return ModelUnreadable(what, f"{kind}{reason.rstrip('.')}.", "Download the model again.")
