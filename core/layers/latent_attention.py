"""Multi-head latent attention without expanded keys and values for every token.

In every such family, a method of the attention module expands the cached latents to keys and values. Ours defers that:
`attention.attend` gets latents, and expands them only where it must (long prompts). Trials verify that the results
agree.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from core.kernels.float_stand_in import as_floats
from core.kernels.native_heads import NativeHeads
from core.kernels.native_latent import LatentSizes
from core.kernels.native_library import NativeLibrary, native
from core.kernels.quantize import quantize
from core.layers import attention
from core.layers.latents import Expand, FloatProducts, LatentHeads, Latents
from core.layers.trials import MISFITS, near
from core.offload.hetero_linear import HostLinear
from core.spec import LAYOUTS, turned

EXPANSION = "expand_kv"
"""The method that expands latents to keys and values."""
EXPANDING = "kv_b_proj"
"""The linear that it uses."""
SIZES = ("num_heads", "qk_nope_head_dim", "qk_rope_head_dim", "kv_lora_rank", "v_head_dim")
"""The modules' attributes for the fields of `LatentSizes`."""
TYPES = (torch.float32, torch.bfloat16)
TRIED_TOKENS = 5
NEAR = 0.05
"""Largest error relative to the largest element: inputs of quantised weights differ from the model's own path."""


class Expansion:
    """Replaces the module's expansion method."""

    def __init__(self, module: Any, heads: LatentHeads) -> None:
        self.heads = heads
        self.own: Expand = module.expand_kv
        self._module = module

    def __call__(self, rows: Tensor, turned: Tensor) -> tuple[Tensor, Tensor]:
        """Latents (B, 1, T, rank) and rotary parts (B, 1, T, turned) -> keys and values."""
        rows, turned = as_floats(rows), as_floats(turned)
        linear = self._module.kv_b_proj
        # Streamed rows must be consumed, and a device that holds all rows needs no CPU.
        if rows.shape[0] != 1 or getattr(linear, "chunks", None) or getattr(linear, "is_whole", False):
            return self.own(rows, turned)
        return Latents(self.heads, self.own, rows, turned).states()


def adopt(root: Any) -> None:
    """Make all such modules of a loaded tree on the CPU defer the expansion."""
    release(root)
    library = native()
    if library is None:
        return
    sound: dict[tuple[object, ...], bool] = {}
    for module, sizes in list(_modules(root)):
        heads = _heads(library, module.kv_b_proj, sizes, root.dtype)
        ours, kind = Expansion(module, heads), (type(module), sizes)
        if kind not in sound:
            sound[kind] = _agrees(module, ours, heads)
        if sound[kind]:
            module.expand_kv = ours


def release(root: nn.Module) -> None:
    """Restore the modules' own expansion."""
    for module in root.modules():
        if isinstance(vars(module).get(EXPANSION), Expansion):
            del module.expand_kv


def sizes_of(module: Any) -> LatentSizes | None:
    """Return the sizes of a module that expands latents with one linear without a bias; None for any other module."""
    linear = module._modules.get(EXPANDING)
    numbers = [number for name in SIZES if isinstance(number := getattr(module, name, None), int)]
    one = linear is not None and getattr(linear, "bias", None) is None
    return LatentSizes(*numbers) if one and hasattr(module, EXPANSION) and len(numbers) == len(SIZES) else None


def _modules(root: Any) -> Iterator[tuple[Any, LatentSizes]]:
    """Yield modules whose expanding linear is on the CPU and which use our attention, with their sizes."""
    for module in root.modules():
        sizes = sizes_of(module)
        ours = getattr(getattr(module, "config", None), "_attn_implementation", "") == attention.NAME
        if sizes is None or not ours or root.dtype not in TYPES:
            continue
        if isinstance(linear := module._modules[EXPANDING], HostLinear) and _fits(linear, sizes):
            yield module, sizes


def _fits(linear: HostLinear, sizes: LatentSizes) -> bool:
    weight = linear.host.weight
    return weight.shape == (sizes.heads * (sizes.plain + sizes.value), sizes.rank) and weight.order is None


def _heads(library: NativeLibrary, linear: HostLinear, sizes: LatentSizes, dtype: torch.dtype) -> LatentHeads:
    """Make the heads' projections.

    Those of keys are multiplied transposed, and therefore copied. Quantised ones are copied at 8 bits, which is
    lossless for formats of fewer bits.
    """
    weight, each = linear.host.weight, sizes.plain + sizes.value
    if weight.storage == "fp32":
        wide = weight.data.view(sizes.heads, each, sizes.rank)
        keys, values = FloatProducts(wide[:, : sizes.plain]), FloatProducts(wide[:, sizes.plain :].transpose(1, 2))
        return LatentHeads(sizes, keys, values, dtype)
    storage = turned(weight.storage)
    starts = range(0, sizes.heads * each, each)
    copied = [quantize(_turned_round(linear, start, start + sizes.plain), storage) for start in starts]
    kept = [weight.rows(start + sizes.plain, start + each) for start in starts]
    return LatentHeads(sizes, NativeHeads(library, copied), NativeHeads(library, kept), dtype)


def _turned_round(linear: HostLinear, begin: int, end: int) -> Tensor:
    """Return the transpose of some rows, (K, end - begin)."""
    weight = linear.host.weight
    dtype = torch.float32 if weight.storage in LAYOUTS else weight.data.dtype
    return weight.rows(begin, end).dequantize(dtype).T.contiguous()


@torch.inference_mode()
def _agrees(module: Any, ours: Expansion, heads: LatentHeads) -> bool:
    """Return whether attention gives the same for a query with both."""
    generator = torch.Generator().manual_seed(0)
    sizes = heads.sizes

    def random(count: int, tokens: int, columns: int) -> Tensor:
        return torch.randn(1, count, tokens, columns, generator=generator).to(heads.dtype)

    rows, turned = random(1, TRIED_TOKENS, sizes.rank), random(1, TRIED_TOKENS, sizes.turned)
    query = random(sizes.heads, 1, sizes.plain + sizes.turned)
    try:
        expected, found = (
            attention.attend(module, query, keys, values, None)[0]
            for keys, values in (module.expand_kv(rows, turned), ours(rows, turned))
        )
    except MISFITS:
        return False
    finally:
        module.kv_b_proj.inputs.forget()
    return near(found, expected, NEAR)
