"""Rotary angles: computed on the calling thread alone, and for a whole text with the same set of frequencies.

torch would wake its thread pool for the cosines of two rows, which takes milliseconds if another program has the cores.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from core.layers.adapted_angles import SCALE, ScaledAngles, scales_of
from core.startup.torch_threads import one_thread

FREQUENCIES = "inv_freq"
"""The end of the buffers' names by which modules that compute rotary angles are recognised."""
TWO_SETS, SHORT_SET, ORIGINAL = "longrope", "original_inv_freq", "original_max_position_embeddings"


def stay_in_thread(module: nn.Module) -> None:
    """Make all modules of the tree that compute rotary angles stay in the calling thread."""
    for part in module.modules():
        if any(name.endswith(FREQUENCIES) for name in part._buffers) and "forward" not in vars(part):
            part.forward = _alone(part.forward)


def _alone(own: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(own)
    def forward(*args: Any, **kwargs: Any) -> Any:
        with one_thread():
            return own(*args, **kwargs)

    return forward


def longest_short(config: Any) -> int:
    """Return the most tokens of a text whose angles are made with the first of two sets of frequencies (longrope);
    `sys.maxsize` if there are not two."""
    said = getattr(config.get_text_config(decoder=True), "rope_parameters", None) or {}
    kinds = [said, *(one for one in said.values() if isinstance(one, Mapping))]
    return min((one[ORIGINAL] for one in kinds if one.get("rope_type") == TWO_SETS), default=sys.maxsize)


class FrequencySets:
    """The two sets of frequencies (longrope) of a model's rotary modules, or two factors of their angles' cosines and
    sines, and which one its passes use.

    transformers chooses by a pass's last position. A long text that is read in parts would be turned with both sets.
    """

    def __init__(self, module: Any) -> None:
        self._limit = longest_short(module.config)
        self._sets = [found for part in module.modules() for found in _sets_of(part)]
        # A model that prepares its inputs itself begins its KV cache anew where it changes to the second set (Phi-3).
        prepares = "prepare_inputs_for_generation" in vars(type(module))
        self.rereads = prepares and hasattr(module.config, ORIGINAL)

    @torch.inference_mode()
    def use(self, length: int) -> None:
        """Have the angles in passes over a text of this many tokens made with the set for the whole text."""
        for part, name, short, long in self._sets:
            buffer = part.get_buffer(name)  # another one after a change of plan; graphs read it where it lies
            buffer.copy_(long if length > self._limit else short)


def _sets_of(part: Any) -> Iterator[tuple[nn.Module, str, Tensor, Tensor]]:
    """Yield a rotary module with its buffer of the short set and both sets, for each type of layer; or of factors."""
    ways = getattr(part, "rope_type", None)
    if isinstance(part, ScaledAngles) and (scales := scales_of(part)) is not None:
        yield part, SCALE, *scales
        return
    by_type = ways.items() if isinstance(ways, Mapping) else [(None, ways)]
    for kind, way in by_type:
        name = f"{kind}_{SHORT_SET}" if kind else SHORT_SET
        if way == TWO_SETS and name in part._buffers:
            short = part.get_buffer(name)
            said = part.config.rope_parameters[kind] if kind else part.config.rope_parameters
            chosen = {"layer_type": kind} if kind else {}
            long, _ = ROPE_INIT_FUNCTIONS[way](part.config, short.device, seq_len=said[ORIGINAL] + 1, **chosen)
            yield part, name, short.clone(), long
