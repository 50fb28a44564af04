"""The small template language in which questions are written: `how [do|can] i {get} a {model}`.

`[a|b|]` picks one of the alternatives (an empty one may leave the words out); `{name}` picks a line of that slot,
which may hold templates itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from random import Random

Slots = Mapping[str, Sequence[str]]

_INNERMOST = re.compile(r"\[([^\[\]{}]*)\]|\{(\w+)\}")


def expand(template: str, slots: Slots, rng: Random) -> str:
    """One random sentence of the template, with single spaces."""
    while match := _INNERMOST.search(template):
        choice = rng.choice(slots[match[2]]) if match[2] else rng.choice(match[1].split("|"))
        template = template[: match.start()] + choice + template[match.end() :]
    return " ".join(template.split())


def normalise(text: str) -> str:
    """Lower case, letters and digits only: two questions with the same result count as the same wording."""
    return " ".join(re.findall(r"[^\W_]+", text.lower().replace("'", "").replace("’", "")))
