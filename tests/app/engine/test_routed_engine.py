"""The loaded model selects the engine; engines that are not needed are not created."""

from __future__ import annotations

from collections.abc import Iterator

from app.engine.routed_engine import RoutedEngine
from core.errors import ModelNotFound
from core.events import Checked, Event, Failed, Loaded, LoadOptions, Message, Piece, Request, never

ASK = Request((Message("user", "hi"),))


class Named:
    """An engine that answers with its name."""

    def __init__(self, name: str, log: list[str]) -> None:
        self._name, self._log = name, log
        log.append(f"{name} made")

    def load(self, source: str, options: LoadOptions, stop: object) -> Iterator[Event]:
        self._log.append(f"{self._name} loads {source}")
        if "broken" in source:
            yield Failed(ModelNotFound("It is not there."))
        else:
            yield Loaded(source, "", "", 0, 0, 0, 0.0)

    def check(self, source: str, options: LoadOptions, stop: object) -> Iterator[Event]:
        self._log.append(f"{self._name} checks {source}")
        yield Checked()

    def chat(self, request: Request, stop: object) -> Iterator[Event]:
        yield Piece(self._name)

    def count(self, request: Request) -> Iterator[Event]:
        return iter(())

    def replan(self, vram: int | None, ram: int | None) -> Iterator[Event]:
        return iter(())

    def close(self) -> None:
        self._log.append(f"{self._name} closed")


def test_the_source_decides_who_answers() -> None:
    log: list[str] = []
    engine = RoutedEngine(lambda: Named("local", log), lambda: Named("remote", log))
    far = "remote:http://box:8000/v1#big"
    list(engine.load(far, LoadOptions(), never))
    assert list(engine.chat(ASK, never)) == [Piece("remote")]
    assert "local made" not in log
    list(engine.load("a/folder", LoadOptions(), never))
    assert list(engine.chat(ASK, never)) == [Piece("local")]
    assert log == ["remote made", f"remote loads {far}", "local made", "local loads a/folder", "remote closed"]
    engine.close()
    assert log[-1] == "local closed"


def test_a_check_changes_nobody_who_answers() -> None:
    log: list[str] = []
    engine = RoutedEngine(lambda: Named("local", log), lambda: Named("remote", log))
    list(engine.load("a/folder", LoadOptions(), never))
    far = "remote:http://box:8000/v1#big"
    assert list(engine.check(far, LoadOptions(), never)) == [Checked()]
    assert list(engine.chat(ASK, never)) == [Piece("local")]
    assert log[2:] == ["remote made", f"remote checks {far}"]


def test_a_model_that_cannot_be_loaded_leaves_who_answered_before() -> None:
    log: list[str] = []
    engine = RoutedEngine(lambda: Named("local", log), lambda: Named("remote", log))
    list(engine.load("a/folder", LoadOptions(), never))
    list(engine.load("remote:http://broken:8000/v1#big", LoadOptions(), never))
    assert list(engine.chat(ASK, never)) == [Piece("local")]
    assert "local closed" not in log
