"""GGUF's number types: elements and bytes of a block, and the storage that keeps it exactly."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from core.spec import Storage


@dataclass(frozen=True)
class BlockType:
    """A block holds `elements` neighbouring values of a row in `nbytes`. `storage` keeps them without rounding again;
    None if they are converted."""

    name: str
    elements: int
    nbytes: int
    storage: Storage | None = None

    @property
    def is_number(self) -> bool:
        """Whether it is a plain number, not a block."""
        return self.elements == 1


TYPES: dict[int, BlockType] = {
    0: BlockType("F32", 1, 4), 1: BlockType("F16", 1, 2), 30: BlockType("BF16", 1, 2), 28: BlockType("F64", 1, 8),
    24: BlockType("I8", 1, 1), 25: BlockType("I16", 1, 2), 26: BlockType("I32", 1, 4), 27: BlockType("I64", 1, 8),
    2: BlockType("Q4_0", 32, 18, "int4g32"), 3: BlockType("Q4_1", 32, 20, "int4g32m"),
    6: BlockType("Q5_0", 32, 22, "int6g32"), 7: BlockType("Q5_1", 32, 24, "int6g32m"),
    8: BlockType("Q8_0", 32, 34, "int8g32"), 10: BlockType("Q2_K", 256, 84, "int4k16m"),
    11: BlockType("Q3_K", 256, 110, "int4k16"), 12: BlockType("Q4_K", 256, 144, "int4"),
    13: BlockType("Q5_K", 256, 176, "int6k32m"), 14: BlockType("Q6_K", 256, 210, "int6k16"),
    20: BlockType("IQ4_NL", 32, 18, "iq4nl"), 23: BlockType("IQ4_XS", 256, 136, "iq4xs"),
    39: BlockType("MXFP4", 32, 17, "mxfp4"), 40: BlockType("NVFP4", 64, 36, "nvfp4"),
    16: BlockType("IQ2_XXS", 256, 66), 17: BlockType("IQ2_XS", 256, 74), 18: BlockType("IQ3_XXS", 256, 98),
    19: BlockType("IQ1_S", 256, 50), 21: BlockType("IQ3_S", 256, 110), 22: BlockType("IQ2_S", 256, 82),
    29: BlockType("IQ1_M", 256, 56), 34: BlockType("TQ1_0", 256, 54), 35: BlockType("TQ2_0", 256, 66),
}  # fmt: skip
"""By the number in the file."""
WIDER: dict[Storage, Storage] = {
    "int4": "int6k32m", "int4g32": "int6g32", "int4g32m": "int6g32m", "int4k16": "int6k16",
}  # fmt: skip
"""Storages of four bits, and those of six bits in the same groups, which keep the same values."""
ANY_FINE: Storage = "int6k16m"
"""The storage that keeps the values of all those with fine scales, whatever their groups: see `FINE`."""
FINE = frozenset[Storage | None](("int4", "int4k16", "int4k16m", "int6k32m", "int6k16"))


def common_storage(kinds: Collection[BlockType]) -> Storage | None:
    """Return the storage that keeps rows of all these types exactly; None if there is none."""
    storages = {kind.storage for kind in kinds}
    if len(storages) > 1:
        wider = {WIDER.get(one, one) if one else None for one in storages}
        storages = {ANY_FINE} if len(wider) > 1 and storages <= FINE else wider
    return storages.pop() if len(storages) == 1 else None
