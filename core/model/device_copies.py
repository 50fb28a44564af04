"""Tensors of a model on a device other than the rows of linears: lasting copies that replace the originals."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from core.accelerators.base import Accelerator
from core.model.tables import other_tables, put
from core.offload.hetero_linear import HeteroLinear
from core.offload.host_weight import DeviceRows, HostWeight
from core.offload.parameter_manager import copied_rows, follow


class Uploads:
    """Blocking copies to the device, for weights that stay there."""

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._stream = accelerator.stream()

    def tensor(self, tensor: Tensor) -> Tensor:
        """Copy a tensor (...) to the device. Raises NotEnoughMemory, DeviceLost."""
        copy = self._accelerator.empty(tensor.shape, tensor.dtype)
        follow(self._accelerator, self._stream)
        self._accelerator.copy_async(copy, tensor.contiguous(), self._stream)
        self._stream.synchronize()
        return copy

    def rows(self, weight: HostWeight, begin: int, end: int) -> DeviceRows:
        """Copy rows of a weight to the device, in the host's byte format. Raises NotEnoughMemory, DeviceLost."""
        nbytes = sum(part.nbytes for part in weight.parts(begin, end))
        buffer = self._accelerator.empty((nbytes,), torch.uint8)
        return copied_rows(self._accelerator, self._stream, weight, begin, end, buffer)


class InPlace:
    """Uses rows where they lie in RAM, on a device that shares it; what is no range of bytes there is copied."""

    def __init__(self, accelerator: Accelerator, uploads: Uploads) -> None:
        self._accelerator = accelerator
        self._uploads = uploads

    def rows(self, weight: HostWeight, begin: int, end: int) -> DeviceRows:
        """Return rows of a weight as ones of the device. Raises NotEnoughMemory, DeviceLost."""
        shared = weight.in_place(self._accelerator, begin, end)
        return self._uploads.rows(weight, begin, end) if shared is None else shared


class Place(NamedTuple):
    """A module's slot for a parameter or buffer, and the host tensor (...) in it."""

    holder: dict[str, Any]
    name: str
    tensor: Tensor

    @property
    def is_in_ram(self) -> bool:
        """Whether the slot holds the host tensor now, not a device copy."""
        return self.holder[self.name] is self.tensor


class DeviceCopies:
    """Device copies in some places of a module tree; `restore` puts the host tensors back."""

    def __init__(self, places: Iterable[Place], uploads: Uploads) -> None:
        """Raises NotEnoughMemory, DeviceLost; then nothing has changed."""
        self._places = list(places)
        moved: dict[int, Any] = {}
        for _, _, tensor in self._places:
            if id(tensor) not in moved:
                copy = uploads.tensor(tensor.data)
                moved[id(tensor)] = nn.Parameter(copy, False) if isinstance(tensor, nn.Parameter) else copy
        # Swap only when all copies exist: the device may be lost or full in between.
        for holder, name, tensor in self._places:
            holder[name] = moved[id(tensor)]

    def restore(self) -> None:
        """Put the host tensors back; works even if the device is gone."""
        for holder, name, tensor in self._places:
            holder[name] = tensor


def places_of(modules: Iterable[nn.Module]) -> list[Place]:
    """Return all parameters and buffers that these modules hold directly."""
    holders = [holder for module in modules for holder in (module._parameters, module._buffers)]
    return [Place(holder, name, one) for holder in holders for name, one in holder.items() if one is not None]


class HostEmbedding(nn.Module):
    """An input table that stays in RAM; only the rows that are looked up are copied to the device."""

    def __init__(self, table: nn.Module, accelerator: Accelerator) -> None:
        super().__init__()
        self.table = table
        self._accelerator = accelerator

    @property
    def weight(self) -> Any:
        """The table (V, H) on the host, whose rows are copied to the device when indexed."""
        return _HostRows(self.table.weight, self._accelerator)

    def forward(self, ids: Tensor) -> Tensor:
        """Look up ids (1, n); return (1, n, H) on the device."""
        return self._accelerator.to_device(self.table(ids.cpu()))


class _HostRows:
    """A host tensor (V, H) whose rows are used directly, such as those of placeholder tokens."""

    def __init__(self, tensor: Any, accelerator: Accelerator) -> None:
        self._tensor = tensor
        self._accelerator = accelerator

    def __getitem__(self, rows: Any) -> Tensor:
        found: Tensor = self._tensor[rows]
        return self._accelerator.to_device(found)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tensor, name)


class DeviceRest:
    """Moves all non-linear parameters and buffers except `apart` to the device; `restore` undoes it."""

    def __init__(
        self, module: Any, accelerator: Accelerator, uploads: Uploads, apart: Collection[nn.Module] = ()
    ) -> None:
        self._module = module
        self._table, self._others = module.get_input_embeddings(), other_tables(module)
        away = {part for one in (self._table, *self._others.values(), *apart) for part in one.modules()}
        rest = [one for one in module.modules() if one not in away and not isinstance(one, HeteroLinear)]
        self._copies = DeviceCopies(places_of(rest), uploads)
        module.set_input_embeddings(HostEmbedding(self._table, accelerator))
        for name, table in self._others.items():
            put(module, name, HostEmbedding(table, accelerator))
        self._device = accelerator.device
        self._hook = module.get_decoder().register_forward_pre_hook(self._enter, with_kwargs=True)

    def restore(self) -> None:
        """Put the host tensors back; works even if the device is gone."""
        self._hook.remove()
        self._copies.restore()
        self._module.set_input_embeddings(self._table)
        for name, table in self._others.items():
            put(self._module, name, table)

    def _enter(self, decoder: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Move the input embeddings to the device: vision models return them where their first parameter is."""
        states = kwargs.get("inputs_embeds")
        return args, kwargs if states is None else kwargs | {"inputs_embeds": states.to(self._device)}
