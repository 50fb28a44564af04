"""A conversation as files store it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from app.conversations.conversation import Conversation


@dataclass(frozen=True)
class SavedConversation:
    """A conversation and its data outside of the tree. `created`: seconds since 1970 by turn id."""

    conversation: Conversation
    pinned: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    created: Mapping[str, float] = field(default_factory=dict)
