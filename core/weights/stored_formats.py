"""Detects how a checkpoint's weights are stored: as plain numbers or already quantised, and by which method.

config.json announces most methods, a file beside it some; others show only in the names and types of tensors. The
result depends only on settings and headers, so it is the same for a folder and for a repository that is not downloaded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from core.errors import UnsupportedModel
from core.sentence import sentence
from core.weights.safetensors_header import TensorInfo

CONFIG = "config.json"
SIDECARS: dict[str, str] = {
    "hf_quant_config.json": "modelopt",
    "quantize_config.json": "gptq",
    "quant_config.json": "awq",
    "quantization_config.json": "auto-round",
}
"""Files in which quantising programs store their settings, and the method if the file names none."""
PACKED = "gptq or awq"
ANNOUNCED = {"quantization_config": "", "compression_config": "compressed-tensors", "quantization": "mlx"}
"""Keys of config.json, and the method if the entry names none; the first match counts."""
MARKED = frozenset(
    ("awq", "bitsandbytes", "compressed-tensors", "fbgemm_fp8", "fp8", "gptq", "modelopt", "mxfp4", "mxfp8", "nvfp4")
)
"""Methods that show in the tensors: where nothing shows, the weights are plain, whatever is announced."""
READABLE = MARKED | {"auto-round", "int8", "F8_E8M0", PACKED}
"""Methods whose weights can be read."""
LAYOUT_KEYS = ("checkpoint_format", "format", "version", "backend")
UNREAD_LAYOUTS = re.compile(r"marlin|bitblas|gemv|sparse|bitmask")
"""Layouts for one program's kernels, or with zeros omitted."""
MARKS: tuple[tuple[str, str], ...] = (
    (r"\.(absmax|nested_absmax|quant_map|quant_state\.[\w.]+|SCB)$", "bitsandbytes"),
    (r"\.g_idx$", "gptq"),
    (r"\.(qweight|qzeros)$", PACKED),
    (r"\.weight_packed$", "compressed-tensors"),
    (r"\.weight_scale_2$", "nvfp4"),
    (r"_blocks$", "mxfp4"),
    (r"\.(codes|codebooks)$", "aqlm"),
    (r"\.(trellis|suh|svh|q_weight|q_invperm)$", "exllama"),
    (r"\.(Qidxs|qscales)$", "quip"),
    (r"\.W_q$", "hqq"),
    (r"\.weight[.:_](_data|_scale|qdata)$", "quanto or torchao"),
)
"""Tensor names that only quantised weights have, the most specific first."""
FLOATING = frozenset(("F64", "F32", "F16", "BF16"))
INTEGERS = frozenset(("BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64"))
BUFFERS = frozenset(("BOOL", "I16", "I32", "I64"))
"""Integer types of plain matrices: masks, positions, index tables."""
MASKS = re.compile(r"(^|[._])(bias|masked_bias|mask)$")
"""Causal masks that older checkpoints store as bytes."""
NAMES = {"F8_E4M3": "fp8", "F8_E5M2": "fp8", "I8": "int8", "F4": "fp4"}
"""Names of the methods implied by a weight's number type."""


@dataclass(frozen=True)
class StoredFormat:
    """`method` is empty for plain weights. `settings`: what config.json or a file beside it states about the method;
    `shown_by`: the file or tensor that revealed it."""

    method: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    shown_by: str = ""

    @property
    def is_plain(self) -> bool:
        """Whether the weights are plain numbers."""
        return not self.method


def stored_format(
    config: Mapping[str, Any],
    tensors: Mapping[str, TensorInfo],
    sidecars: Mapping[str, Mapping[str, Any]] | None = None,
) -> StoredFormat:
    """Detect the format from config.json's content, tensor headers (none if not known) and the SIDECARS by name."""
    said = _announced(config) or _beside(sidecars or {})
    shown = _marked(tensors) or _odd(tensors)
    if said is None:
        return shown or StoredFormat()
    if shown is None and tensors and said.method in MARKED:
        return StoredFormat()
    return replace(said, method=said.method or (shown.method if shown else "by an unnamed method"))


def read_sidecars(folder: Path) -> dict[str, Mapping[str, Any]]:
    """Read those SIDECARS that a folder has; unreadable ones are skipped."""
    found: dict[str, Mapping[str, Any]] = {}
    for name in SIDECARS:
        try:
            content = json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(content, dict):
            found[name] = content
    return found


def check_readable(stored: StoredFormat) -> None:
    """Raise UnsupportedModel for weights that cannot be read."""
    unread = _unread_layout(stored.settings)
    if stored.is_plain or (stored.method in READABLE and not unread):
        return
    raise UnsupportedModel(
        sentence("The weights are quantised in a way that is not known ({}).", unread or stored.method),
        sentence("It shows in {}.", stored.shown_by),
        "Choose another version of the model.",
    )


def _unread_layout(settings: Mapping[str, Any]) -> str:
    """Return the settings' name of a layout for one program's kernels, empty if there is none."""
    within = [settings, *(value for value in settings.values() if isinstance(value, dict))]
    said = [part[key] for part in within for key in LAYOUT_KEYS if isinstance(part.get(key), str)]
    if settings.get("transform_config"):
        return "transform_config"
    return next((one for one in said if UNREAD_LAYOUTS.search(one.lower())), "")


def _announced(config: Mapping[str, Any]) -> StoredFormat | None:
    """Return what config.json states about the whole model, or about the language model in it."""
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        for key, method in ANNOUNCED.items():
            if said := part.get(key):
                return _described(said, CONFIG, method)
    return None


def _beside(sidecars: Mapping[str, Mapping[str, Any]]) -> StoredFormat | None:
    found = (_described(sidecars[name], name, method) for name, method in SIDECARS.items() if name in sidecars)
    return next(found, None)


def _described(said: Any, source: str, method: str) -> StoredFormat:
    if not isinstance(said, dict):
        return StoredFormat(str(said), {}, source)
    named = said.get("quant_method")
    return StoredFormat(named if isinstance(named, str) else method, said, source)


def _marked(tensors: Mapping[str, TensorInfo]) -> StoredFormat | None:
    """Return the format shown by the first tensor whose name only quantised checkpoints have."""
    names = "\n".join(sorted(tensors))
    for pattern, method in MARKS:
        if match := re.search(f"^.*{pattern}", names, re.MULTILINE):
            return StoredFormat(_packed_by(match[0], tensors) if method == PACKED else method, {}, match[0])
    return None


def _packed_by(name: str, tensors: Mapping[str, TensorInfo]) -> str:
    """Return which method packed a weight: GPTQ packs eight inputs into one word, AWQ eight outputs."""
    owner, _, _ = name.rpartition(".")
    packed, scales = tensors.get(f"{owner}.qweight"), tensors.get(f"{owner}.scales")
    if packed is None or scales is None:
        return PACKED
    return "gptq" if packed.shape[-1:] == scales.shape[-1:] else "awq"


def _odd(tensors: Mapping[str, TensorInfo]) -> StoredFormat | None:
    """Return the format shown by the first tensor of a number type that plain weights never have."""
    for name in sorted(tensors):
        if is_odd(tensors[name]):
            return StoredFormat(NAMES.get(tensors[name].dtype, tensors[name].dtype), {}, name)
    return None


def is_odd(info: TensorInfo) -> bool:
    """Return whether a tensor is of a number type that plain weights never have."""
    if info.dtype not in INTEGERS:
        return info.dtype not in FLOATING
    return info.dtype not in BUFFERS and len(info.shape) > 1 and not MASKS.search(info.name)
