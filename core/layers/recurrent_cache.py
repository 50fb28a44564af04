"""Cache layers with recurrent states (linear attention, convolutions), alone or with keys and values.

Such states cannot be cut back; earlier ones are kept in `Snapshots` and restored.
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
"""Copies in RAM of a layer's recurrent states, in order of their indices."""


class RecurrentLayer(LinearAttentionLayer):  # type: ignore[misc]  # transformers has no types
    """One layer's recurrent states, like transformers' layer, except for memory layout and copies.

    Convolution states are stored with channels contiguous, as products write them. States made for this layer are
    adopted without a copy.
    """

    conv_states: Any  # dict[int, Tensor | None]
    recurrent_states: Any

    def __init__(self, states: int = 1) -> None:
        """`states`: the number of states of either kind."""
        LinearAttentionLayer.__init__(self, number_of_states=states)

    def lazy_initialization(
        self, conv_states: Tensor | None = None, recurrent_states: Tensor | None = None, state_idx: int = 0,
        conv_kernel_size: int | None = None,
    ) -> None:  # fmt: skip
        """Allocate states like these: (1, C, T) of a convolution, (1, ...) of others."""
        super().lazy_initialization(conv_states, recurrent_states, state_idx, conv_kernel_size)
        if conv_states is not None:
            held = self.conv_states[state_idx]
            self.conv_states[state_idx] = torch.zeros_like(held.transpose(-1, -2).contiguous()).transpose(-1, -2)

    def update_conv_state(
        self, conv_states: Tensor, state_idx: int = 0, conv_kernel_size: int | None = None, **kwargs: Any
    ) -> Tensor:
        """Append inputs (1, C, n); return all from the oldest held one on, (1, C, R + n)."""
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
        """Replace the state by this one (1, ...)."""
        is_part = recurrent_states.untyped_storage().nbytes() > recurrent_states.nbytes
        if is_part or not recurrent_states.is_contiguous():
            recurrent_states = recurrent_states.clone(memory_format=torch.contiguous_format)
        self.is_recurrent_states_initialized[state_idx] = True
        self.recurrent_states[state_idx] = recurrent_states
        return recurrent_states

    def taken(self) -> States:
        """Return copies of the current states."""
        return tuple(state.to("cpu", copy=True) for state in self._states())

    def put(self, states: States) -> None:
        """Restore these states."""
        for state, kept in zip(self._states(), states, strict=True):
            state.copy_(kept)
        for number, held in self.is_conv_states_initialized.items():
            self.has_previous_state[number] = held

    def _states(self) -> Iterator[Tensor]:
        for states in (self.conv_states, self.recurrent_states):
            yield from (state for state in states.values() if state is not None)


class RecurrentAndAttentionLayer(RecurrentLayer, PreallocatedLayer):
    """Recurrent states with the keys and values of full attention."""

    is_compileable = False

    def __init__(
        self, states: int, capacity: int, allocate: Allocate = on_host, home: torch.device | None = None
    ) -> None:
        PreallocatedLayer.__init__(self, capacity, allocate, home)
        RecurrentLayer.__init__(self, states)

    def lazy_initialization(self, *args: Any, **kwargs: Any) -> None:
        """Initialise keys and values, or recurrent states: transformers passes the former as positional arguments."""
        if len(args) == 2 and not kwargs:
            PreallocatedLayer.lazy_initialization(self, *args)
        else:
            RecurrentLayer.lazy_initialization(self, *args, **kwargs)

    def reset(self) -> None:
        RecurrentLayer.reset(self)
        PreallocatedLayer.reset(self)


@dataclass(frozen=True)
class Snapshot:
    """The states of all recurrent layers after `length` tokens. `brief`: replaced by the next brief snapshot."""

    length: int
    layers: tuple[States, ...]
    brief: bool


class Snapshots:
    """The newest snapshots, at most SNAPSHOTS, one of them brief."""

    def __init__(self) -> None:
        self._taken: list[Snapshot] = []

    # The states were made in inference mode.
    @torch.inference_mode()
    def take(self, length: int, layers: Sequence[RecurrentLayer], *, briefly: bool) -> None:
        """Copy the layers' states after `length` tokens."""
        if any(one.length == length and one.brief <= briefly for one in self._taken):
            return
        lasting = [one for one in self._taken if not one.brief]
        others = lasting if briefly else [*lasting[max(0, len(lasting) - SNAPSHOTS + 2) :], *self._brief()]
        self._taken = others  # first, to free memory for the new one
        self._taken.append(Snapshot(length, tuple(layer.taken() for layer in layers), briefly))

    @property
    def lengths(self) -> tuple[int, ...]:
        """Return the lengths for which there are snapshots."""
        return tuple(one.length for one in self._taken)

    def newest(self, length: int) -> int:
        """Return the largest restorable length of at most `length` tokens; 0 = none."""
        return max((one.length for one in self._taken if one.length <= length), default=0)

    @torch.inference_mode()
    def put_back(self, length: int, layers: Sequence[RecurrentLayer]) -> None:
        """Restore the states after `length` tokens, for which there is a snapshot; later snapshots become invalid."""
        self._taken = [one for one in self._taken if one.length <= length]
        states = next(one.layers for one in self._taken if one.length == length)
        for layer, kept in zip(layers, states, strict=True):
            layer.put(kept)

    def forget(self) -> None:
        """Drop all snapshots."""
        self._taken.clear()

    def _brief(self) -> list[Snapshot]:
        return [one for one in self._taken if one.brief]
