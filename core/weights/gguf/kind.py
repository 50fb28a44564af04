"""The common names of a GGUF file's quantisation: Q4_K_M and the like."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from core.weights.gguf.header import TensorPlace

FILE_TYPE = "general.file_type"
NAMES = {
    2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M", 13: "Q3_K_L",
    14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS", 21: "Q2_K_S",
    22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S", 29: "IQ2_M",
    30: "IQ4_XS", 31: "IQ1_M", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4", 39: "NVFP4",
}  # fmt: skip
"""By the number in the file; mixtures have names of their own."""
SAID = 2
"""How many types are named if the file's own statement is missing or wrong."""


def file_kind(settings: Mapping[str, Any], tensors: Mapping[str, TensorPlace]) -> str:
    """Return the file's own name if it matches most of its bytes, else its main types; "" for unquantised files."""
    sizes: Counter[str] = Counter()
    for place in tensors.values():
        if not place.type.is_number and len(place.shape) > 1:
            sizes[place.type.name] += place.nbytes
    if not sizes:
        return ""
    main = [name for name, _ in sizes.most_common(SAID)]
    said = NAMES.get(settings.get(FILE_TYPE, -1), "")
    return f"GGUF {said if said and main[0].startswith(said.partition('_')[0]) else ', '.join(main)}"
