"""Every supported kind of quantised weight, as one table: the names of its parts, and the function that decodes
them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from core.weights.safetensors_header import TensorInfo
from core.weights.stored import bitsandbytes, floats, integers
from core.weights.stored.coded import Coded
from core.weights.stored.settings import Parts, Settings

Infos = Mapping[str, TensorInfo]
WEIGHT = ".weight"


@dataclass(frozen=True)
class Kind:
    """A tensor whose name ends with `main` and whose type is one of `dtypes` holds a weight's codes; the rest of its
    name plus `target` is the weight's name.

    `parts`: by role, the name endings of the other tensors, the first match counts; `needed`: required roles; `marks`
    distinguishes kinds with the same codes; `dropped`: endings of tensors that are ignored. `dimensions` of one
    weight's codes: with one more, the tensor holds all experts of a layer. `turned`: the module stores the transposed
    matrices.
    """

    title: str
    main: str
    dtypes: frozenset[str]
    decode: Callable[[Parts, Settings], Coded]
    parts: Mapping[str, tuple[str, ...]]
    needed: tuple[str, ...] = ("scales",)
    target: str = WEIGHT
    marks: Callable[[Infos], bool] = field(default=lambda _: True)
    dropped: tuple[str, ...] = ()
    dimensions: int = 2
    turned: bool = False


def _in_four(infos: Infos) -> bool:
    return "scales" in infos and infos["scales"].dtype == "F8_E4M3"


def _in_powers(infos: Infos) -> bool:
    return "scales" in infos and infos["scales"].dtype in ("U8", "F8_E8M0")


def _in_experts(infos: Infos) -> bool:
    return len(infos["codes"].shape) > 2


def _is_awq(infos: Infos) -> bool:
    """Tell AWQ, which packs outputs into words, from GPTQ, which packs inputs."""
    return "scales" in infos and infos["codes"].shape[-1:] != infos["scales"].shape[-1:]


INPUTS = (
    ".input_scale", ".activation_scale", ".input_scale_ub", ".input_global_scale", ".input_zero_point", ".output_scale",
)  # fmt: skip
"""Quantisation parameters of activations, which the engine computes itself."""
GPTQ = {"scales": (".scales",), "zeros": (".qzeros",), "order": (".g_idx",)}
PACKED = {"scales": (".weight_scale",), "zeros": (".weight_zero_point",), "order": (".weight_g_idx",)}
FLOAT4 = {"scales": (".weight_scale",), "whole": (".weight_scale_2",), "inverse": (".weight_global_scale",)}
BITSANDBYTES = {
    "scales": (".weight.absmax",), "book": (".weight.quant_map",), "outer": (".weight.nested_absmax",),
    "table": (".weight.nested_quant_map",),
}  # fmt: skip
WORDS, BYTES, SIGNED = frozenset(("I32",)), frozenset(("U8",)), frozenset(("I8",))
FLOAT8 = frozenset(("F8_E4M3", "F8_E5M2"))

KINDS: tuple[Kind, ...] = (
    Kind("AWQ", ".qweight", WORDS, integers.awq, GPTQ, ("scales", "zeros"), marks=_is_awq),
    Kind("GPTQ", ".qweight", WORDS, integers.gptq, GPTQ, ("scales", "zeros")),
    Kind("compressed-tensors", ".weight_packed", WORDS, integers.words, PACKED, dropped=(".weight_shape", *INPUTS)),
    Kind("MXFP4", ".weight_packed", BYTES, floats.mxfp4, PACKED, marks=_in_powers, dropped=INPUTS),
    Kind("NVFP4", ".weight_packed", BYTES, floats.nvfp4, FLOAT4, ("scales", "inverse"), dropped=INPUTS),
    Kind("NVFP4", ".weight", BYTES, floats.nvfp4, FLOAT4, ("scales", "whole"), marks=_in_four, dropped=INPUTS),
    Kind("MXFP4", "_blocks", BYTES, floats.mxfp4, {"scales": ("_scales",)}, target="", dimensions=3, turned=True),
    Kind(
        "bitsandbytes nf4", ".weight", BYTES, bitsandbytes.nf4,
        {**BITSANDBYTES, "state": (".weight.quant_state.bitsandbytes__nf4",)}, ("scales", "book"),
        marks=lambda infos: "state" in infos,
    ),
    Kind(
        "bitsandbytes fp4", ".weight", BYTES, bitsandbytes.four_bits,
        {**BITSANDBYTES, "state": (".weight.quant_state.bitsandbytes__fp4",)}, ("scales", "book", "state"),
        marks=lambda infos: "scales" in infos or "book" in infos,
    ),
    Kind(
        "bitsandbytes int8", ".weight", SIGNED, integers.row_bytes, {"scales": (".SCB",)},
        marks=lambda infos: "scales" in infos, dropped=(".weight_format",),
    ),
    Kind(
        "int8", ".weight", SIGNED, integers.int8,
        {"scales": (".weight_scale",), "zeros": (".weight_zero_point",)}, dropped=INPUTS,
    ),
    Kind(
        "FP8", ".weight", FLOAT8, floats.float8,
        {"scales": (".weight_scale_inv", ".weight_scale", ".scale", ".qscale_weight")}, dropped=INPUTS,
    ),
    # Tensors that hold all experts have no ".weight" at the end of their names.
    Kind(
        "FP8", "", FLOAT8, floats.float8, {"scales": ("_scale_inv", "_scale")}, target="", marks=_in_experts,
        dropped=("_input_scale", "_activation_scale"),
    ),
)  # fmt: skip
"""The first match counts."""
