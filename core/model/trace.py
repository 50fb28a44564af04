"""Derives the planner's specification of a model by tracing one forward pass of its meta tree, without values.

No names are hard-coded: linears share an input if they receive the same tensor, and the KV cache's layers are those
that the pass fills. Takes about 0.1 s, reads no weights and allocates no tensor memory.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from transformers.cache_utils import DynamicCache
from transformers.pytorch_utils import Conv1D

from core.kernels.packed_width import packed_width
from core.layers.kv_cache import cache_argument, is_packable
from core.layers.latent_attention import EXPANDING, sizes_of
from core.layers.moe import fused_names
from core.model.blueprint import cannot_be_planned, cannot_run, context_limit, decoder_layers
from core.model.heads import with_heads
from core.model.language_half import text_config
from core.model.pairs import PairTrace, Traced
from core.model.sight import sight_bytes
from core.model.tables import other_tables
from core.spec import KvLayer, LinearSpec, ModelSpec

# Enough tokens to reach every branch; figures per token are divided by it.
TRACED_TOKENS = 4
ACTIVE_EXPERTS = ("num_experts_per_tok", "num_experts_per_token", "moe_top_k", "moe_topk", "top_k_experts")
STORED: dict[torch.dtype, Literal["bf16", "fp16", "fp32"]] = {
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float32: "fp32",
}


Pass = Callable[[Any, DynamicCache], None]

SIZE_BY_VALUES = "SymIntArrayRef expected to contain only concrete integers"
"""torch's complaint about a size that depends on values, from operations that take no symbolic one."""


def survey(module: Any, name: str = "") -> ModelSpec:
    """Return the specification of a causal language model on the meta device."""
    trace = _traced(module)
    linears = with_heads(module, with_pairs(trace.pairs, tuple(_linears(module, trace))), trace.cache)
    table = module.get_input_embeddings().weight
    head = _head_name(module, linears)
    tied = bool(head) and module.get_submodule(head).weight is table
    looked_up = sum(p.numel() for other in other_tables(module).values() for p in other.parameters())
    counted = sum(linear.parameters for linear in linears) + table.numel() + looked_up
    everything = sum(p.numel() for p in module.parameters())  # tied weights once
    if tied:
        counted -= table.numel()
    return ModelSpec(
        name=name,
        architecture=type(module).__name__,
        layers=text_config(module.config).num_hidden_layers,
        hidden=text_config(module.config).hidden_size,
        vocab=text_config(module.config).vocab_size,
        context_limit=context_limit(module.config),
        linears=linears,
        kv_layers=tuple(_kv_layers(trace.cache)),
        resident_bytes=max(everything - counted, 0) * module.dtype.itemsize,
        embedding_bytes=table.numel() * module.dtype.itemsize,
        lookup_bytes=looked_up * module.dtype.itemsize,
        head=head,
        head_tied=tied,
        stored_dtype=STORED[module.dtype],
        parameters=everything,
        sight_bytes=sight_bytes(module),
        widens_states=any(map(_widens_states, module.modules())),
    )


def is_linear(module: nn.Module) -> bool:
    """Return whether a module multiplies by a weight that may be split: a linear, or GPT-2's transposed Conv1D."""
    # A subclass with its own forward computes something else (routers, grouped products), except Falcon's, which only
    # adds the bias separately.
    kind = type(module)
    plain = isinstance(module, nn.Linear) and kind.forward is nn.Linear.forward
    return plain or kind is Conv1D or kind.__name__ == "FalconLinear"


def _widens_states(module: nn.Module) -> bool:
    """Return whether a module computes attention for which torch's own has no way: with soft caps or sinks."""
    capped = getattr(module, "attn_logit_softcapping", None) is not None
    return capped or getattr(module, "sinks", None) is not None


def is_fused(module: nn.Module) -> bool:
    """Return whether a module holds all experts of a layer in two parameters."""
    return hasattr(module, "has_gate")


