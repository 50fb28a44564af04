"""The KV cache layers of a run of decoder layers, which one native call reads and extends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from core.kernels.native_run import NativeRun
from core.kernels.packed_width import MOST_COLUMNS, packed_width
from core.layers.kv_layers import PreallocatedLayer
from core.layers.kv_packed import STATES_ONLY


def holds(native: NativeRun, kept: Sequence[PreallocatedLayer]) -> bool:
    """Return whether the run was used last with the same buffers of these layers, which still hold equally many
    tokens."""
    first = kept[0]
    same = native.holds([tensor for one in kept for tensor in one.tensors])
    return same and all(one.length == first.length and one.home is None for one in kept)


def are_alike(kept: Sequence[Any], x: Tensor) -> bool:
    """Return whether layers of one kind store tokens alike, in equal buffers, on the device of x (1, M, K)."""
    first = kept[0]
    return type(first) in STATES_ONLY and all(type(one) is type(first) and _is_like(one, first, x) for one in kept)


def room(kept: PreallocatedLayer, rows: int) -> tuple[int, ...]:
    """Return the buffer indices for so many more tokens: see `make_room` and `recent_room`."""
    first, start = kept.make_room(rows)
    return first, start, *kept.recent_room(rows, start - first)


def _is_like(kept: PreallocatedLayer, first: PreallocatedLayer, x: Tensor) -> bool:
    return (
        kept.is_initialized and kept.length == first.length and kept.home is None
        and kept.keys.device == x.device and kept.floats is x.dtype
        and kept.keys.dtype is first.keys.dtype and kept.keys.shape == first.keys.shape
        and kept.keys.shape[3] <= packed_width(MOST_COLUMNS)
    )  # fmt: skip
