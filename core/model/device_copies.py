"""What of a model lies on a device besides rows of linears: copies that come to stay, in the originals' place."""

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
    """Copies to the device that are waited for: weights that come to stay."""

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._stream = accelerator.stream()

    def tensor(self, tensor: Tensor) -> Tensor:
        """A copy (...) of the tensor's shape on the device. Raises NotEnoughMemory, DeviceLost."""
        copy = self._accelerator.empty(tensor.shape, tensor.dtype)
        follow(self._accelerator, self._stream)
        self._accelerator.copy_async(copy, tensor.contiguous(), self._stream)
        self._stream.synchronize()
        return copy

    def rows(self, weight: HostWeight, begin: int, end: int) -> DeviceRows:
        """Rows of a weight, in the bytes that they have on the host. Raises NotEnoughMemory, DeviceLost."""
        nbytes = sum(part.nbytes for part in weight.parts(begin, end))
        buffer = self._accelerator.empty((nbytes,), torch.uint8)
        return copied_rows(self._accelerator, self._stream, weight, begin, end, buffer)


class Place(NamedTuple):
    """Where a module has a parameter or buffer, and that itself (...)."""

    holder: dict[str, Any]
    name: str
    tensor: Tensor

    @property
    def is_in_ram(self) -> bool:
        """Whether the tensor is there now, and no copy on a device."""
        return self.holder[self.name] is self.tensor


class DeviceCopies:
    """Copies on the device in some places of a module tree; `restore` puts the host's tensors back."""

    def __init__(self, places: Iterable[Place], uploads: Uploads) -> None:
        """Raises NotEnoughMemory, DeviceLost: then all is as before."""
        self._places = list(places)
        moved: dict[int, Any] = {}
        for _, _, tensor in self._places:
            if id(tensor) not in moved:
                copy = uploads.tensor(tensor.data)
                moved[id(tensor)] = nn.Parameter(copy, False) if isinstance(tensor, nn.Parameter) else copy
        # Only when all are there: the device may be lost or full in between.
        for holder, name, tensor in self._places:
            holder[name] = moved[id(tensor)]

    def restore(self) -> None:
        """Put the host's tensors back; the device may be gone."""
        for holder, name, tensor in self._places:
            holder[name] = tensor


def places_of(modules: Iterable[nn.Module]) -> list[Place]:
    """All parameters and buffers that these modules hold themselves."""
    holders = [holder for module in modules for holder in (module._parameters, module._buffers)]
    return [Place(holder, name, one) for holder in holders for name, one in holder.items() if one is not None]


class HostEmbedding(nn.Module):
    """The input table stays in RAM; only the looked-up rows travel."""

    def __init__(self, table: nn.Module, accelerator: Accelerator) -> None:
        super().__init__()
        self.table = table
        self._accelerator = accelerator

    @property
    def weight(self) -> Any:
        """The table (V, H) on the host, but that its rows come to the device."""
        return _HostRows(self.table.weight, self._accelerator)

    def forward(self, ids: Tensor) -> Tensor:
        """(1, n) -> (1, n, H), on the device."""
        return self._accelerator.to_device(self.table(ids.cpu()))


class _HostRows:
    """A tensor (V, H) on the host of which some rows are used by themselves, as one for what is no text."""

    def __init__(self, tensor: Any, accelerator: Accelerator) -> None:
        self._tensor = tensor
        self._accelerator = accelerator

    def __getitem__(self, rows: Any) -> Tensor:
        found: Tensor = self._tensor[rows]
        return self._accelerator.to_device(found)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tensor, name)


class DeviceRest:
    """Moves all non-linear parameters and buffers to the device but those `apart`; `restore` undoes it."""

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
        """Put the host's tensors back; the device may be gone."""
        self._hook.remove()
        self._copies.restore()
        self._module.set_input_embeddings(self._table)
        for name, table in self._others.items():
            put(self._module, name, table)

    def _enter(self, decoder: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Bring what stands for the text to the device: models that see have it where their first parameter is."""
        states = kwargs.get("inputs_embeds")
        return args, kwargs if states is None else kwargs | {"inputs_embeds": states.to(self._device)}