class _Trace:
    """One forward pass without values: linears and fused experts in order, with their inputs, and the filled cache.
    `pairs` is empty unless linears' outputs were followed."""

    def __init__(self, module: Any, run: Pass, *, followed: Collection[str] = ()) -> None:
        self.inputs: dict[str, Tensor | None] = {}  # keeps the tensors alive, so that ids are not reused
        self.cache = DynamicCache(config=module.config)
        outputs = PairTrace({name: module.get_submodule(name) for name in followed})
        # After the hooks that follow outputs, which give the linears they know tensors.
        handles = [
            child.register_forward_pre_hook(self._recorder(name))
            for name, child in module.named_modules()
            if is_linear(child) or is_fused(child)
        ]
        try:
            with _left_as_it_is(module), torch.no_grad():
                run(module, self.cache)
        finally:
            outputs.remove()
            for handle in handles:
                handle.remove()
        self.pairs = outputs.pairs

    def _recorder(self, name: str) -> Any:
        def record(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            given = next(iter(inputs), None)
            self.inputs.setdefault(name, given.tensor if isinstance(given, Traced) else given)

        return record


def _traced(module: Any) -> _Trace:
    """Return a trace in the fastest way that the model allows. Raises UnsupportedModel."""
    layers = _layer_numbers(module)
    followed = [name for name, child in module.named_modules() if is_linear(child) and id(child) in layers]
    for run in (_on_meta, _on_fakes):
        # Masks that read values fail on the meta device, and some models reject stand-ins for outputs.
        with suppress(Exception):
            return _Trace(module, run, followed=followed)
    return _Trace(module, _on_fakes)


def _on_meta(module: Any, cache: DynamicCache) -> None:
    """Run one pass on the meta device."""
    _call(module, cache, torch.device("meta"))


def _on_fakes(module: Any, cache: DynamicCache) -> None:
    """Run one pass on fake tensors of the CPU, from which masks may read values. Raises UnsupportedModel."""
    # Imports sympy, which a start with known models avoids.
    from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode, ShapeEnv

    with FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True):
        try:
            _call(module, cache, torch.device("cpu"))
        # Each architecture fails in its own way at invalid settings, or without a picture.
        except Exception as error:
            if isinstance(error, GuardOnDataDependentSymNode) or SIZE_BY_VALUES in str(error):
                raise cannot_be_planned(module) from error
            raise cannot_run(module, error) from error


def _call(module: Any, cache: DynamicCache, device: torch.device) -> None:
    named = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    values = {name: torch.empty(value.shape, dtype=value.dtype, device=device) for name, value in named}
    options = {
        "input_ids": torch.zeros(1, TRACED_TOKENS, dtype=torch.long, device=device),
        cache_argument(module): cache,
        "use_cache": True,
    }
    functional_call(module, values, (), options, tie_weights=False)


def with_pairs(pairs: Mapping[str, frozenset[str]], linears: Sequence[LinearSpec]) -> tuple[LinearSpec, ...]:
    """Mark the linears that read nothing but a whole group, and have as many columns as each of its linears has rows.
    `pairs`: what each linear reads, as in `PairTrace`."""
    named, groups = {one.name: one for one in linears}, dict[int, set[str]]()
    for one in linears:
        groups.setdefault(one.group, set()).add(one.name)

    def after(linear: LinearSpec) -> int:
        sources = pairs.get(linear.name, frozenset())
        group = next((named[name].group for name in sources), -1)
        alike = all(named[name].rows == linear.columns for name in sources)
        return group if group >= 0 and alike and groups[group] == set(sources) else -1

    return tuple(replace(linear, after=after(linear)) for linear in linears)


@contextmanager
def _left_as_it_is(module: nn.Module) -> Iterator[None]:
    """Context: restore what a pass caches for the next one (RoPE frequencies), which would be fake tensors here."""
    before = [(child, dict(vars(child)), dict(child._buffers)) for child in module.modules()]
    try:
        yield
    finally:
        for child, attributes, buffers in before:
            vars(child).clear()
            vars(child).update(attributes)
            child._buffers.clear()
            child._buffers.update(buffers)


