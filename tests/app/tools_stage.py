"""The application with a scripted engine and a real tool server, for tests and screenshots."""

from __future__ import annotations

from collections.abc import Sequence

from core.events import Event, Finished, Prefill, ToolCallPiece
from tests.app.scripted_engine import END


def asks_for(*calls: tuple[str, str], text: str = "") -> Sequence[Event]:
    """Return a reply that calls tools: (name, arguments as JSON)."""
    from core.events import Piece

    events: list[Event] = [Prefill(31, 31, 0)]
    if text:
        events.append(Piece(text))
    for index, (name, arguments) in enumerate(calls):
        half = len(arguments) // 2
        events.append(ToolCallPiece(index, f"c{index}", name))
        events += [ToolCallPiece(index, arguments=part) for part in (arguments[:half], arguments[half:])]
    return [*events, END, Finished("stop", END)]
