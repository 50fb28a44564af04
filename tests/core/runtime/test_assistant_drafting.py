"""Drafting with Gemma 4's assistant: no token changes, and where it is right all drafts are accepted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core.errors import BadRequest, ModelUnreadable
from core.events import Finished, LoadOptions, Message, Piece, Request, Sampling, never
from core.planning import drafting
from core.runtime.loaded_model import LoadedModel
from core.runtime.loader import load_model
from core.runtime.reply import Reply
from core.spec import KvFormat, Strategy
from tests.core.assistants import ALIKE, CLUSTERS, EXPERTS, SHARED, make_assistant, make_pair, make_target
from tests.core.greedy import loaded_model, random_prompt
from tests.core.runtime.drafted import check_memory, draft_long, said
from tests.core.tiny_tokenizer import VOCABULARY, write_tokenizer
from tests.core.vision.seeing import make_seeing, picture
from tests.core.weights.gguf import tiny_gguf

ON_CPU = LoadOptions(context=512, threads=1, format="bf16")
CARD = "vram=64MiB,link=2GB/s,cores=1"
MIB = 1 << 20


@pytest.mark.parametrize(("kind", "head"), [(EXPERTS, {}), (SHARED, CLUSTERS)], ids=["experts", "shared, clusters"])
@pytest.mark.parametrize(("gpu", "there"), [(None, -1), (CARD, -1), (CARD, 0)], ids=["cpu", "beside", "card"])
def test_an_assistant_that_guesses_badly_changes_no_token(
    kind: str, head: dict[str, Any], gpu: str | None, there: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tiny one costs less in RAM than on the card, which it takes where it may not lie in RAM."""
    if there == 0:
        monkeypatch.setattr(drafting, "can_be_mirrored", lambda *_: False)
    draft_long(monkeypatch)
    target, assistant = make_target(tmp_path / "t", kind), make_assistant(tmp_path / "a", kind, **head)
    options = replace(ON_CPU, simulate_gpu=gpu)
    plain = loaded_model(target, options)
    expected, _ = said(plain, random_prompt(30))
    plain.close()
    model = loaded_model(target, replace(options, draft=str(assistant)))
    found, ahead = said(model, random_prompt(30))
    assert found == expected
    assert ahead.drafted > 0
    assert model.draft is not None
    assert (model.plan.gpu, model.draft.plan.gpu) == (0 if gpu else -1, there)
    model.close()


