"""The language model: transformers' module tree filled with a checkpoint's weights, and its forward pass."""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from core.errors import HeteGenError, ModelFailed, ModelUnreadable, NotEnoughMemory, UnsupportedModel
from core.events import Stop, never
from core.layers.fused_forward import one_by_one
from core.layers.kv_cache import KVCache
from core.layers.layer_list import keep_lists
from core.layers.rotary import stay_in_thread
from core.model.blueprint import cache_argument, decoder_layers, reason
from core.model.file_table import FileTable
from core.model.pictures import Vision
from core.model.placement import DevicePlacement, HostPlacement
from core.model.postponed import Postponed
from core.model.straight_pass import StraightPass
from core.model.tables import put
from core.model.trace import STORED
from core.model.weight_names import WeightNames, check_unasked
from core.sentence import sentence
from core.spec import KvFormat
from core.startup.torch_threads import one_thread
from core.weights.gguf.weights import GgufWeights

log = logging.getLogger(__name__)


class ForwardStopped(Exception):
    """Raised from a forward pass between two layers when `stop` returns True."""


FIRST, REHEARSED, SHORT = (1, 2, 3, 4), ((5,), (6, 7, 8)), 16
"""Ids that a rehearsal reads first, those that it reads in both ways, and the length of its KV cache."""

Listener = Callable[[Sequence[int], Tensor], None]
"""Called after a pass with all ids in the cache, and the last norm's output (n, H) for the n ids of the pass."""


