"""Layers with fixed-size states (convolutions, gated delta rule, Mamba-2) computed by our library.

In transformers, the forward of such a layer calls a few functions of fixed names, which are repeated in every family's
file. We rebind these names in the layer's forward to our functions and leave the rest, which differs between families,
as it is. Ours are used only where trials show that they agree with the file's own, and only on the CPU.
"""
# ruff: noqa: FBT001, N803  transformers' signatures

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from types import FunctionType, MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.kernels import native_recurrent
from core.kernels.native_library import NativeLibrary, native
from core.kernels.native_recurrent import MOST_KEYS, STATE_TYPES, ScanInputs
from core.layers import recurrent_trials
from core.layers.trials import MISFITS

Own = Callable[..., Any]


class RecurrentFunctions:
    """Our versions of transformers' functions for one layer, with the same names and arguments.

    `own`: transformers' functions by name.
    """

    def __init__(self, library: NativeLibrary, own: Mapping[str, Own], convolution: nn.Conv1d | None) -> None:
        self._library = library
        self._own = own
        self._taps = None if convolution is None else taps_of(convolution)

    def causal_conv1d_update(
        self, hidden_states: Tensor, conv_state: Tensor, weight: Tensor, bias: Tensor | None = None,
        activation: str | None = None,
    ) -> Tensor:  # fmt: skip
        """hidden_states (1, C, T) after those of conv_state (1, C, R), which is updated in place -> (1, C, T)."""
        kept = conv_state.transpose(1, 2)
        taps = self._taps_of(hidden_states, weight, activation)
        if taps is None or not kept.is_contiguous() or kept.dtype is not hidden_states.dtype:
            own: Tensor = self._own["causal_conv1d_update"](hidden_states, conv_state, weight, bias, activation)
            return own
        return self._convolved(hidden_states, kept[0], taps, silu=activation is not None)

    def causal_conv1d_fn(
        self, hidden_states: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None,
        **kwargs: Any,
    ) -> Tensor:  # fmt: skip
        """hidden_states (1, C, T) at the beginning of a sequence -> (1, C, T)."""
        taps = self._taps_of(hidden_states, weight, activation)
        if taps is None:
            own: Tensor = self._own["causal_conv1d_fn"](hidden_states, weight, bias, activation, **kwargs)
            return own
        return self._convolved(hidden_states, None, taps, silu=activation is not None)

    def torch_recurrent_gated_delta_rule(
        self, query: Tensor, key: Tensor, value: Tensor, g: Tensor, beta: Tensor, **options: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Compute (1, T, VH, V) and the next state.

        query, key (1, T, KH, K), value (1, T, VH, V), g and beta (1, T, VH), the option initial_state (1, VH, K, V).
        """
        return self._delta_rule("torch_recurrent_gated_delta_rule", (query, key, value, g, beta), options)

    def torch_chunk_gated_delta_rule(
        self, query: Tensor, key: Tensor, value: Tensor, g: Tensor, beta: Tensor, **options: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Compute the same as `torch_recurrent_gated_delta_rule`: (1, T, VH, V) and the next state."""
        return self._delta_rule("torch_chunk_gated_delta_rule", (query, key, value, g, beta), options)

    def mamba2_selective_state_update(
        self, state: Tensor, hidden_states: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor,
        D: Tensor | None = None, dt_bias: Tensor | None = None, dt_softplus: bool = False, z: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:  # fmt: skip
        """Process one token (1, H, P), with B and C (1, G, N); updates `state` (1, H, P, N) in place.

        dt, A, D and dt_bias are repeated over P (and N).
        """
        if not dt_softplus or not _are_ours(hidden_states, B, C) or not is_state(state):
            own: Tensor = self._own["mamba2_selective_state_update"](
                state, hidden_states, dt, A, B, C, D, dt_bias=dt_bias, dt_softplus=dt_softplus, z=z, **kwargs
            )
            return own
        step = _step(dt[..., 0], None if dt_bias is None else dt_bias[..., 0])
        decay = (step * A[..., 0, 0].float()).exp()
        inputs = ScanInputs(hidden_states, B, C, step, decay, None if D is None else D[..., 0].float().contiguous())
        out = native_recurrent.state_scan(self._library, inputs, state[0], state[0], hidden_states.dtype)
        return out if z is None else out * F.silu(z)

    def mamba2_chunk_scan(
        self, hidden_states: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, chunk_size: int,
        D: Tensor | None = None, dt_bias: Tensor | None = None, initial_states: Tensor | None = None,
        dt_softplus: bool = False, dt_limit: tuple[float, float] = (0.0, float("inf")),
        return_final_states: bool = False, **kwargs: Any,
    ) -> Any:  # fmt: skip
        """(1, T, H, P), dt (1, T, H), A, D and dt_bias (H,), B and C (1, T, G, N) -> (1, T, H, P), optionally with the
        state."""
        known = initial_states is None or is_state(initial_states)
        if kwargs.get("z") is not None or not dt_softplus or not known or not _are_ours(hidden_states, B, C):
            return self._own["mamba2_chunk_scan"](
                hidden_states, dt, A, B, C, chunk_size, D=D, dt_bias=dt_bias, initial_states=initial_states,
                dt_softplus=dt_softplus, dt_limit=dt_limit, return_final_states=return_final_states, **kwargs,
            )  # fmt: skip
        step = _step(dt[0], dt_bias).clamp(*dt_limit)
        decay, skip = (step * A.float()).exp(), None if D is None else D.float().contiguous()
        inputs = ScanInputs(hidden_states[0], B[0], C[0], step, decay, skip)
        before = None if initial_states is None else initial_states[0]
        after = torch.empty((1, *hidden_states.shape[2:], B.shape[-1]))
        out = native_recurrent.state_scan(self._library, inputs, before, after[0], torch.float32)[None]
        return (out, after) if return_final_states else out

    def _delta_rule(
        self, name: str, inputs: tuple[Tensor, ...], options: Mapping[str, Any]
    ) -> tuple[Tensor, Tensor | None]:
        query, key, value, g, beta = inputs
        before: Tensor | None = options.get("initial_state")
        fits = key.shape[-1] <= MOST_KEYS and query.shape == key.shape and (before is None or is_state(before))
        if not (fits and options.get("use_qk_l2norm_in_kernel") and _are_ours(query, key, value)):
            own: tuple[Tensor, Tensor | None] = self._own[name](*inputs, **options)
            return own
        # One token updates the state in place; several keep the old one, which a rewind may need.
        in_place = before is not None and value.shape[1] == 1
        after = before if in_place else torch.empty((1, *value.shape[2:3], key.shape[-1], value.shape[-1]))
        assert after is not None
        out = native_recurrent.delta_rule(
            self._library, query[0], key[0], value[0], g[0].float().exp().contiguous(), beta[0].float().contiguous(),
            None if before is None else before[0], after[0],
        )  # fmt: skip
        return out[None], after if options.get("output_final_state") else None

    def _taps_of(self, x: Tensor, weight: Tensor, activation: str | None) -> tuple[Tensor, Tensor | None] | None:
        """Return the convolution's weights (taps, C) and bias, if it is the layer's and ours takes the arguments."""
        plain = activation in (None, "silu", "swish") and x.shape[0] == 1 and x.stride(1) == 1
        if self._taps is None or not plain or x.device.type != "cpu" or x.dtype not in STATE_TYPES:
            return None
        held, taps, bias = self._taps
        return (taps, bias) if weight.data_ptr() == held and weight.dtype is x.dtype else None

    def _convolved(self, x: Tensor, kept: Tensor | None, taps: tuple[Tensor, Tensor | None], *, silu: bool) -> Tensor:
        out = native_recurrent.convolve(self._library, x[0].T, kept, *taps, silu=silu)
        return out.T[None]


NAMES = tuple(name for name in vars(RecurrentFunctions) if not name.startswith("_"))


def adopt(root: nn.Module) -> None:
    """Make all such layers of a loaded tree on the CPU call our functions."""
    library = native()
    if library is None:
        return
    sound: dict[str, dict[str, Own]] = {}
    for module in root.modules():
        forward = inspect.unwrap(type(module).forward)
        called = set(NAMES) & set(forward.__code__.co_names)
        if not called or "forward" in vars(module):
            continue
        if forward.__module__ not in sound:
            sound[forward.__module__] = _sound(library, forward, next(module.parameters()).dtype)
        found = sound[forward.__module__]
        _replace(module, forward, library, {name: found[name] for name in called & found.keys()})


def release(root: nn.Module) -> None:
    """Make the layers call transformers' functions again."""
    for module in root.modules():
        if is_replaced(module):
            del module.forward


def is_replaced(module: nn.Module) -> bool:
    """Return whether the layer's forward calls our functions."""
    forward = vars(module).get("forward")
    return isinstance(forward, MethodType) and MARK in forward.__func__.__globals__


MARK = "__hetegen__"
"""A name in the globals of a forward with rebound names."""


def _replace(module: Any, forward: FunctionType, library: NativeLibrary, own: Mapping[str, Own]) -> None:
    convolution = next((one for one in module.children() if isinstance(one, nn.Conv1d)), None)
    functions = RecurrentFunctions(library, own, convolution)
    scope = forward.__globals__ | {name: getattr(functions, name) for name in own} | {MARK: True}
    ours = FunctionType(forward.__code__, scope, forward.__name__, forward.__defaults__, forward.__closure__)
    ours.__kwdefaults__ = forward.__kwdefaults__
    module.forward = MethodType(ours, module)


def _sound(library: NativeLibrary, forward: FunctionType, dtype: torch.dtype) -> dict[str, Own]:
    """Return a file's functions that ours agree with, by name."""
    scope = forward.__globals__
    candidates = {name: scope[name] for name in NAMES if inspect.isfunction(scope.get(name))}
    return {name: own for name, own in candidates.items() if _agrees(library, name, own, dtype)}


@torch.inference_mode()
def _agrees(library: NativeLibrary, name: str, own: Own, dtype: torch.dtype) -> bool:
    """Return whether both compute the same. `own` is unwrapped: its decorators only warn that it is slow."""
    convolution = recurrent_trials.convolution(dtype)
    ours, theirs = getattr(RecurrentFunctions(library, {}, convolution), name), inspect.unwrap(own)
    try:
        tried = recurrent_trials.calls(name, convolution)
        return all(recurrent_trials.agree(theirs, ours, make, dtype) for make in tried)
    except MISFITS:  # or ours called a fallback, and there is none here
        return False


def taps_of(convolution: nn.Conv1d) -> tuple[int, Tensor, Tensor | None]:
    """Return the weight's address, and taps (taps, C) and bias (C,) in fp32."""
    bias = convolution.bias
    taps = convolution.weight[:, 0].detach().float().T.contiguous()
    return convolution.weight.data_ptr(), taps, None if bias is None else bias.detach().float()


def _step(dt: Tensor, bias: Tensor | None) -> Tensor:
    """Return softplus of dt (T, H) with its bias, rounded as in transformers, then in fp32."""
    return F.softplus(dt if bias is None else dt + bias.to(dt.dtype)).float().contiguous()


def _are_ours(*inputs: Tensor) -> bool:
    """Return whether our library takes these inputs of a single sequence: contiguous in columns and heads."""
    first = inputs[0]
    return (
        all(
            one.shape[0] == 1
            and one.device.type == "cpu"
            and one.dtype is first.dtype
            and one.stride(-1) == 1
            and (one.shape[-2] == 1 or one.stride(-2) == one.shape[-1])
            for one in inputs
        )
        and first.dtype in STATE_TYPES
    )


def is_state(state: Tensor) -> bool:
    """Return whether a state (1, ...) is of a single sequence and in the form that our library takes."""
    return state.shape[0] == 1 and state.dtype is torch.float32 and state.is_contiguous() and state.device.type == "cpu"
