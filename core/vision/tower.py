"""The parts of a model that see, put into its tree when the first picture comes: a text chat never pays for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from core.errors import UnsupportedModel
from core.model.blueprint import whole_tree
from core.model.language_half import Nothing
from core.model.language_model import fill_parts
from core.model.sight import HEARS
from core.sentence import sentence


def has_tower(module: Any) -> bool:
    """Whether the model that this tree is the language half of was made to see."""
    config = module.config
    shows = getattr(config, "vision_config", None) is not None and placeholder_id(config) is not None
    return shows and any(isinstance(child, Nothing) for child in module.modules())


def placeholder_id(config: Any) -> int | None:
    """The token that stands for a picture's parts in a model's input."""
    found = getattr(config, "image_token_id", None)
    found = getattr(config, "image_token_index", None) if found is None else found
    return found if isinstance(found, int) else None


def open_tower(module: Any, checkpoint: Mapping[str, Tensor]) -> None:
    """Put what sees into the tree, with its weights. Raises UnsupportedModel, ModelUnreadable, NotEnoughMemory; the
    tree is then as before."""
    whole = whole_tree(module.config, module.dtype)
    closed = dict(_stand_ins(module))
    alone = [(holder, name) for holder, name in _alone(module, whole)]
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


def _stand_ins(module: Any) -> list[tuple[str, nn.Module]]:
    found = [(path, child) for path, child in module.named_modules() if isinstance(child, Nothing)]
    return [(path, child) for path, child in found if not any(word in path for word in HEARS)]


def _alone(module: Any, whole: Any) -> list[tuple[str, str]]:
    """Single weights that were taken out beside the towers, as what stands for the end of a row of a picture."""
    return [
        (path, name)
        for path, child in module.named_modules()
        for name, value in child._parameters.items()
        if value is None and _holds(whole, path, name)
    ]


def _holds(whole: Any, path: str, name: str) -> bool:
    try:
        return whole.get_submodule(path)._parameters.get(name) is not None
    except AttributeError:  # linears of ours have another tree below them
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