@pytest.mark.parametrize(
    ("gpu", "kv", "there"), [(None, "bf16", -1), (CARD, "bf16", -1), (CARD, "int8", 0)], ids=["cpu", "beside", "card"]
)
@pytest.mark.parametrize("head", [{}, CLUSTERS | {"num_centroids": VOCABULARY // 2}], ids=["", "clusters"])
def test_all_that_an_assistant_drafts_is_taken_where_it_is_right(
    gpu: str | None, kv: KvFormat, there: int, head: dict[str, Any], tmp_path: Path
) -> None:
    target, assistant = make_pair(tmp_path, **head)
    model = loaded_model(target, replace(ON_CPU, simulate_gpu=gpu, kv=kv, draft=str(assistant)))
    assert model.draft is not None
    assert (model.plan.gpu, model.draft.plan.gpu) == (0 if gpu else -1, there)
    found, ahead = said(model, random_prompt(30))
    first = random_prompt(30)[-1]
    assert found == [(first + 1 + place) % VOCABULARY for place in range(len(found))]
    assert ahead.drafter == "assistant"
    assert ahead.taken == ahead.drafted > 0
    model.close()


@pytest.mark.parametrize("strategy", ["stream", "hetegen"])
def test_an_assistant_drafts_beside_any_plan(strategy: Strategy, tmp_path: Path) -> None:
    target, assistant = make_pair(tmp_path, sizes={"enable_moe_block": False, "intermediate_size": 4096})
    *_, model = load_model(target, replace(ON_CPU, simulate_gpu=CARD, vram=8 * MIB, draft=str(assistant)), strategy)
    assert isinstance(model, LoadedModel)
    rows = [linear.decode for linear in model.plan.linears]
    assert model.plan.gpu == 0
    assert any(one.streamed if strategy == "stream" else one.cpu for one in rows)
    found, ahead = said(model, random_prompt(30))
    assert [(id + 1) % VOCABULARY for id in found[:-1]] == found[1:]
    assert ahead.taken == ahead.drafted > 0
    model.close()


def test_an_assistant_goes_on_in_the_turns_that_follow(tmp_path: Path) -> None:
    target, assistant = make_target(tmp_path / "t", SHARED), make_assistant(tmp_path / "a", SHARED)
    plain, model = loaded_model(target, ON_CPU), loaded_model(target, replace(ON_CPU, draft=str(assistant)))
    ids = random_prompt(30)
    for edited in (False, False, True):
        expected, _ = said(plain, ids, 25)
        found, ahead = said(model, ids, 25)
        assert found == expected
        assert ahead.drafted > 0
        ids = [*ids[:12], *random_prompt(9)] if edited else [*ids, *expected, *random_prompt(7)]


def answered(model: LoadedModel, request: Request) -> tuple[str, Finished]:
    *events, finished = Reply(model, request, never).events()
    assert isinstance(finished, Finished)
    return "".join(one.text for one in events if isinstance(one, Piece)), finished


def test_a_sampled_reply_is_the_same_and_says_who_drafted(tmp_path: Path) -> None:
    target, assistant = make_pair(tmp_path)
    sampling = Sampling(temperature=1.0, seed=4, max_new_tokens=60)
    request = Request((Message("user", "hello"),), sampling)
    expected, _ = answered(loaded_model(target, ON_CPU), request)
    found, finished = answered(loaded_model(target, replace(ON_CPU, draft=str(assistant))), request)
    assert found == expected != ""
    stats = finished.stats
    assert stats.drafter == "assistant"
    assert (stats.acceptance or 0) > 0.5
    assert (stats.tokens_per_pass or 0) > 1


def test_an_assistants_memory_is_within_the_limit_and_given_back(tmp_path: Path) -> None:
    target, assistant = make_target(tmp_path / "t"), make_assistant(tmp_path / "a")
    packed = replace(ON_CPU, simulate_gpu=CARD, kv="int8")
    model = loaded_model(target, replace(packed, vram=24 * MIB, draft=str(assistant)))
    assert model.draft is not None
    assert model.draft.plan.gpu == 0
    check_memory(model, 24 * MIB, lambda: loaded_model(target, packed))


def test_a_wrong_pair_is_refused_when_it_is_loaded(tmp_path: Path) -> None:
    target, assistant = make_target(tmp_path / "t"), make_assistant(tmp_path / "a")
    write_tokenizer(assistant)
    options = replace(ON_CPU, draft=str(assistant))
    assert loaded_model(target, options).draft is not None
    file = assistant / "tokenizer.json"
    known = json.loads(file.read_text("utf-8"))
    known["added_tokens"].append(known["added_tokens"][-1] | {"id": VOCABULARY - 1, "content": "<one more>"})
    file.write_text(json.dumps(known), "utf-8")
    assert loaded_model(target, options).draft is not None
    words = known["model"]["vocab"]
    words["!"], words["#"] = words["#"], words["!"]
    file.write_text(json.dumps(known), "utf-8")
    with pytest.raises(BadRequest, match="a cannot draft for this model"):
        loaded_model(target, options)
    damaged = make_assistant(tmp_path / "damaged")
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ModelUnreadable):
        loaded_model(target, replace(options, draft=str(damaged)))
    with pytest.raises(BadRequest, match="other cannot draft for this model"):
        loaded_model(
            make_target(tmp_path / "t", hidden_size=32), replace(options, draft=str(make_assistant(tmp_path / "other")))
        )


@pytest.mark.parametrize("name", ["gemma4", "gemma4-moe"])
def test_an_assistant_drafts_for_a_model_in_gguf(name: str, tmp_path: Path) -> None:
    """Its input table may stay in the file."""
    model, kind = tiny_gguf.make_model(name), SHARED if name == "gemma4" else ALIKE
    model.save_pretrained(tmp_path / "t")
    folder, assistant = write_tokenizer(tmp_path / "t"), make_assistant(tmp_path / "a", kind)
    file = tiny_gguf.write_gguf(name, model, tmp_path / "t.gguf")
    ids, drafts = random_prompt(30), list[list[int]]()
    expected, _ = said(loaded_model(folder, ON_CPU), ids, 40)
    for path in (folder, file):
        loaded = loaded_model(path, replace(ON_CPU, draft=str(assistant)))
        found, ahead = said(loaded, ids, 40)
        assert found == expected
        assert ahead.drafted > 0
        assert loaded.draft is not None
        drafter = loaded.draft.drafter(loaded.cache, ids)
        loaded.cache.reset()
        loaded.model.forward(ids[:-1], loaded.cache)
        drafts.append(drafter.draft(ids, 1))
    assert drafts[0] == drafts[1] != []


def test_an_assistant_also_drafts_after_pictures(tmp_path: Path) -> None:
    """It reads the model's states of them."""
    make_seeing("gemma4", tmp_path / "t")
    assistant = make_assistant(tmp_path / "a", SHARED, text={"num_key_value_heads": 1}, backbone_hidden_size=32)
    varied = Sampling(temperature=2.0, seed=1, max_new_tokens=40)  # nothing to look up
    request = Request((Message("user", "the fox", pictures=(picture(1),)),), varied)
    plain = loaded_model(tmp_path / "t", replace(ON_CPU, context=1024))
    model = loaded_model(tmp_path / "t", replace(ON_CPU, context=1024, draft=str(assistant)))
    assert model.draft is not None
    guesses = list[int]()
    model.draft.model.on_states = lambda ids, _: guesses.extend(ids)
    expected, _ = answered(plain, request)
    assert answered(model, request)[0] == expected
    assert guesses
