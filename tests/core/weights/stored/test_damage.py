"""Damaged or unsupported quantised files give one sentence and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save_file
from torch import Tensor

from core.errors import HeteGenError, ModelUnreadable, UnsupportedModel
from tests.core.weights.stored.packers import FORMATS
from tests.core.weights.stored.tiny_stored import announce, greedy, write_stored

Q = "model.layers.0.self_attn.q_proj"
Damage = Callable[[dict[str, Tensor]], Any]


def without(end: str) -> Damage:
    return lambda tensors: tensors.pop(Q + end)


def cut(end: str, dimension: int = 0) -> Damage:
    """Cut one part in half."""

    def damage(tensors: dict[str, Tensor]) -> None:
        part = tensors[Q + end]
        tensors[Q + end] = part.narrow(dimension, 0, part.shape[dimension] // 2).clone()

    return damage


def put(end: str, value: Tensor) -> Damage:
    return lambda tensors: tensors.update({Q + end: value})


def narrower(tensors: dict[str, Tensor]) -> None:
    """Keep half of the outputs in all parts: a consistent weight of the wrong shape."""
    for end in (".qweight", ".qzeros", ".scales"):
        cut(end, 1)(tensors)


PARTS: dict[str, tuple[str, Damage, type[HeteGenError], str]] = {
    "gptq, no scales": ("gptq", without(".scales"), ModelUnreadable, "q_proj.qweight lacks its scales"),
    "gptq, no zero points": ("gptq", without(".qzeros"), ModelUnreadable, "q_proj.qweight lacks its zero points"),
    "gptq, few scales": ("gptq", cut(".scales", 1), UnsupportedModel, "quantised with 8 bits|8 bits"),
    "gptq, few groups": ("gptq", cut(".scales"), ModelUnreadable, "do not fit together"),
    "gptq, few codes": ("gptq", cut(".qweight"), ModelUnreadable, "do not fit together|wrong shape"),
    "gptq, three bits": (
        "gptq", put(".qzeros", torch.zeros((6, 18), dtype=torch.int32)), UnsupportedModel, "quantised with 3 bits",
    ),
    "gptq, groups out of range": (
        "gptq", put(".g_idx", torch.full((192,), 99, dtype=torch.int32)), ModelUnreadable, "do not fit together",
    ),
    "gptq, another model's": ("gptq", narrower, ModelUnreadable, "wrong shape"),
    "awq, few zero points": ("awq", cut(".qzeros", 1), ModelUnreadable, "do not fit together"),
    "compressed, no scales": (
        "compressed 4 bits", without(".weight_scale"), ModelUnreadable, "weight_packed lacks its scales",
    ),
    "int8, no scales": ("int8 by row", without(".weight_scale"), ModelUnreadable, "lacks its scales"),
    "int8, few scales": ("int8 by row", cut(".weight_scale"), ModelUnreadable, "do not fit together"),
    "fp8, no scales": ("fp8 in blocks", without(".weight_scale_inv"), ModelUnreadable, "lacks its scales"),
    "fp8, odd blocks": (
        "fp8 in blocks", put(".weight_scale_inv", torch.ones(7, 5)), ModelUnreadable, "do not fit together",
    ),
    "nvfp4, no scale of the whole": (
        "compressed nvfp4", without(".weight_global_scale"), ModelUnreadable, "lacks its scales",
    ),
    "nf4, no table": ("nf4", without(".weight.quant_map"), ModelUnreadable, "lacks its scales"),
    "nf4, no state": ("nf4", without(".weight.quant_state.bitsandbytes__nf4"), ModelUnreadable, "lacks its scales"),
    "nf4, damaged state": (
        "nf4", cut(".weight.quant_state.bitsandbytes__nf4"), ModelUnreadable, "do not fit together",
    ),
    "a type that is not known": (
        "gptq", put(".qweight", torch.zeros((24, 192), dtype=torch.int16)), HeteGenError, "tensors",
    ),
}  # fmt: skip
SETTINGS: dict[str, tuple[str, dict[str, Any], str]] = {
    "unknown method": ("gptq", {"quant_method": "sinq"}, "not known (sinq)"),
    "marlin": ("gptq", {"quant_method": "gptq", "checkpoint_format": "marlin"}, "not known (marlin)"),
    "gemv": ("awq", {"quant_method": "awq", "version": "GEMV"}, "not known (GEMV)"),
    "sparse": (
        "compressed 4 bits",
        {"quant_method": "compressed-tensors", "sparsity_config": {"format": "sparse-24-bitmask"}},
        "not known (sparse-24-bitmask)",
    ),
    "rotated": (
        "compressed 4 bits", {"quant_method": "compressed-tensors", "transform_config": {"config_groups": {"v": {}}}},
        "not known (transform_config)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PARTS)
def test_a_damaged_part_gives_a_sentence(name: str, tmp_path: Path) -> None:
    kind, damage, error, words = PARTS[name]
    write_stored(tmp_path, FORMATS[kind])
    tensors = load((tmp_path / "model.safetensors").read_bytes())
    damage(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "model.safetensors")
    with pytest.raises(error, match=words):
        greedy(tmp_path, 1)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_layout_that_is_not_read_gives_a_sentence(name: str, tmp_path: Path) -> None:
    kind, settings, words = SETTINGS[name]
    write_stored(tmp_path, FORMATS[kind])
    announce(tmp_path, settings)
    with pytest.raises(UnsupportedModel) as caught:
        greedy(tmp_path, 1)
    assert words in str(caught.value)


@pytest.mark.parametrize("kind", ["gptq", "fp8 in blocks", "nf4"])
def test_a_file_that_is_cut_off_gives_a_sentence(kind: str, tmp_path: Path) -> None:
    write_stored(tmp_path, FORMATS[kind])
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(ModelUnreadable, match="It is cut off"):
        greedy(tmp_path, 1)


def test_fp8_without_scales_anywhere_is_only_shorter_numbers(tmp_path: Path) -> None:
    exact = write_stored(tmp_path / "m", FORMATS["fp8 in blocks"])
    file = tmp_path / "m" / "model.safetensors"
    tensors = {name: value for name, value in load(file.read_bytes()).items() if not name.endswith("_scale_inv")}
    save_file(tensors, file)
    assert greedy(tmp_path / "m", 4) != []
    assert len(tensors) == len(exact)