def _linears(module: Any, trace: _Trace) -> Iterator[LinearSpec]:
    """Yield linears and fused experts in the order of the pass, then those that it did not reach."""
    layer_of = _layer_numbers(module)
    groups: dict[int | str, int] = {}
    children = {name: child for name, child in module.named_modules() if is_linear(child) or is_fused(child)}
    for name in dict.fromkeys((*trace.inputs, *children)):
        child, given = children[name], trace.inputs.get(name)
        layer = layer_of.get(id(child), -1)
        if is_fused(child):
            yield from _experts(module, name, child, layer, groups)
            continue
        group = groups.setdefault(name if given is None else id(given), len(groups))
        rows, columns = weight_shape(child)
        heads, keys = _latent_keys(module, name)
        bias = getattr(child, "bias", None) is not None
        yield LinearSpec(name, rows, columns, group, layer, has_bias=bias, key_heads=heads, key_rows=keys)


def _layer_numbers(module: Any) -> dict[int, int]:
    """Return the number of the decoder layer that each module lies in, by id."""
    return {id(child): i for i, layer in enumerate(decoder_layers(module)) for child in layer.modules()}


def _latent_keys(module: Any, name: str) -> tuple[int, int]:
    """Return the heads, and the rows of each that make keys, of a linear that expands latents; otherwise zeros."""
    path, _, leaf = name.rpartition(".")
    sizes = sizes_of(module.get_submodule(path)) if leaf == EXPANDING else None
    return (0, 0) if sizes is None else (sizes.heads, sizes.plain)


def _experts(module: Any, path: str, child: Any, layer: int, groups: dict[int | str, int]) -> Iterator[LinearSpec]:
    """Yield fused experts: two three-dimensional parameters (experts, rows, columns), or transposed."""
    text = text_config(module.config)
    active = next((value for name in ACTIVE_EXPERTS if isinstance(value := getattr(text, name, None), int)), 1)
    for leaf in fused_names(child):
        name = f"{path}.{leaf}"
        group = groups.setdefault(name, len(groups))
        experts, rows, columns = getattr(child, leaf).shape
        if child.is_transposed:
            rows, columns = columns, rows
        bias = getattr(child, f"{leaf}_bias", None) is not None
        yield LinearSpec(name, rows, columns, group, layer, experts, min(active, experts), bias)


def weight_shape(child: Any) -> tuple[int, int]:
    """Return (outputs, inputs) of a linear or Conv1D."""
    first, second = child.weight.shape
    return (second, first) if isinstance(child, Conv1D) else (first, second)


def _head_name(module: Any, linears: tuple[LinearSpec, ...]) -> str:
    head = module.get_output_embeddings()
    return next((linear.name for linear in linears if module.get_submodule(_owner(linear)) is head), "")


def _owner(linear: LinearSpec) -> str:
    return linear.name if linear.experts is None else linear.name.rpartition(".")[0]


def _kv_layers(cache: Any) -> Iterator[KvLayer]:
    for index, layer in enumerate(cache.layers):
        keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
        per_token = sum(_tensor_bytes(t) for t in (keys, values) if t is not None) // TRACED_TOKENS
        states = [*getattr(layer, "conv_states", {}).values(), *getattr(layer, "recurrent_states", {}).values()]
        fixed = sum(_tensor_bytes(state) for state in states if state is not None)
        if per_token or fixed:
            window = cast(int, getattr(layer, "sliding_window", 0) or 0)
            yield KvLayer(index, per_token, window, fixed, _packed_bytes(layer))


def _packed_bytes(layer: Any) -> int:
    """Return the bytes of one token's keys and values in 8 bits; 0 if they cannot be packed."""
    if not is_packable(layer):
        return 0
    return sum(int(one.shape[1]) * packed_width(int(one.shape[3])) for one in (layer.keys, layer.values))


def _tensor_bytes(tensor: Tensor) -> int:
    return int(tensor.numel()) * tensor.dtype.itemsize
