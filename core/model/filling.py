"""Fills a model's meta tree with a checkpoint's tensors, and computes the buffers that no checkpoint holds."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from core.errors import ModelUnreadable, NotEnoughMemory, UnsupportedModel
from core.model.file_table import FileTable
from core.model.postponed import Postponed
from core.model.tables import put
from core.model.trace import STORED
from core.model.weight_names import WeightNames, check_unasked
from core.sentence import sentence
from core.weights.gguf.weights import GgufWeights


def fill(module: Any, checkpoint: Mapping[str, Tensor], postponed: Postponed | None = None) -> Iterator[float]:
    """Put the checkpoint's tensors into the meta tree, without a copy if type and layout match.

    Weights taken by `postponed` are left out. Yields the fraction done after each target. Raises ModelUnreadable if
    tensors are missing, of wrong shape, or unexpected.
    """
    names = WeightNames(module, own_names=isinstance(checkpoint, GgufWeights))
    finish, later = _Finish(module, names.expected), postponed or Postponed()
    work, unasked = names.transforms(checkpoint)
    check_unasked(module, checkpoint, unasked)
    later.take(work, checkpoint, finish)
    for done, (target, transform) in enumerate(work.items(), 1):
        for name, tensor in _converted(transform, target, module).items():
            _assign(module, name, finish(name, tensor))
        yield done / len(work)
    _complete(module, later)
    if isinstance(checkpoint, GgufWeights):
        for table in checkpoint.tables:
            name = table.removesuffix(".weight")
            put(module, name, FileTable(module.get_submodule(name), partial(checkpoint.rows, table)))


def fill_parts(module: Any, checkpoint: Mapping[str, Tensor]) -> None:
    """Fill the meta tensors of a tree that is in use otherwise. Raises ModelUnreadable, NotEnoughMemory."""
    empty = {name for name, value in module.state_dict().items() if value.is_meta}
    names = WeightNames(module)
    finish = _Finish(module, names.expected)
    wanted = {source: checkpoint[source] for source in checkpoint if names.target(source)[0] in empty}
    for target, transform in names.transforms(wanted)[0].items():
        for name, tensor in _converted(transform, target, module).items():
            _assign(module, name, finish(name, tensor))
            empty.discard(name)
    _check_complete([name for name, _ in module.named_parameters() if name in empty])
    _compute_buffers(module)


def ram_failure(error: BaseException) -> NotEnoughMemory | None:
    """Return the failure to report if `error` says that RAM could not be allocated; otherwise None."""
    # torch's message differs by system, but names the allocator.
    by_torch = isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    if not by_torch and not isinstance(error, MemoryError):
        return None
    return NotEnoughMemory(
        "This computer's memory is full.", "", "Close other programs, or choose a shorter context or a smaller model."
    )


class _Finish:
    """Checks a target's tensor and casts it: to the model's dtype, except for parts that transformers keeps in fp32."""

    def __init__(self, module: Any, expected: Mapping[str, Tensor]) -> None:
        self._expected = expected
        self._dtype = module.dtype
        plan: dict[str, torch.dtype] = module._get_dtype_plan(module.dtype)
        self._exceptions = [(re.compile(rf"(^|\.){re.escape(part)}($|\.)"), dtype) for part, dtype in plan.items()]

    def __call__(self, name: str, tensor: Tensor, length: int = 0) -> Tensor:
        """Return the tensor (...), checked and cast. `length`: see `_check_fits`."""
        _check_fits(name, tensor, self._expected, length)
        return tensor.to(self._dtype_of(name)) if tensor.is_floating_point() else tensor

    def _dtype_of(self, name: str) -> torch.dtype:
        return next((dtype for pattern, dtype in self._exceptions if pattern.search(name)), self._dtype)


def _converted(transform: Any, target: str, module: Any) -> dict[str, Tensor]:
    """Run transformers' conversion of one target: a renaming, or parts merged into one (experts, q/k/v)."""
    try:
        made = dict(transform.convert(target, model=module, config=module.config))
    except RuntimeError as error:
        if (failure := ram_failure(error)) is not None:
            raise failure from error
        raise ModelUnreadable(
            sentence("The parts of the weight {} do not fit together.", target), "", "Download the model again."
        ) from error
    return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}


def _complete(module: Any, later: Postponed) -> None:
    """Tie shared weights, compute buffers that no checkpoint holds, and check that no weight is missing."""
    missing = {name for name, value in module.state_dict().items() if value.is_meta and name not in later}
    module.tie_weights(missing_keys=missing, recompute_mapping=False)
    _check_complete([name for name, value in module.named_parameters() if value.is_meta and name not in later])
    _compute_buffers(module)


def _check_complete(empty: Sequence[str]) -> None:
    if empty:
        raise ModelUnreadable(
            sentence("{} of the model's tensors are missing.", len(empty)), sentence("The first one is {}.", empty[0]),
            "Download the model again.",
        )  # fmt: skip


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
