"""The template language of the questions: `how [do|can] i {get} a {model}`.

`[a|b|]` picks one alternative, possibly the empty one; `{name}` picks a line of that slot, which may contain templates.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from random import Random

Slots = Mapping[str, Sequence[str]]

_INNERMOST = re.compile(r"\[([^\[\]{}]*)\]|\{(\w+)\}")


def expand(template: str, slots: Slots, rng: Random) -> str:
    """Expand a template to a random sentence with single spaces."""
    while match := _INNERMOST.search(template):
        choice = rng.choice(slots[match[2]]) if match[2] else rng.choice(match[1].split("|"))
        template = template[: match.start()] + choice + template[match.end() :]
    return " ".join(template.split())


def normalise(text: str) -> str:
    """Reduce a text to lower-case letters and digits; questions with the same result count as the same wording."""
    return " ".join(re.findall(r"[^\W_]+", text.lower().replace("'", "").replace("’", "")))
