"""Drafting with a model's own MTP head: no token changes, and where the head is right all drafts are accepted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from core.errors import BadRequest
from core.events import AUTO, LOOKUP, MTP, Finished, LoadOptions, Message, Request, Sampling, never
from core.runtime.drafting import OWN_HEAD
from core.runtime.reply import Reply
from tests.core.composite import make_composite
from tests.core.families import make_model
from tests.core.greedy import loaded_model, random_prompt
from tests.core.mtp_heads import LAYOUTS, add_mtp, make_predictable
from tests.core.runtime.drafted import check_memory, draft_long, said
from tests.core.tiny_tokenizer import VOCABULARY, write_tokenizer

ON_CPU = LoadOptions(context=512, threads=1, format="bf16")
CARD = "vram=64MiB,link=2GB/s,cores=1"
MIB = 1 << 20


def folder_of(family: str, folder: Path) -> Path:
    made = make_model(family, folder, tie_word_embeddings=False, vocab_size=VOCABULARY)
    write_tokenizer(made)
    return add_mtp(made, family)


@pytest.mark.parametrize("family", LAYOUTS)
@pytest.mark.parametrize("gpu", [None, CARD])
def test_a_head_that_guesses_badly_changes_no_token(
    family: str, gpu: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draft_long(monkeypatch)
    folder, options = folder_of(family, tmp_path), replace(ON_CPU, simulate_gpu=gpu)
    plain = loaded_model(folder, options)
    expected, _ = said(plain, random_prompt(30))
    plain.close()
    model = loaded_model(folder, replace(options, draft=MTP))
    found, ahead = said(model, random_prompt(30))
    assert found == expected
    assert ahead.drafted > 0
    assert model.draft is not None
    assert model.draft.plan.gpu == model.plan.gpu == (0 if gpu else -1)
    model.close()


@pytest.mark.parametrize("family", ["qwen3_5_text", "qwen3_next", "glm4_moe", "deepseek_v3"])
@pytest.mark.parametrize("gpu", [None, CARD])
def test_all_that_a_head_drafts_is_taken_where_it_is_right(family: str, gpu: str | None, tmp_path: Path) -> None:
    folder = make_predictable(folder_of(family, tmp_path), family)
    model = loaded_model(folder, replace(ON_CPU, simulate_gpu=gpu, draft=MTP))
    found, ahead = said(model, random_prompt(30))
    first = random_prompt(30)[-1]
    assert found == [(first + 1 + place) % VOCABULARY for place in range(len(found))]
    assert ahead.drafter == OWN_HEAD
    assert ahead.taken == ahead.drafted > 0
    model.close()


@pytest.mark.parametrize(("kind", "language"), [("qwen3_5", "qwen3_5_text"), ("qwen3_5_moe", "qwen3_5_moe_text")])
def test_models_that_also_see_have_heads(kind: str, language: str, tmp_path: Path) -> None:
    make_composite(kind, tmp_path)
    folder = add_mtp(write_tokenizer(tmp_path), language)
    expected, _ = said(loaded_model(folder, ON_CPU), random_prompt(30), 30)
    found, ahead = said(loaded_model(folder, replace(ON_CPU, draft=MTP)), random_prompt(30), 30)
    assert found == expected
    assert ahead.drafted > 0


def test_a_head_goes_on_in_the_turns_that_follow(tmp_path: Path) -> None:
    family = "glm4_moe"
    folder = folder_of(family, tmp_path)
    plain, model = loaded_model(folder, ON_CPU), loaded_model(folder, replace(ON_CPU, draft=MTP))
    ids = random_prompt(30)
    for edited in (False, False, True):
        expected, _ = said(plain, ids, 25)
        assert said(model, ids, 25)[0] == expected
        ids = [*ids[:12], *random_prompt(9)] if edited else [*ids, *expected, *random_prompt(7)]


def test_what_a_head_has_read_is_the_same_after_other_turns(tmp_path: Path) -> None:
    """The scores of the first draft depend on the text alone, whatever was drafted and rewound before."""
    family = "qwen3_5_text"
    folder = folder_of(family, tmp_path)
    fresh, used = (loaded_model(folder, replace(ON_CPU, draft=MTP)) for _ in range(2))
    prompt = random_prompt(30)
    longer = [*prompt, *said(used, prompt, 25)[0], *random_prompt(11)]
    drafts = []
    for model in (used, fresh):
        assert model.draft is not None
        drafter = model.draft.drafter(model.cache, longer)
        model.model.forward(longer[model.cache.reuse(longer[:-1]) : -1], model.cache)
        drafts.append(drafter.draft(longer, 1))
    assert drafts[0] == drafts[1] != []


def test_the_heads_memory_is_within_the_limit_and_given_back(tmp_path: Path) -> None:
    folder = folder_of("glm4_moe", tmp_path)
    model = loaded_model(folder, replace(ON_CPU, simulate_gpu=CARD, vram=24 * MIB, draft=MTP))
    check_memory(model, 24 * MIB, lambda: loaded_model(folder, ON_CPU))


def test_a_reply_says_who_drafted(tmp_path: Path) -> None:
    family = "qwen3_5_text"
    folder = make_predictable(folder_of(family, tmp_path), family)
    model = loaded_model(folder, replace(ON_CPU, draft=MTP))
    request = Request((Message("user", "hello"),), Sampling(temperature=0.0, seed=1, max_new_tokens=40))
    *_, finished = Reply(model, request, never).events()
    assert isinstance(finished, Finished)
    stats = finished.stats
    assert stats.drafter == OWN_HEAD
    assert (stats.acceptance or 0) > 0.9
    assert (stats.tokens_per_pass or 0) > 1


def test_a_model_without_a_head_says_so(tmp_path: Path) -> None:
    folder = make_model("llama", tmp_path)
    write_tokenizer(folder)
    with pytest.raises(BadRequest, match="no MTP head"):
        loaded_model(folder, replace(ON_CPU, draft=MTP))
    assert loaded_model(folder, replace(ON_CPU, draft=AUTO)).draft is None
    assert loaded_model(folder, replace(ON_CPU, draft=LOOKUP)).draft is None
