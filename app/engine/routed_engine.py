"""Local and remote models behind one interface; the name of the loaded model selects the engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from threading import Lock

from app.engine.worker import EngineLike
from core.events import Event, Loaded, LoadOptions, Request, Stop
from core.remote.endpoint import PREFIX


class RoutedEngine:
    """Forwards to a local or a remote engine, each created when first needed: a remote model needs no torch."""

    def __init__(self, make_local: Callable[[], EngineLike], make_remote: Callable[[], EngineLike]) -> None:
        self._make = {False: make_local, True: make_remote}
        self._made: dict[bool, EngineLike] = {}
        self._is_remote = False
        self._making = Lock()

    def load(self, source: str, options: LoadOptions, stop: Stop) -> Iterator[Event]:
        """Load `source` with its engine. The model loaded before answers until then."""
        is_remote = source.startswith(PREFIX)
        for event in self._engine_for(is_remote).load(source, options, stop):
            if isinstance(event, Loaded):
                self._use(is_remote)
            yield event

    def check(self, source: str, options: LoadOptions, stop: Stop) -> Iterator[Event]:
        """Find out with its engine whether `source` can be loaded; called in another thread during a reply."""
        return self._engine_for(source.startswith(PREFIX)).check(source, options, stop)

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
        for engine in list(self._made.values()):
            engine.close()

    def _use(self, is_remote: bool) -> None:
        """Answer with this engine from now on, and close the other one's model."""
        self._is_remote = is_remote
        if (other := self._made.get(not is_remote)) is not None:
            other.close()

    @property
    def _engine(self) -> EngineLike:
        return self._engine_for(self._is_remote)

    def _engine_for(self, is_remote: bool) -> EngineLike:
        with self._making:
            if is_remote not in self._made:
                self._made[is_remote] = self._make[is_remote]()
            return self._made[is_remote]
