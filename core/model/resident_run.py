"""Consecutive decoder layers on the card, in a model of which other parts are not: replayed as one graph.

Modules inside of these layers may be divided or choose experts (usually MLPs). They are gaps: the run is captured as
graphs from one to the next, and they are called in between as in any pass.

The last layer of a run computes all of them (`core.layers.deferral`). What the layers are given is collected meanwhile:
tensors become inputs of the captured piece, everything else must stay equal. The mask is the exception: its size grows
with every token, so that captured layers get the one of their stretch.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from core.accelerators.graph import Leave
from core.layers.deferral import Deferral
from core.layers.kv_cache import KVCache
from core.layers.kv_stretch import stretch_of
from core.model.captured_run import CapturedRun, Gap, GraphRoom, Piece

MASK = "attention_mask"


class ResidentRun:
    """The layers of one run, whose forwards, and those of its gaps, are replaced until `remove`."""

    def __init__(
        self, layers: Mapping[int, nn.Module], gaps: Collection[nn.Module], device: torch.device, room: GraphRoom
    ) -> None:
        """`layers`: consecutive ones on `device` by number, which is also that of their KV cache layer. `gaps`: modules
        that are no part of graphs; those that are no children of these layers are ignored."""
        self._numbers = tuple(layers)
        self._layers = tuple(layers.values())
        self._run = CapturedRun(f"layers {min(layers)} to {max(layers)}", room)
        self._device = device
        self._cache: KVCache | None = None
        self._deferral = Deferral[Call](len(layers))
        self._gaps = Gaps([child for layer in self._layers for child in layer.children() if child in gaps])
        for place, layer in enumerate(self._layers):
            layer.forward = RunForward(self, place, layer.forward)

    def remove(self) -> None:
        """Restore the layers and free the captured work."""
        self._run.drop()
        self._gaps.remove()
        for layer in self._layers:
            vars(layer).pop("forward", None)

    def begin_pass(self, cache: KVCache) -> None:
        """Compute the next pass with this run, until `end_pass`; other passes are left to the layers themselves."""
        self._cache = None if self._run.given_up else cache

    def end_pass(self) -> None:
        """Release the pass's tensors."""
        self._cache = None
        self._deferral.forget()
        self._gaps.forget()

    def forward(self, place: int, layer: RunForward, x: Tensor, given: Mapping[str, Any]) -> Any:
        """Compute layer `place` for x (1, n, H), or defer it and return x as the layer's output. Raises ModelFailed."""
        if self._cache is None:
            return layer.own(x, **given)
        if place == 0:
            self._deferral.begin(x if self._deferral.direct else None)
        if not self._deferral.takes(place, x):
            before = contents(given)
            y = layer.own(x, **given)
            # What a layer leaves in its arguments for other layers, a replay would not leave.
            kept = len(after := contents(given)) == len(before) and all(map(operator.is_, after, before))
            self._deferral.passed(place, x, layer.noted(x, y) if kept else None)
            return y
        self._deferral.calls.append(Call(layer.own, given))
        last = place + 1 == len(self._layers)
        return layer.formed(self._through_all(x, self._cache) if last else x)

    def _through_all(self, x: Tensor, cache: KVCache) -> Tensor:
        """Compute x (1, n, H) through all layers."""
        calls, tensors = self._deferral.taken(), [x]
        kept = [cache.layers[number] for number in self._numbers]
        stretch = stretch_of(kept, x.shape[1], len(cache.tokens), self._device)
        if stretch is None or not all(call.has_usual_mask for call in calls):
            return _ordinary(calls, x)
        likeness = [described(x, tensors), *(call.likeness(tensors) for call in calls)]
        windows = [one.window for one in kept]

        def compute(leave: Leave, _: Tensor, masks: Mapping[int, Tensor], inputs: Sequence[Tensor]) -> Tensor:
            again = (
                call.repeated(alike, inputs, masks[window])
                for call, alike, window in zip(calls, likeness[1:], windows, strict=True)
            )
            with self._gaps.left(leave):
                return _ordinary(tuple(again), inputs[0])

        def ordinary() -> Tensor:
            self._gaps.forget()
            return _ordinary(calls, x)

        return self._run.result(Piece(tensors, likeness, compute, ordinary, self._gaps.met), stretch)


