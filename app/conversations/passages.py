"""How a session finds the passages of long documents that go with a question."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from app.conversations.conversation import Turn

FindParts = Callable[[Turn, Collection[str]], Mapping[str, object] | None]
"""Maps a question and the digests of its documents that do not fit to the passages that go with it.

None while the passages cannot be found yet.
"""


def no_parts(question: Turn, new: Collection[str]) -> Mapping[str, object]:
    """The FindParts of callers without long documents."""
    return {}
