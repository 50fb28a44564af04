"""Vision models give transformers' tokens: one picture and three, in turns, in several passes, and read again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from core.errors import BadRequest, ModelUnreadable, NoChatTemplate
from core.events import LoadOptions, Message, Prefill, Request, Sampling, never
from core.generation.generate import DrawnToken, generate
from core.generation.sampler import TokenSampler, resolve
from core.planning.planner import explain
from core.runtime.loaded_model import LoadedModel
from core.runtime.loader import load_model
from core.runtime.prompt import prompt_ids
from core.runtime.reply import Reply
from tests.core.tiny_tokenizer import chat_model
from tests.core.vision.seeing import IMAGES, expected_tokens, make_seeing, picture

GREEDY = Sampling(temperature=0.0, repetition_penalty=1.0, seed=0)
ONE = (Message("user", "the fox", pictures=(picture(1),)),)
THREE = (
    Message("user", "the dog and", pictures=(picture(1), picture(2, 40, 90))),
    Message("assistant", "the answer"),
    Message("user", "you are the other", pictures=(picture(3, 100, 50),)),
)


def loaded(folder: Path) -> LoadedModel:
    *_, model = load_model(folder, LoadOptions(context=1024, threads=1))
    assert isinstance(model, LoadedModel)
    return model


def tokens(model: LoadedModel, messages: Sequence[Message], count: int, chunk: int = 0) -> tuple[list[int], int]:
    """Return the next greedy tokens, and how many of the prompt's were in the KV cache."""
    drawn: list[int] = []
    reused = 0
    prompt = prompt_ids(model, Request(tuple(messages)))
    for step in generate(model.model, model.cache, prompt, TokenSampler(resolve(GREEDY, Sampling())), never, chunk):
        if isinstance(step, Prefill):
            reused = step.reused
        elif isinstance(step, DrawnToken):
            drawn.append(step.id)
        if len(drawn) == count:
            break
    return drawn, reused


@pytest.mark.parametrize("kind", IMAGES)
def test_the_plan_counts_what_sees(kind: str, tmp_path: Path) -> None:
    make_seeing(kind, tmp_path)
    model = loaded(tmp_path)
    before = {name for name, _ in model.source.module.named_parameters()}
    model.open_vision()
    added = [value for name, value in model.source.module.named_parameters() if name not in before]
    assert model.plan.memory[0].sight == sum(value.nbytes for value in added) > 0
    assert any("pictures" in line for line in explain(model.plan, model.spec, model.machine.now()))
    model.close()


@pytest.mark.parametrize("kind", IMAGES)
def test_the_tokens_are_those_of_transformers_own_pipeline(kind: str, tmp_path: Path) -> None:
    whole = make_seeing(kind, tmp_path)
    model = loaded(tmp_path)
    for messages in (ONE, THREE):
        expected = expected_tokens(whole, tmp_path, messages, 12)
        assert tokens(model, messages, 12)[0] == expected
        model.cache.reset()
        assert tokens(model, messages, 12, chunk=16)[0] == expected


def test_the_tower_is_opened_by_the_first_picture_and_not_before(tmp_path: Path) -> None:
    make_seeing("llava", tmp_path)
    model = loaded(tmp_path)
    assert model.sees
    tokens(model, (Message("user", "the fox"),), 4)
    before = {name for name, _ in model.source.module.named_parameters()}
    tokens(model, ONE, 4)
    added = {name for name, _ in model.source.module.named_parameters()} - before
    assert added
    seen = sum(value.nbytes for name, value in model.source.module.named_parameters() if name in added)
    assert model.spec.sight_bytes == model.plan.memory[0].sight == seen
    assert all("vision" in name or "projector" in name for name in added)
    assert model.sees


def test_what_was_read_is_reused_and_another_picture_is_another_text(tmp_path: Path) -> None:
    make_seeing("qwen2_5_vl", tmp_path)
    model = loaded(tmp_path)
    first, _ = tokens(model, ONE, 8)
    prompt = len(prompt_ids(model, Request(ONE)))
    again, reused = tokens(model, ONE, 8)
    assert (again, reused) == (first, prompt - 1)
    other, reused = tokens(model, (Message("user", "the fox", pictures=(picture(9),)),), 8)
    assert other != first
    assert reused < 10  # the text before the picture
    _, reused = tokens(model, (*ONE, Message("assistant", "the answer"), Message("user", "the dog")), 4)
    assert reused < 10


