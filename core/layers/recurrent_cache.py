"""Cache layers with recurrent states (linear attention, convolutions), alone or beside keys and values.

Such states cannot be cut back. What they were is kept in `Snapshots`, and put back.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import LinearAttentionLayer

from core.layers.kv_layers import Allocate, PreallocatedLayer, on_host
from core.spec import SNAPSHOTS

States = tuple[Tensor, ...]
"""Copies in RAM of a layer's recurrent states, in the order of their places."""


class RecurrentLayer(LinearAttentionLayer):  # type: ignore[misc]  # transformers has no types
    """One layer's recurrent states, as transformers keeps them, but for how they lie: those of convolutions with their
    channels side by side, as products write them; and states that were made for it are taken over, not copied."""

    conv_states: Any  # dict[int, Tensor | None]
    recurrent_states: Any

    def __init__(self, states: int = 1) -> None:
        """`states`: how many of either kind."""
        LinearAttentionLayer.__init__(self, number_of_states=states)

    def lazy_initialization(
        self, conv_states: Tensor | None = None, recurrent_states: Tensor | None = None, state_idx: int = 0,
        conv_kernel_size: int | None = None,
    ) -> None:  # fmt: skip
        """Make room for states like these: (1, C, T) of a convolution, (1, ...) of others."""
        super().lazy_initialization(conv_states, recurrent_states, state_idx, conv_kernel_size)
        if conv_states is not None:
            held = self.conv_states[state_idx]
            self.conv_states[state_idx] = torch.zeros_like(held.transpose(-1, -2).contiguous()).transpose(-1, -2)

    def update_conv_state(
        self, conv_states: Tensor, state_idx: int = 0, conv_kernel_size: int | None = None, **kwargs: Any
    ) -> Tensor:
        """Append (1, C, n); the inputs from the oldest held on, (1, C, R + n)."""
        if not self.is_conv_states_initialized[state_idx]:
            self.lazy_initialization(conv_states=conv_states, state_idx=state_idx, conv_kernel_size=conv_kernel_size)
        held: Tensor = self.conv_states[state_idx].transpose(-1, -2)
        rows = conv_states.transpose(-1, -2)
        if self.has_previous_state[state_idx] or rows.shape[1] < held.shape[1]:
            rows = torch.cat((held, rows), 1)
        self.has_previous_state[state_idx] = True
        held.copy_(rows[:, -held.shape[1] :])
        after: Tensor = rows.transpose(-1, -2)
        return after

    def update_recurrent_state(self, recurrent_states: Tensor, state_idx: int = 0, **kwargs: Any) -> Tensor:
        """Hold this state (1, ...) from now on."""
        is_part = recurrent_states.untyped_storage().nbytes() > recurrent_states.nbytes
        if is_part or not recurrent_states.is_contiguous():
            recurrent_states = recurrent_states.clone(memory_format=torch.contiguous_format)
        self.is_recurrent_states_initialized[state_idx] = True
        self.recurrent_states[state_idx] = recurrent_states
        return recurrent_states

    def taken(self) -> States:
        """The states as they are now."""
        return tuple(state.to("cpu", copy=True) for state in self._states())

    def put(self, states: States) -> None:
        """Have these states again."""
        for state, kept in zip(self._states(), states, strict=True):
            state.copy_(kept)
        for number, held in self.is_conv_states_initialized.items():
            self.has_previous_state[number] = held

    def _states(self) -> Iterator[Tensor]:
        for states in (self.conv_states, self.recurrent_states):
            yield from (state for state in states.values() if state is not None)


class RecurrentAndAttentionLayer(RecurrentLayer, PreallocatedLayer):
    """Recurrent states beside the keys and values of full attention."""

    is_compileable = False

    def __init__(
        self, states: int, capacity: int, allocate: Allocate = on_host, home: torch.device | None = None
    ) -> None:
        PreallocatedLayer.__init__(self, capacity, allocate, home)
        RecurrentLayer.__init__(self, states)

    def lazy_initialization(self, *args: Any, **kwargs: Any) -> None:
        """transformers tells the two apart so: keys and values come by place."""
        if len(args) == 2 and not kwargs:
            PreallocatedLayer.lazy_initialization(self, *args)
        else:
            RecurrentLayer.lazy_initialization(self, *args, **kwargs)

    def reset(self) -> None:
        RecurrentLayer.reset(self)
        PreallocatedLayer.reset(self)


@dataclass(frozen=True)
class Snapshot:
    """The states of all recurrent layers after `length` tokens. `brief`: the next brief one takes its place."""

    length: int
    layers: tuple[States, ...]
    brief: bool


class Snapshots:
    """At most SNAPSHOTS of them, one of which is brief; the newest stay."""

    def __init__(self) -> None:
        self._taken: list[Snapshot] = []

    # The states were made in inference mode.
    @torch.inference_mode()
    def take(self, length: int, layers: Sequence[RecurrentLayer], *, briefly: bool) -> None:
        """Copy what the layers hold after `length` tokens."""
        if any(one.length == length and one.brief <= briefly for one in self._taken):
            return
        lasting = [one for one in self._taken if not one.brief]
        others = lasting if briefly else [*lasting[max(0, len(lasting) - SNAPSHOTS + 2) :], *self._brief()]
        self._taken = others  # before the new one, so that there is room for it
        self._taken.append(Snapshot(length, tuple(layer.taken() for layer in layers), briefly))

    @property
    def lengths(self) -> tuple[int, ...]:
        """The numbers of tokens for which there is one."""
        return tuple(one.length for one in self._taken)

    def newest(self, length: int) -> int:
        """The largest length of at most `length` tokens that can be put back; 0 = none."""
        return max((one.length for one in self._taken if one.length <= length), default=0)

    @torch.inference_mode()
    def put_back(self, length: int, layers: Sequence[RecurrentLayer]) -> None:
        """Have what was held after `length` tokens, for which there is a snapshot; those of more tokens are void."""
        self._taken = [one for one in self._taken if one.length <= length]
        states = next(one.layers for one in self._taken if one.length == length)
        for layer, kept in zip(layers, states, strict=True):
            layer.put(kept)

    def forget(self) -> None:
        """Let go of all."""
        self._taken.clear()

    def _brief(self) -> list[Snapshot]:
        return [one for one in self._taken if one.brief]
