"""The vision parts of a model, added to its tree at the first picture: a text-only chat never pays for them.

They may be on another device than the language model; their inputs and outputs are copied between the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from core.errors import UnsupportedModel
from core.model.blueprint import whole_tree
from core.model.device_copies import DeviceCopies, Place, places_of
from core.model.filling import fill_parts
from core.model.language_half import Nothing
from core.model.placement import DevicePlacement, HostPlacement
from core.model.sight import HEARS
from core.sentence import sentence


def has_tower(module: Any) -> bool:
    """Return whether the whole model of this language half can see."""
    config = module.config
    shows = getattr(config, "vision_config", None) is not None and placeholder_id(config) is not None
    return shows and any(isinstance(child, Nothing) for child in module.modules())


def placeholder_id(config: Any) -> int | None:
    """Return the id of the token that stands for a picture's parts in a model's input."""
    found = getattr(config, "image_token_id", None)
    found = getattr(config, "image_token_index", None) if found is None else found
    return found if isinstance(found, int) else None


class Tower:
    """The vision parts, opened in RAM; `parts` are the modules added to the tree."""

    def __init__(self, module: Any, checkpoint: Mapping[str, Tensor]) -> None:
        """Raises UnsupportedModel, ModelUnreadable, NotEnoughMemory; the tree is then unchanged."""
        self.parts, self._alone = open_tower(module, checkpoint)
        self._copies: list[DeviceCopies] = []
        self._device = self._home = torch.device("cpu")
        for part in self.parts:
            part.register_forward_pre_hook(self._enter, with_kwargs=True)
            part.register_forward_hook(self._leave)

    def lie(self, placement: HostPlacement | DevicePlacement, *, on_device: bool) -> None:
        """Move to the model's device or stay in RAM, for a model with this placement. Raises NotEnoughMemory,
        DeviceLost; the state is then that after `come_back`."""
        self.come_back()
        if not isinstance(placement, DevicePlacement):
            return
        try:
            # Weights outside the towers are combined with the text embeddings, so they stay on the language model's
            # device.
            self._copies.append(placement.copies([one for one in self._alone if one.is_in_ram]))
            if on_device:
                self._copies.append(placement.copies(places_of(one for part in self.parts for one in part.modules())))
        except BaseException:
            self.come_back()
            raise
        self._home = placement.device
        self._device = placement.device if on_device else torch.device("cpu")

    def come_back(self) -> None:
        """Move back to RAM; works even if the device is gone."""
        for copies in self._copies:
            copies.restore()
        self._copies.clear()
        self._device = self._home = torch.device("cpu")

    def _enter(self, part: nn.Module, args: Any, kwargs: Any) -> Any:
        return _moved((args, kwargs), self._device)

    def _leave(self, part: nn.Module, args: Any, output: Any) -> Any:
        return _moved(output, self._home)


def _moved(values: Any, device: torch.device) -> Any:
    return tree_map(lambda one: one.to(device) if isinstance(one, Tensor) else one, values)


def open_tower(module: Any, checkpoint: Mapping[str, Tensor]) -> tuple[list[nn.Module], list[Place]]:
    """Add the vision parts to the tree and fill them: modules, and weights outside of these. Raises UnsupportedModel,
    ModelUnreadable, NotEnoughMemory; the tree is then unchanged."""
    whole = whole_tree(module.config, module.dtype)
    closed = dict(_stand_ins(module))
    alone = _alone(module, whole)
    try:
        for path in closed:
            _put(module, path, _part(whole, path))
        for path, name in alone:
            module.get_submodule(path)._parameters[name] = whole.get_submodule(path)._parameters[name]
        fill_parts(module, checkpoint)
    except BaseException:
        for path, stand_in in closed.items():
            _put(module, path, stand_in)
        for path, name in alone:
            module.get_submodule(path)._parameters[name] = None
        raise
    holders = [(module.get_submodule(path)._parameters, name) for path, name in alone]
    return [module.get_submodule(path) for path in closed], [Place(*one, one[0][one[1]]) for one in holders]


def _stand_ins(module: Any) -> list[tuple[str, nn.Module]]:
    found = [(path, child) for path, child in module.named_modules() if isinstance(child, Nothing)]
    return [(path, child) for path, child in found if not any(word in path for word in HEARS)]


def _alone(module: Any, whole: Any) -> list[tuple[str, str]]:
    """Return weights outside the towers that were removed with them, such as the end-of-row embedding."""
    return [
        (path, name)
        for path, child in module.named_modules()
        for name, value in child._parameters.items()
        if value is None and _holds(whole, path, name)
    ]


def _holds(whole: Any, path: str, name: str) -> bool:
    try:
        return whole.get_submodule(path)._parameters.get(name) is not None
    except AttributeError:  # our own linears have a different subtree
        return False


def _part(whole: Any, path: str) -> nn.Module:
    part: nn.Module = whole.get_submodule(path)
    if isinstance(part, Nothing):
        raise UnsupportedModel(
            sentence("Pictures cannot be shown to a model of the kind {}.", f"{whole.config.model_type!r}"),
            "Its program for pictures needs libraries that are not here.",
            "Choose another model that sees.",
        )
    return part


def _put(module: Any, path: str, child: nn.Module) -> None:
    holder, _, name = path.rpartition(".")
    module.get_submodule(holder)._modules[name] = child