class LanguageModel:
    """Computes logits from ids and keeps the KV cache consistent on every failure. `on_states` is called after each
    pass.

    `whole_head`: compute all logits with the output head itself, even if there is a coarse copy of it.
    """

    def __init__(self, module: Any, placement: HostPlacement | DevicePlacement | None = None) -> None:
        """`module`: a filled causal language model of transformers; `placement`: has installed our linears in it."""
        self.module = module
        self.placement = placement or HostPlacement(module, {})
        self.vision: Vision | None = None
        self.on_states: Listener | None = None
        self.whole_head = False
        self._states: Tensor | None = None
        self._stop: Stop = never
        self._vocabulary = module.get_input_embeddings().weight.shape[0]
        stay_in_thread(module)
        keep_lists(module)
        parameters = inspect.signature(module.forward).parameters
        self._keeps_last = "logits_to_keep" in parameters
        self._takes_positions = "position_ids" in parameters and not _counts_from_padding(module)
        self._cache_argument = cache_argument(module)
        for layer in decoder_layers(module):
            layer.register_forward_pre_hook(self._look_at_stop)
        module.base_model.register_forward_hook(self._keep_states)

    @torch.inference_mode()
    def forward(
        self, ids: Sequence[int], cache: KVCache, stop: Stop = never, keep: int = 1, divide_for: int = 1
    ) -> Tensor:
        """Append `ids` (n,) to the cache; return the logits (keep, vocabulary) of the last `keep` of them in fp32.

        Negative ids are those of a picture: at most one, and then all of it. Rows are divided between devices as for
        `divide_for` ids if there are fewer: prefetched rows then stay useful while the number of ids varies between
        passes. Raises ForwardStopped, NotEnoughMemory, ModelFailed; the cache is then as before the pass, or as at the
        last mark.
        """
        if ids and max(ids) >= self._vocabulary:
            raise _unknown_id(max(ids), self._vocabulary)
        known = len(cache.tokens)
        self.placement.begin_pass(max(len(ids), divide_for), whole_head=self.whole_head)
        try:
            with self.placement.failures(), self._layers_apart(ids):
                # Device errors surface here at the latest, where the results are synchronised.
                logits = _widened(self._logits(ids, cache, stop, keep)[0, -keep:].cpu())
                states = None if self._states is None else self._states[0].cpu()
        except BaseException as error:
            self._undo(cache, known)
            if (failure := _as_failure(error)) is None:
                raise
            raise failure from error
        finally:
            self._states = None
            self.placement.end_pass()
        cache.tokens.extend(ids)
        if self.on_states is not None and states is not None:
            self.on_states(cache.tokens, states)
        return logits

    def rehearse(self, format: KvFormat) -> None:
        """Find out whether passes over few tokens may go straight: with a KV cache of this format, they must give the
        same logits as ordinary passes. Raises what `forward` does; then they do not go straight."""
        straight, cache = self.placement.straight, KVCache(self.module.config, SHORT, format=format)
        if straight is None or self._does_more or not cache.can_rewind:
            return
        self.forward(FIRST, cache)
        straight.proven = all(self._agrees(straight, ids, cache) for ids in REHEARSED)
        log.info("Passes over few tokens go straight: %s", straight.proven)

    def _agrees(self, straight: StraightPass, ids: Sequence[int], cache: KVCache) -> bool:
        """Return whether the straight pass gives the logits of the ordinary one, bit for bit."""

        def logits() -> Tensor:
            found = self.forward(ids, cache, keep=(len(ids) + 1) // 2)
            cache.rewind(len(FIRST))
            return found

        logits()  # shows that all layers may be one call
        expected = logits()
        straight.proven = True
        try:
            return torch.equal(logits(), expected)
        finally:
            straight.proven = False

    @property
    def _does_more(self) -> bool:
        """Whether a pass may have to do more than compute logits from ids."""
        return self.on_states is not None or self.vision is not None

    def _straight(self, ids: Sequence[int], cache: KVCache, stop: Stop, keep: int) -> Tensor | None:
        """Return the logits (1, keep, vocabulary) without transformers' forward; None where it may do more."""
        straight = self.placement.straight
        if straight is None or not straight.proven or self._does_more:
            return None
        if stop():
            raise ForwardStopped
        return straight.logits(ids, cache, keep)

    def _logits(self, ids: Sequence[int], cache: KVCache, stop: Stop, keep: int) -> Tensor:
        """(1, n, vocabulary) on the compute device, for at least the last `keep` ids."""

        def ordinary() -> Tensor:
            self._stop = stop
            try:
                logits: Tensor = self.module(**self._inputs(ids, cache, keep)).logits
            finally:
                self._stop = never  # a capture must not be interrupted
            return logits

        if (found := self._straight(ids, cache, stop, keep)) is not None:
            return found
        captures = self.placement.captures
        if captures is None:
            return ordinary()
        return captures.logits(ids, cache, ordinary, whole=keep == len(ids) and self.on_states is None)

    def mark(self, cache: KVCache, *, briefly: bool = False) -> None:
        """Save the cache's current state so that it can be restored: see `KVCache.mark`."""
        with self.placement.failures():
            if isinstance(self.placement, DevicePlacement):
                self.placement.accelerator.synchronize()
            cache.mark(briefly=briefly)

    def _inputs(self, ids: Sequence[int], cache: KVCache, keep: int) -> dict[str, Any]:
        inputs = {
            "input_ids": torch.tensor([list(ids)], device=self.placement.device),
            self._cache_argument: cache,
            "use_cache": True,
        }
        if self._keeps_last:
            inputs["logits_to_keep"] = keep
        if self._takes_positions:  # some families (Bamba) would count from 0 in every pass
            start = len(cache.tokens)
            inputs["position_ids"] = torch.arange(start, start + len(ids), device=self.placement.device).unsqueeze(0)
        if self.vision is not None and self.vision.concerns(cache.tokens, ids):
            inputs |= self.vision.inputs(cache.tokens, ids, self.placement.device)
        return inputs

    def _layers_apart(self, ids: Sequence[int]) -> AbstractContextManager[None]:
        """Run layers one by one for a pass with a picture: some families add its features between layers."""
        return one_by_one(self.placement.runs) if min(ids, default=0) < 0 else nullcontext()

    def _undo(self, cache: KVCache, length: int) -> None:
        # Some layers already hold the new tokens: cut each back to what all of them hold.
        cache.restore(length)

    def _keep_states(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if self.on_states is not None:
            self._states = output[0]

    def _look_at_stop(self, module: nn.Module, inputs: Any) -> None:
        if self._stop():
            raise ForwardStopped


def fill(module: Any, checkpoint: Mapping[str, Tensor], postponed: Postponed | None = None) -> Iterator[float]:
    """Put the checkpoint's tensors into the meta tree, without a copy if type and layout match.

    Weights taken by `postponed` are left out. Yields the fraction done after each target. Raises ModelUnreadable if
    tensors are missing, of wrong shape, or unexpected.
    """
    names = WeightNames(module, own_names=isinstance(checkpoint, GgufWeights))
    dtypes, later = _DtypePlan(module), postponed or Postponed()

    def finish(name: str, tensor: Tensor, length: int = 0) -> Tensor:
        _check_fits(name, tensor, names.expected, length)
        return tensor.to(dtypes.of(name)) if tensor.is_floating_point() else tensor

    work, unasked = names.transforms(checkpoint)
    check_unasked(module, checkpoint, unasked)
    later.take(work, checkpoint, finish)
    for done, (target, transform) in enumerate(work.items(), 1):
        for name, value in _converted(transform, target, module).items():
            _assign(module, name, finish(name, value[0] if isinstance(value, list) else value))
        yield done / len(work)
    _finish(module, later)
    if isinstance(checkpoint, GgufWeights):
        for table in checkpoint.tables:
            name = table.removesuffix(".weight")
            put(module, name, FileTable(module.get_submodule(name), partial(checkpoint.rows, table)))


def fill_parts(module: Any, checkpoint: Mapping[str, Tensor]) -> None:
    """Fill the meta tensors of a tree that is in use otherwise. Raises ModelUnreadable, NotEnoughMemory."""
    empty = {name for name, value in module.state_dict().items() if value.is_meta}
    names, dtypes = WeightNames(module), _DtypePlan(module)
    wanted = {source: checkpoint[source] for source in checkpoint if names.target(source)[0] in empty}
    for target, transform in names.transforms(wanted)[0].items():
        for name, value in _converted(transform, target, module).items():
            tensor = value[0] if isinstance(value, list) else value
            _check_fits(name, tensor, names.expected)
            _assign(module, name, tensor.to(dtypes.of(name)) if tensor.is_floating_point() else tensor)
            empty.discard(name)
    _check_complete([name for name, _ in module.named_parameters() if name in empty])
    _compute_buffers(module)


def _check_complete(empty: Sequence[str]) -> None:
    if empty:
        raise ModelUnreadable(
            sentence("{} of the model's tensors are missing.", len(empty)), sentence("The first one is {}.", empty[0]),
            "Download the model again.",
        )  # fmt: skip


def _converted(transform: Any, target: str, module: Any) -> dict[str, Any]:
    """Run transformers' conversion of one target: a renaming, or parts merged into one (experts, q/k/v)."""
    try:
        return dict(transform.convert(target, model=module, config=module.config))
    except RuntimeError as error:
        if _is_no_memory(error):
            raise _no_memory() from error
        raise ModelUnreadable(
            sentence("The parts of the weight {} do not fit together.", target), "", "Download the model again."
        ) from error


def _finish(module: Any, later: Postponed) -> None:
    """Tie shared weights, compute buffers that no checkpoint holds, and check that no weight is missing."""
    missing = {name for name, value in module.state_dict().items() if value.is_meta and name not in later}
    module.tie_weights(missing_keys=missing, recompute_mapping=False)
    empty = [name for name, value in module.named_parameters() if value.is_meta and name not in later]
    _check_complete(empty)
    _compute_buffers(module)


def _compute_buffers(module: Any) -> None:
    """Fill the buffers that no checkpoint holds (RoPE frequencies, masks) by transformers' initialisation."""
    for value in (*module.parameters(), *module.buffers()):
        value._is_hf_initialized = True
    computed = [name for name, value in module.named_buffers() if value.is_meta]
    for name in computed:
        _assign(module, name, _not_yet(module.get_buffer(name)))
    # Only modules with such buffers are initialised: others might write to the read-only mapping.
    for path, child in module.named_modules():
        child._is_hf_initialized = not any(name.startswith(f"{path}." if path else "") for name in computed)
    module.initialize_weights()
    if any(value.is_floating_point() and value.isnan().any() for value in map(module.get_buffer, computed)):
        raise UnsupportedModel(
            sentence("A model of the kind {} cannot be run here.", f"{module.config.model_type!r}"),
            "Some of its values are in no file and are not computed either.",
            "Choose a model of another architecture.",
        )


def _not_yet(buffer: Tensor) -> Tensor:
    """Return memory for a buffer, filled with NaN if floating, which shows if nothing is computed into it."""
    empty = torch.empty_like(buffer, device="cpu")
    return empty.fill_(torch.nan) if empty.is_floating_point() else empty.zero_()


class _DtypePlan:
    """The dtype of each tensor: the model's, except for parts that transformers keeps in fp32."""

    def __init__(self, module: Any) -> None:
        self._dtype = module.dtype
        plan: dict[str, torch.dtype] = module._get_dtype_plan(module.dtype)
        self._exceptions = [(re.compile(rf"(^|\.){re.escape(part)}($|\.)"), dtype) for part, dtype in plan.items()]

    def of(self, name: str) -> torch.dtype:
        return next((dtype for pattern, dtype in self._exceptions if pattern.search(name)), self._dtype)


def _check_fits(name: str, tensor: Tensor, expected: Mapping[str, Tensor], length: int = 0) -> None:
    """Check a tensor's shape and type. `length`: the first dimension of the whole tensor if this is a part of it."""
    wanted = expected.get(name)
    if wanted is None:
        return
    shape = (length, *tensor.shape[1:]) if length else tuple(tensor.shape)
    if shape != tuple(wanted.shape):
        raise ModelUnreadable(
            sentence("The weight {} has the wrong shape.", name),
            sentence("It is {}, and config.json asks for {}.", shape, tuple(wanted.shape)),
            "Download the model again.",
        )
    if wanted.is_floating_point() and (tensor.dtype not in STORED and tensor.dtype != torch.float64):
        raise ModelUnreadable(
            sentence("The weight {} is no floating-point number.", name),
            sentence("It is stored as {}.", str(tensor.dtype).removeprefix("torch.")),
            "Choose the original version of the model.",
        )


def _assign(module: nn.Module, name: str, tensor: Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path)
    if leaf in owner._buffers:
        owner._buffers[leaf] = tensor
    else:
        owner._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)


def _counts_from_padding(module: nn.Module) -> bool:
    """Return whether positions start after the padding token's id and the model computes them itself (Kosmos-2)."""
    return any(
        hasattr(child, "create_position_ids_from_input_ids") and hasattr(child, "make_weights")
        for child in module.modules()
    )


def _widened(logits: Tensor) -> Tensor:
    """Convert logits (n, vocabulary) to fp32."""
    with one_thread():
        return logits.float()


def _unknown_id(id: int, rows: int) -> ModelUnreadable:
    return ModelUnreadable(
        "The tokenizer and the weights do not belong together.",
        sentence("The tokenizer gives the id {}, and the weights know {} ids.", f"{id:,}", f"{rows:,}"),
        "Download the model again.",
    )


def _is_no_memory(error: BaseException) -> bool:
    """Return whether RAM allocation failed: torch's message differs by system, but names the allocator."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error))


def _as_failure(error: BaseException) -> HeteGenError | None:
    """Return the failure to report for an exception of a forward pass; None if it should propagate unchanged."""
    if _is_no_memory(error):
        return _no_memory()
    if isinstance(error, HeteGenError | ForwardStopped) or not isinstance(error, Exception):
        return None
    # Each architecture is a program of its own and fails in its own way.
    log.error("The model's forward pass failed", exc_info=error)
    return ModelFailed(
        "The model failed while it computed the reply.",
        sentence("Its own program says: {}.", reason(error)),
        "Send the message again; if it fails again, choose another model.",
    )


def _no_memory() -> NotEnoughMemory:
    return NotEnoughMemory(
        "This computer's memory is full.", "", "Close other programs, or choose a shorter context or a smaller model."
    )
