"""The models that a server without a window answers with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from core.errors import HeteGenError
from core.events import Event, Failed, Finished, Loaded, LoadOptions, Stop, Unloaded
from core.hub.installed import default_cache, find_installed
from core.server.backend import Work, model_id


class Loader(Protocol):
    """The part of `core.engine.Engine` that loads models."""

    def load(self, source: str | Path | None, options: LoadOptions, stop: Stop) -> Iterator[Event]:
        """Load a model in place of the one in use, as events."""


class OneModel:
    """The model that was loaded, and no other. `name`: its id for clients; `first`: that of the first one loaded."""

    def __init__(self, model: Loaded) -> None:
        self.model: Loaded | None = model
        self.name = self.first = model_id(model)

    def loader(self, name: str) -> Work | None:
        """Return what loads another model: nothing does."""
        return None


class AnyModel(OneModel):
    """The installed model that a request names: it is loaded in place of the one in use, in the engine's thread.

    `name`: of the model in use or, once that is given up, of the one being loaded; if this fails, of the first one,
    which the next request that names no other has loaded again.
    """

    def __init__(self, engine: Loader, first: Loaded, source: str | Path | None, options: LoadOptions) -> None:
        """`source` and `options`: with which the first model was loaded; others are loaded with the same options."""
        super().__init__(first)
        self.name = self.first = _listed_as(source) or self.first
        self._engine = engine
        self._source, self._options = source, options

    def loader(self, name: str) -> Work | None:
        """Return what loads the model of this id unless it is loaded."""
        return lambda engine, stop: self._load(name, stop)

    def _load(self, name: str, stop: Stop) -> Iterator[Event]:
        if name == self.name and self.model is not None:
            return
        for event in self._engine.load(self._source if name == self.first else name, self._options, stop):
            match event:
                case Unloaded():
                    self.name, self.model = name, None
                case Loaded():
                    self.name, self.model = name, event
                case Failed() | Finished() if self.model is None:
                    self.name = self.first
            yield event


def _listed_as(source: str | Path | None) -> str:
    """Return the id under which a model is listed among the installed ones; "" if it is not one of them.

    A model in GGUF names itself after its file only.
    """
    try:
        return find_installed(str(source or ""), default_cache()).id
    except HeteGenError:
        return ""
