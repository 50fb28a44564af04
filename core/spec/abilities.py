"""What a trial of a GPU found out about it besides its rates: which faster ways it takes, and which failed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from core.spec.storages import Storage


@dataclass(frozen=True)
class TorchProduct:
    """A product of torch's own with quantised weights that was right on a GPU.

    `operator`: its name in `core.kernels.torch_products`; `step`: weights have a multiple of so many rows; `order`: our
    column at each place of a run of the operator's columns, () for ours; `types` (of torch, "bfloat16") and at most
    `most` rows of inputs.
    """

    storage: Storage
    operator: str
    step: int = 1
    order: tuple[int, ...] = ()
    types: tuple[str, ...] = ()
    most: int = 0


@dataclass(frozen=True)
class Attempt:
    """Whether a faster way works on a GPU. `why`: a sentence if the driver failed, "" otherwise."""

    name: str
    works: bool
    why: str = ""


@dataclass(frozen=True)
class Abilities:
    """`own_kernels`: kernels of ours run there; `products`: torch's that do; `attempts`: all that was tried."""

    own_kernels: bool = False
    products: tuple[TorchProduct, ...] = ()
    attempts: tuple[Attempt, ...] = ()


NO_TRIAL = Abilities()
"""Those of a GPU that was not tried: only what torch guarantees for all is used."""


def parse_abilities(data: Mapping[str, Any]) -> Abilities:
    """Return the abilities that were written as JSON. Raises TypeError, KeyError."""
    products = tuple(_product(one) for one in data["products"])
    return Abilities(data["own_kernels"], products, tuple(Attempt(**one) for one in data["attempts"]))


def _product(data: Mapping[str, Any]) -> TorchProduct:
    return TorchProduct(**{**data, "order": tuple(data["order"]), "types": tuple(data["types"])})