class RunForward:
    """The forward of one layer of a run. `own`: the layer's own."""

    def __init__(self, run: ResidentRun, place: int, own: Callable[..., Any]) -> None:
        self.own = own
        self.rest: tuple[None, ...] | None = None
        self._run = run
        self._place = place
        self._names = tuple(inspect.signature(own).parameters)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """(1, n, H) -> what the layer returns: (1, n, H), alone or first in a tuple."""
        given = dict(zip(self._names, args, strict=False)) | kwargs
        return self._run.forward(self._place, self, given.pop(self._names[0]), given)

    def noted(self, x: Tensor, y: Any) -> Tensor | None:
        """Return the rows (1, n, H) in what the layer returned for x (1, n, H), after noting what is besides them; None
        if these are something."""
        first, *rest = y if isinstance(y, tuple) else (y,)
        self.rest = tuple(rest) if isinstance(y, tuple) else None
        known = isinstance(first, Tensor) and first.shape == x.shape and all(one is None for one in rest)
        return first if known else None

    def formed(self, y: Tensor) -> Any:
        """Return y (1, n, H) as the layer does, `rest` being what it returns besides."""
        return y if self.rest is None else (y, *self.rest)


class Gaps:
    """The modules of a run that are called between graphs, each with one tensor."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self._modules = modules
        self._before = [vars(module).get("forward") for module in modules]
        self._met: list[Gap | None] = []
        self._leave: Leave | None = None
        for module in modules:
            module.forward = partial(self.forward, module.forward)

    def remove(self) -> None:
        """Restore the modules."""
        for module, before in zip(self._modules, self._before, strict=True):
            vars(module).pop("forward", None)
            if before is not None:
                module.forward = before

    def met(self) -> list[Gap] | None:
        """Return what the modules have computed since `forget`; None unless each made a tensor from one tensor, and
        results of one shape."""
        known = [gap for gap in self._met if gap is not None]
        shapes = {(gap.result.shape, gap.result.dtype) for gap in known}
        return known if len(known) == len(self._met) and len(shapes) <= 1 else None

    def forget(self) -> None:
        """Release the tensors."""
        self._met.clear()

    @contextmanager
    def left(self, leave: Leave) -> Iterator[None]:
        """Call `leave` instead of the modules."""
        self._leave = leave
        try:
            yield
        finally:
            self._leave = None

    def forward(self, own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Compute a module by its own forward, and remember that, or leave it out of a graph."""
        if self._leave is not None:
            return self._leave(*args, **kwargs)
        y = own(*args, **kwargs)
        plain = len(args) == 1 and not kwargs and isinstance(args[0], Tensor) and isinstance(y, Tensor)
        self._met.append(Gap(own, args[0], y) if plain else None)
        return y


class Call(NamedTuple):
    """The call of one layer in a pass, with all of its arguments besides the rows."""

    own: Callable[..., Any]
    given: Mapping[str, Any]

    @property
    def has_usual_mask(self) -> bool:
        """Whether the mask, if there is one, is of the kind that captured layers get."""
        mask = self.given.get(MASK)
        return mask is None or (isinstance(mask, Tensor) and mask.dtype is torch.bool and mask.dim() == 4)

    def likeness(self, tensors: list[Tensor]) -> Any:
        """Describe the arguments, without the mask, with their tensors (...): see `described`."""
        return described({name: value for name, value in self.given.items() if name != MASK}, tensors)

    def repeated(self, likeness: Any, inputs: Sequence[Tensor], mask: Tensor) -> Call:
        """Return the same call with these tensors (...), and this mask (1, 1, n, T) if the layer is given one."""
        given = filled(likeness, inputs)
        return Call(self.own, given | {MASK: mask} if MASK in self.given else given)


@dataclass(frozen=True)
class Slot:
    """A tensor's place in a description: its number among the tensors, and what must not change about it."""

    number: int
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device


def described(value: Any, tensors: list[Tensor]) -> Any:
    """Return the value with a Slot for each tensor (...), which is appended to `tensors` unless it is there already."""
    if isinstance(value, Tensor):
        number = next((number for number, one in enumerate(tensors) if one is value), len(tensors))
        tensors += [value] if number == len(tensors) else []
        return Slot(number, value.shape, value.dtype, value.device)
    if isinstance(value, Mapping):  # copied, because other layers may change it
        return {name: described(one, tensors) for name, one in value.items()}
    if isinstance(value, tuple | list):
        return type(value)([described(one, tensors) for one in value])
    return value


def contents(given: Mapping[str, Any]) -> list[Any]:
    """Return what the containers among the arguments hold."""
    held = (value for value in given.values() if isinstance(value, Mapping | list))
    return [one for value in held for one in (value.values() if isinstance(value, Mapping) else value)]


def filled(description: Any, tensors: Sequence[Tensor]) -> Any:
    """Return the described value with these tensors (...) in its slots."""
    if isinstance(description, Slot):
        return tensors[description.number]
    if isinstance(description, dict):
        return {name: filled(one, tensors) for name, one in description.items()}
    if isinstance(description, tuple | list):
        return type(description)([filled(one, tensors) for one in description])
    return description


def _ordinary(calls: Sequence[Call], x: Tensor) -> Tensor:
    """Compute x (1, n, H) through the layers, one after the other."""
    for call in calls:
        y = call.own(x, **call.given)
        x = y[0] if isinstance(y, tuple) else y
    return x
