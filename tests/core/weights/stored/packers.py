"""Weights quantised and laid out as by each format's own program, with their values in fp32.

Written from the formats' descriptions, independently of our reader: numbers are packed one by one here.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Packed = tuple[dict[str, Tensor], Tensor]
"""Tensors by the suffixes of their names, and the weight that they represent."""
E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
NF4 = torch.tensor([
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
])  # fmt: skip
FP4 = torch.tensor([0, 1, 128, 192, 64, 96, 32, 48, 0, -1, -128, -192, -64, -96, -32, -48]) / 192
AWQ_PLACES = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of eight neighbours AWQ packs first, second etc."""


def words(values: Tensor, bits: int, places: tuple[int, ...] = ()) -> Tensor:
    """Pack (..., n) small integers to (..., n * bits / 32) of int32, the first in the lowest bits."""
    each = 32 // bits
    runs = values.long().reshape(*values.shape[:-1], -1, each)
    total = sum(runs[..., place] << bits * index for index, place in enumerate(places or range(each)))
    assert isinstance(total, Tensor)
    return torch.where(total >= 1 << 31, total - (1 << 32), total).int()


def pairs(values: Tensor) -> Tensor:
    """Pack (..., n) 4-bit integers to (..., n / 2) bytes, the first in the low half."""
    runs = values.to(torch.uint8).reshape(*values.shape[:-1], -1, 2)
    return runs[..., 0] | runs[..., 1] << 4


def nearest(values: Tensor, book: Tensor) -> Tensor:
    return (values[..., None] - book).abs().argmin(-1)


