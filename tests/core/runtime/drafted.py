"""What tests of draft models share: replies drafted by them alone, and the limit of their memory."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from core.events import Sampling, never
from core.generation.generate import DrawnToken, generate
from core.generation.guesses import Guesses
from core.generation.sampler import TokenSampler, resolve
from core.generation.speculation import Speculation
from core.planning.speculation import MOST_ROWS
from core.runtime.loaded_model import LoadedModel
from core.runtime.replanner import Replanner
from tests.core.greedy import GREEDY, random_prompt


def said(model: LoadedModel, prompt: list[int], count: int = 60) -> tuple[list[int], Speculation]:
    """Return greedy tokens, drafted only by the draft model, if there is one."""
    drawn = list[int]()
    ahead = Speculation([model.draft.drafter(model.cache, prompt)] if model.draft else [])
    sample = TokenSampler(resolve(GREEDY, Sampling()))
    for step in generate(model.model, model.cache, prompt, sample, never, 0, ahead):
        if isinstance(step, DrawnToken):
            drawn.append(step.id)
        if len(drawn) == count:
            break
    return drawn, ahead


def draft_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let draft models always guess as many tokens as one pass may verify."""
    monkeypatch.setattr(Guesses, "pays", lambda _, confidences: len(confidences) < MOST_ROWS - 1)


def check_memory(model: LoadedModel, limit: int, plain: Callable[[], LoadedModel]) -> None:
    """Check that a model and its draft keep to `limit` bytes of the card and give memory back when half is left: the
    draft rests then, and the tokens are those of a `plain` model. Closes the model."""
    assert model.draft is not None
    card = model.machine.accelerator(0)
    said(model, random_prompt(30))
    assert card.memory().peak <= limit
    assert model.plan.memory[-1].used + model.draft.nbytes <= limit
    taken = card.memory().used
    Replanner(model).keep_to(limit // 2, None)
    assert card.memory().used < taken
    expected, _ = said(plain(), random_prompt(40))
    found, ahead = said(model, random_prompt(40))
    assert found == expected
    assert ahead.drafted == 0
    model.close()
