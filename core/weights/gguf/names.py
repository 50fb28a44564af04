"""File names of GGUF models: which files are parts of one model, and which quantisation they name. No torch."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from core.weights.gguf.header import unreadable

SUFFIX = ".gguf"
SPLIT = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE)
MAX_SPLITS = 1000
KIND = re.compile(
    r"(?:^|[-._ /])((?:UD-)?(?:I?Q\d_\w+|TQ\d_\d|BF16|FP?16|FP?32|MXFP4\w*|NVFP4))(?=$|[-. /])", re.IGNORECASE
)
NO_MODEL = ("mmproj", "imatrix")
"""Words in the names of files beside a model: its vision part, and the importance matrix of its quantisation."""


def is_gguf(name: str | Path) -> bool:
    """Return whether a name is that of a GGUF file."""
    return str(name).lower().endswith(SUFFIX)


def is_model(name: str) -> bool:
    """Return whether a name is that of a GGUF file with a language model, or with a part of one."""
    return is_gguf(name) and not any(word in PurePosixPath(name).name.lower() for word in NO_MODEL)


def split_names(name: str) -> list[str]:
    """Return the names of all files of the model that a file belongs to, in order. Raises ModelUnreadable."""
    found = SPLIT.fullmatch(name)
    if found is None:
        return [name]
    count = int(found["count"])
    if not 1 <= int(found["number"]) <= count <= MAX_SPLITS:
        raise unreadable(name, "Its name says that it is part of a whole that cannot be.")
    return [f"{found['stem']}-{number:05}-of-{found['count']}{name[-5:]}" for number in range(1, count + 1)]


def kind_of(name: str) -> str:
    """Return the quantisation that a file's name states: Q4_K_M, UD-Q4_K_XL, BF16; "" if it states none."""
    split = SPLIT.fullmatch(name)
    stem = split["stem"] if split else name[: -len(SUFFIX)]
    found = KIND.findall(stem)
    return str(found[-1]).upper() if found else ""