def test_a_conversation_goes_on_after_its_pictures(tmp_path: Path) -> None:
    whole = make_seeing("qwen3_vl", tmp_path)
    model = loaded(tmp_path)
    tokens(model, THREE, 6)
    longer = (*THREE, Message("assistant", "the lazy dog"), Message("user", "and the fox"))
    found, reused = tokens(model, longer, 12)
    assert found == expected_tokens(whole, tmp_path, longer, 12)
    assert reused > 40


def test_positions_go_on_from_those_counted_also_after_a_cut(tmp_path: Path) -> None:
    make_seeing("qwen2_5_vl", tmp_path)
    model = loaded(tmp_path)
    three, one = (prompt_ids(model, Request(messages)) for messages in (THREE, ONE))
    vision = model.model.vision
    assert vision is not None
    text = [5] * len(three)
    assert not vision.concerns(text[:-1], text[-1:])
    for ids in (three, one, three[: len(three) // 2], three):
        whole = vision.inputs([], ids, torch.device("cpu"))["position_ids"]
        for place in (place for place, id in enumerate(ids) if id >= 0):
            next_one = vision.inputs(ids[:place], [ids[place]], torch.device("cpu"))["position_ids"]
            assert next_one.equal(whole[..., place : place + 1])
        assert not vision.concerns(text, [5])


@pytest.mark.parametrize("kind", ["qwen3_vl", "gemma3", "llava"])
def test_a_conversation_with_pictures_goes_on_after_a_restart(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A picture's ids are a hash of its content, so that a later start recognises it; positions need the picture
    again."""
    monkeypatch.setenv("HETEGEN_HOME", str(tmp_path / "home"))
    make_seeing(kind, tmp_path)
    turns = (*THREE, Message("assistant", "the lazy dog " * 12), Message("user", "and the fox"))
    longer = (*turns, Message("assistant", "the brown dog"), Message("user", "the other"))
    first = loaded(tmp_path)
    tokens(first, turns, 1)
    first.reply_start = len(prompt_ids(first, Request(turns)))
    first.keep_reading("one")
    first.settle(finish=True)
    first.cache.reset()
    expected, _ = tokens(first, longer, 12)
    first.close()
    again = loaded(tmp_path)
    again.turn_to(prompt_ids(again, Request(longer)), "one")
    found, reused = tokens(again, longer, 12)
    again.close()
    assert found == expected
    assert reused > 64
    other = loaded(tmp_path)
    elsewhere = (Message("user", "the dog and", pictures=(picture(7), picture(2, 40, 90))), *longer[1:])
    other.turn_to(prompt_ids(other, Request(elsewhere)), "one")
    assert tokens(other, elsewhere, 1)[1] < 64, "other pictures are another text"
    other.close()


def test_a_model_that_only_reads_says_so_and_goes_on_without_older_pictures(tmp_path: Path) -> None:
    model = loaded(chat_model(tmp_path))
    assert not model.sees
    with pytest.raises(BadRequest, match="cannot see"):
        Reply(model, Request(ONE), never)
    later = (*ONE, Message("assistant", "the answer"), Message("user", "the dog"))
    without = (Message("user", "the fox"), *later[1:])
    assert prompt_ids(model, Request(later)) == prompt_ids(model, Request(without))


def test_a_template_that_shows_no_pictures_says_so(tmp_path: Path) -> None:
    make_seeing("llava", tmp_path)
    settings = tmp_path / "chat_template.jinja"
    settings.write_text(settings.read_text("utf-8").replace("[<image>]", ""), encoding="utf-8")
    model = loaded(tmp_path)
    with pytest.raises(NoChatTemplate, match="leaves pictures out"):
        prompt_ids(model, Request(ONE))


def test_weights_that_are_missing_leave_the_text_as_it_was(tmp_path: Path) -> None:
    make_seeing("llava", tmp_path)
    model = loaded(tmp_path)
    text = (Message("user", "the fox"),)
    before, _ = tokens(model, text, 6)
    weights = {name: model.source.weights[name] for name in model.source.weights if "layernorm" not in name}
    model.source = replace(model.source, weights=weights)
    with pytest.raises(ModelUnreadable, match="tensors are missing"):
        model.open_vision()
    assert tokens(model, text, 6)[0] == before
    assert model.sees


@pytest.mark.parametrize("kind", ["qwen3_vl", "gemma3"])
def test_pictures_are_seen_beside_a_card(kind: str, tmp_path: Path) -> None:
    whole = make_seeing(kind, tmp_path)
    *_, model = load_model(tmp_path, LoadOptions(context=1024, threads=1, simulate_gpu="vram=64MiB,link=2GB/s"))
    assert isinstance(model, LoadedModel)
    assert model.plan.gpu == 0
    assert tokens(model, THREE, 8)[0] == expected_tokens(whole, tmp_path, THREE, 8)
