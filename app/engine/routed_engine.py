"""Local and remote models behind one interface; the name of the loaded model selects the engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from app.engine.worker import EngineLike
from core.events import Event, LoadOptions, Request, Stop
from core.remote.endpoint import PREFIX


class RoutedEngine:
    """Forwards to a local or a remote engine, each created when first needed: a remote model needs no torch."""

    def __init__(self, make_local: Callable[[], EngineLike], make_remote: Callable[[], EngineLike]) -> None:
        self._make = {False: make_local, True: make_remote}
        self._made: dict[bool, EngineLike] = {}
        self._is_remote = False

    def load(self, source: str, options: LoadOptions, stop: Stop) -> Iterator[Event]:
        """Close the loaded model and load `source` with its engine."""
        self.close()
        self._is_remote = source.startswith(PREFIX)
        return self._engine.load(source, options, stop)

    def chat(self, request: Request, stop: Stop) -> Iterator[Event]:
        """Answer with the model loaded last."""
        return self._engine.chat(request, stop)

    def count(self, request: Request) -> Iterator[Event]:
        """Count a prompt's tokens with the model loaded last."""
        return self._engine.count(request)

    def replan(self, vram: int | None, ram: int | None) -> Iterator[Event]:
        """Apply memory limits to the model."""
        return self._engine.replan(vram, ram)

    def close(self) -> None:
        """Close the models; the engines stay."""
        for engine in self._made.values():
            engine.close()

    @property
    def _engine(self) -> EngineLike:
        if self._is_remote not in self._made:
            self._made[self._is_remote] = self._make[self._is_remote]()
        return self._made[self._is_remote]
