"""What one pass of transformers' own forward computes around the layers, seen by hooks while it runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from core.model.language_half import text_config


@dataclass
class Watched:
    """Tensors of a pass over M rows: the first layer's `rows` (1, M, K), the last norm's output, the head's input and
    output (1, n, ...), and the `logits`. `calls`: the arguments of each layer besides its rows."""

    rows: list[Tensor] = field(default_factory=list)
    calls: list[Mapping[str, Any]] = field(default_factory=list)
    normed: list[Tensor] = field(default_factory=list)
    asked: list[Tensor] = field(default_factory=list)
    scores: list[Tensor] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)

    def is_whole(self) -> bool:
        """Return whether each part of the model was called once, and with rows."""
        once = (self.normed, self.asked, self.scores, self.logits)
        return len(self.rows) == len(self.calls) > 0 and all(len(one) == 1 for one in once)

    def layer(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Record a call of a layer."""
        self.calls.append(kwargs)
        self.rows.extend(one for one in args[:1] if isinstance(one, Tensor))

    def norm(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        """Record a call of the last norm: output (1, M, H)."""
        self.normed.append(output)

    def head(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        """Record a call of the output head: output (1, M, V)."""
        self.asked.extend(args[:1])
        self.scores.append(output)

    def model(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Record the result of the pass."""
        self.logits.append(output.logits)


@contextmanager
def watched(module: Any, layers: Sequence[nn.Module], norm: nn.Module) -> Iterator[Watched]:
    """Watch the passes of `module`, a causal language model, while the context lasts."""
    seen = Watched()
    hooks = [layer.register_forward_pre_hook(seen.layer, with_kwargs=True) for layer in layers]
    hooks += [norm.register_forward_hook(seen.norm), module.get_output_embeddings().register_forward_hook(seen.head)]
    hooks.append(module.register_forward_hook(seen.model))
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@dataclass(frozen=True)
class Factor:
    """Multiplies a tensor (...) by a number, or divides it; a number of 1 leaves it as it is."""

    number: float = 1
    divides: bool = False

    def __call__(self, x: Tensor) -> Tensor:
        """(...) -> (...)."""
        return x if self.number == 1 else x / self.number if self.divides else x * self.number


def factor_between(before: Tensor, after: Tensor, numbers: Sequence[float]) -> Factor | None:
    """Return the factor with one of these numbers that makes `after` (...) of `before`, bit for bit; None if none
    does."""
    tried = (Factor(number, divides) for divides in (False, True) for number in (1, *numbers))
    return next((one for one in tried if torch.equal(one(before), after)), None)


def numbers_of(module: Any, decoder: nn.Module) -> list[float]:
    """Return the numbers among the attributes and settings of a model, any of which may be a factor."""
    config = text_config(module.config)
    computed = [name for name, value in vars(type(config)).items() if isinstance(value, property)]
    values = [*vars(config).values(), *(getattr(config, name) for name in computed), *vars(decoder).values()]
    return sorted({one for one in values if type(one) in (int, float) and one not in (0, 1)})