@dataclass(frozen=True)
class Integers:
    """Integers of `bits` with a scale per `group` of columns (0 = the row), with or without zero points."""

    bits: int = 4
    group: int = 32
    scale: torch.dtype = torch.float16
    symmetric: bool = True
    order: bool = False

    def split(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return unsigned codes (N, K), scales and zero points (N, groups), the group of each column, and the
        weight."""
        columns, group, most = weight.shape[1], self.group or weight.shape[1], (1 << self.bits) - 1
        groups = torch.arange(columns) // group
        if self.order:
            groups = groups[torch.randperm(columns, generator=torch.Generator().manual_seed(3))]
        by_group = torch.stack([weight[:, groups == each] for each in range(columns // group)], dim=1)
        low, high = by_group.amin(2).clamp(max=0), by_group.amax(2).clamp(min=0)
        if self.symmetric:
            scales = (2 * torch.maximum(-low, high) / most).to(self.scale)
            zeros = torch.full_like(scales, 1 << self.bits - 1, dtype=torch.long)
        else:
            scales = ((high - low) / most).to(self.scale)
            zeros = (-low / scales.float()).round().clamp(1, most).long()
        spread = scales.float()[:, groups]
        codes = (weight / spread).round().long().add(zeros[:, groups]).clamp(0, most)
        return codes, scales, zeros, groups, (codes - zeros[:, groups]).float() * spread


def gptq(weight: Tensor, how: Integers, version: int = 1) -> Packed:
    codes, scales, zeros, groups, exact = how.split(weight)
    kept = zeros - 1 if version == 1 else zeros
    tensors = {
        ".qweight": words(codes, how.bits).t().contiguous(), ".qzeros": words(kept.t(), how.bits),
        ".scales": scales.t().contiguous(), ".g_idx": groups.int(),
    }  # fmt: skip
    return tensors, exact


def awq(weight: Tensor, how: Integers) -> Packed:
    codes, scales, zeros, _, exact = how.split(weight)
    tensors = {
        ".qweight": words(codes.t(), 4, AWQ_PLACES), ".qzeros": words(zeros.t(), 4, AWQ_PLACES),
        ".scales": scales.t().contiguous(),
    }  # fmt: skip
    return tensors, exact


def compressed(weight: Tensor, how: Integers) -> Packed:
    """Pack as compressed-tensors' pack-quantized: signed integers, offset by half of the range."""
    codes, scales, zeros, groups, exact = how.split(weight)
    tensors = {
        ".weight_packed": words(codes, how.bits), ".weight_scale": scales,
        ".weight_shape": torch.tensor(weight.shape),
    }  # fmt: skip
    if not how.symmetric:
        tensors[".weight_zero_point"] = words(zeros.t(), how.bits).t().contiguous()
    if how.order:
        tensors[".weight_g_idx"] = groups.int()
    return tensors, exact


def int8_rows(weight: Tensor, scale: torch.dtype = torch.bfloat16) -> Packed:
    scales = (weight.abs().amax(1, keepdim=True) / 127).to(scale)
    codes = (weight / scales.float()).round().clamp(-128, 127)
    return {".weight": codes.to(torch.int8), ".weight_scale": scales}, codes * scales.float()


def bitsandbytes8(weight: Tensor) -> Packed:
    largest = weight.abs().amax(1)
    codes = (weight / largest[:, None] * 127).round()
    tensors = {
        ".weight": codes.to(torch.int8), ".SCB": largest, ".weight_format": torch.tensor(0, dtype=torch.uint8),
    }  # fmt: skip
    return tensors, codes * (largest / 127)[:, None]


def float8(weight: Tensor, block: tuple[int, int] | None, end: str, dtype: torch.dtype = torch.float32) -> Packed:
    """Quantise to FP8 with a scale per block of rows and columns, partial at the ends; None = one for all."""
    rows, columns = weight.shape
    high, wide = block or (rows, columns)
    grid = torch.zeros(-(-rows // high), -(-columns // wide))
    for i in range(grid.shape[0]):
        for j in range(grid.shape[1]):
            part = weight[i * high : (i + 1) * high, j * wide : (j + 1) * wide]
            grid[i, j] = part.abs().max() / 448
    grid = grid.to(dtype).float()
    spread = grid[torch.arange(rows) // high][:, torch.arange(columns) // wide]
    codes = (weight / spread).to(torch.float8_e4m3fn)
    scales = grid.to(dtype) if block else grid[0, 0].to(dtype)
    return {".weight": codes, end: scales}, codes.float() * spread


def mxfp8(weight: Tensor) -> Packed:
    groups = weight.view(len(weight), -1, 32)
    exponents = (groups.abs().amax(2) / 448).log2().ceil().int()
    codes = (groups / exponents.float().exp2()[:, :, None]).to(torch.float8_e4m3fn)
    exact = codes.float() * exponents.float().exp2()[:, :, None]
    tensors = {".weight": codes.view(weight.shape), ".weight_scale_inv": (exponents + 127).to(torch.uint8)}
    return tensors, exact.view(weight.shape)


def mxfp4_parts(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return blocks (..., K / 32, 16), exponents + 127 (..., K / 32), and the weight (..., K)."""
    groups = weight.reshape(*weight.shape[:-1], -1, 32)
    exponents = (groups.abs().amax(-1) / 6).log2().ceil().int()
    codes = nearest(groups / exponents.float().exp2()[..., None], E2M1)
    exact = E2M1[codes] * exponents.float().exp2()[..., None]
    return pairs(codes), (exponents + 127).to(torch.uint8), exact.view(weight.shape)


def mxfp4(weight: Tensor) -> Packed:
    blocks, scales, exact = mxfp4_parts(weight)
    return {".weight_packed": blocks.flatten(1), ".weight_scale": scales}, exact


def nvfp4(weight: Tensor, *, inverse: bool) -> Packed:
    """Quantise to NVFP4. modelopt stores the weight's global scale, compressed-tensors its reciprocal."""
    whole = weight.abs().max() / (6 * 448)
    groups = weight.view(len(weight), -1, 16)
    fine = (groups.abs().amax(2) / 6 / whole).to(torch.float8_e4m3fn)
    scales = fine.float() / (1 / whole) if inverse else fine.float() * whole
    codes = nearest(groups / scales[:, :, None], E2M1)
    exact = (E2M1[codes] * scales[:, :, None]).view(weight.shape)
    packed = pairs(codes.view(weight.shape))
    if inverse:
        return {".weight_packed": packed, ".weight_scale": fine, ".weight_global_scale": (1 / whole)[None]}, exact
    more = {".input_scale": torch.tensor(1.0), ".weight_scale_2": whole}
    return {".weight": packed, ".weight_scale": fine} | more, exact


def bitsandbytes4(weight: Tensor, book: Tensor, kind: str, *, nested: bool) -> Packed:
    blocks = weight.reshape(-1, 64)
    largest = blocks.abs().amax(1)
    codes = nearest(blocks / largest[:, None], book).flatten()
    state: dict[str, Any] = {"quant_type": kind, "blocksize": 64, "dtype": "float32", "shape": list(weight.shape)}
    tensors = {".weight": (codes[0::2] << 4 | codes[1::2]).to(torch.uint8)[:, None], ".weight.quant_map": book}
    if nested:
        offset, table = float(largest.mean()), torch.linspace(-1, 1, 256)
        runs = torch.nn.functional.pad(largest - offset, (0, -len(largest) % 256)).view(-1, 256)
        outer = runs.abs().amax(1)
        kept = nearest((runs / outer[:, None]).flatten()[: len(largest)], table)
        largest = table[kept] * outer.repeat_interleave(256)[: len(largest)] + offset
        state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": offset}
        tensors |= {".weight.absmax": kept.to(torch.uint8), ".weight.nested_absmax": outer}
        tensors[".weight.nested_quant_map"] = table
    else:
        tensors[".weight.absmax"] = largest
    content = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
    tensors[f".weight.quant_state.bitsandbytes__{kind}"] = content
    return tensors, (book[codes].view(-1, 64) * largest[:, None]).view(weight.shape)


@dataclass(frozen=True)
class Format:
    """A program's storage of a linear, its entry in config.json, and the engine's storage; None if none is exact."""

    pack: Callable[[Tensor], Packed]
    settings: dict[str, Any]
    storage: str | None = None
    title: str = field(default="")


def _config_groups(**weights: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": {"type": "int", "symmetric": True, **weights}}
    return {"quant_method": "compressed-tensors", "config_groups": {"group_0": group}, "ignore": ["lm_head"]}


def _gptq(**changes: Any) -> dict[str, Any]:
    return {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True, "desc_act": False} | changes


ASYMMETRIC = Integers(symmetric=False)
FORMATS: dict[str, Format] = {
    "gptq": Format(lambda w: gptq(w, Integers()), _gptq(), "int4g32"),
    "gptq v2, zero points": Format(
        lambda w: gptq(w, ASYMMETRIC, 2), _gptq(sym=False, checkpoint_format="gptq_v2"), "int4g32w",
    ),
    "gptq v1, zero points": Format(lambda w: gptq(w, ASYMMETRIC), _gptq(sym=False), "int4g32w"),
    "gptq by row": Format(lambda w: gptq(w, Integers(group=0)), _gptq(group_size=-1), "int4g32"),
    "gptq 64": Format(lambda w: gptq(w, Integers(group=64)), _gptq(group_size=64), "int4g32"),
    "gptq in order of activations": Format(lambda w: gptq(w, Integers(order=True)), _gptq(desc_act=True), "int4g32"),
    "gptq in order, zero points": Format(
        lambda w: gptq(w, Integers(order=True, symmetric=False)), _gptq(desc_act=True, sym=False), "int4g32w",
    ),
    "gptq 8 bits": Format(lambda w: gptq(w, Integers(bits=8)), _gptq(bits=8), "int8g32"),
    "gptq 8 bits, zero points": Format(
        lambda w: gptq(w, Integers(bits=8, symmetric=False)), _gptq(bits=8, sym=False),
    ),
    "awq": Format(
        lambda w: awq(w, ASYMMETRIC), {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"},
        "int4g32w",
    ),
    "auto-round": Format(
        lambda w: gptq(w, Integers(group=64), 2),
        _gptq(quant_method="auto-round", group_size=64, packing_format="auto_round"), "int4g32",
    ),
    "compressed 4 bits": Format(
        lambda w: compressed(w, Integers(scale=torch.bfloat16)), _config_groups(num_bits=4, group_size=32), "int4g32b",
    ),
    "compressed 4 bits, zero points": Format(
        lambda w: compressed(w, ASYMMETRIC), _config_groups(num_bits=4, group_size=32, symmetric=False), "int4g32w",
    ),
    "compressed 4 bits, in order": Format(
        lambda w: compressed(w, Integers(order=True)), _config_groups(num_bits=4, group_size=32, actorder="group"),
        "int4g32",
    ),
    "compressed 8 bits in words": Format(
        lambda w: compressed(w, Integers(bits=8, group=0, scale=torch.bfloat16)), _config_groups(num_bits=8), "int8",
    ),
    "int8 by row": Format(int8_rows, _config_groups(num_bits=8, strategy="channel"), "int8"),
    "bitsandbytes int8": Format(bitsandbytes8, {"quant_method": "bitsandbytes", "load_in_8bit": True}, "int8"),
    "nf4": Format(
        lambda w: bitsandbytes4(w, NF4, "nf4", nested=False), {"quant_method": "bitsandbytes", "load_in_4bit": True},
        "nf4",
    ),
    "nf4, twice": Format(
        lambda w: bitsandbytes4(w, NF4, "nf4", nested=True), {"quant_method": "bitsandbytes", "load_in_4bit": True},
        "nf4",
    ),
    "bitsandbytes fp4": Format(
        lambda w: bitsandbytes4(w, FP4, "fp4", nested=False), {"quant_method": "bitsandbytes", "load_in_4bit": True},
    ),
    "fp8 in blocks": Format(
        lambda w: float8(w, (128, 128), ".weight_scale_inv"),
        {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}, "fp8",
    ),
    "fbgemm fp8": Format(
        lambda w: float8(w, (1, w.shape[1]), ".weight_scale"), {"quant_method": "fbgemm_fp8"}, "fp8",
    ),
    "compressed fp8 by row": Format(
        lambda w: float8(w, (1, w.shape[1]), ".weight_scale", torch.bfloat16), _config_groups(num_bits=8, type="float"),
        "fp8",
    ),
    "compressed fp8": Format(
        lambda w: float8(w, None, ".weight_scale"), _config_groups(num_bits=8, type="float"), "fp8",
    ),
    "compressed fp8 in blocks": Format(
        lambda w: float8(w, (64, 32), ".weight_scale"),
        _config_groups(num_bits=8, type="float", strategy="block", block_structure=[64, 32]),
    ),
    "mxfp8": Format(mxfp8, {"quant_method": "mxfp8"}, title="FP8"),
    "compressed mxfp4": Format(mxfp4, _config_groups(num_bits=4, type="float", group_size=32), "mxfp4"),
    "modelopt nvfp4": Format(
        lambda w: nvfp4(w, inverse=False), {"quant_method": "modelopt", "quant_algo": "NVFP4"}, "nvfp4w",
    ),
    "compressed nvfp4": Format(
        lambda w: nvfp4(w, inverse=True), _config_groups(num_bits=4, type="float", group_size=16), "nvfp4w",
    ),
}  # fmt: skip
