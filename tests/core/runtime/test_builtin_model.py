"""The built-in guide: small enough, loadable by transformers alone, and right on questions outside its training
data."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from random import Random
from types import ModuleType

import pytest
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).parents[3]
MODEL = ROOT / "assets" / "builtin-model"
FILES = (
    "README.md",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
)
SYSTEM = {"role": "system", "content": "You are a pirate."}


def script(name: str) -> ModuleType:
    """Import a module of packaging/builtin_model, which is a folder of scripts and not a package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "packaging" / "builtin_model"))
        return import_module(name)


@pytest.fixture(scope="module")
def corpus() -> ModuleType:
    return script("corpus")


@pytest.fixture(scope="module")
def guide():
    return AutoModelForCausalLM.from_pretrained(MODEL).eval(), AutoTokenizer.from_pretrained(MODEL)


def answer(guide, messages: list[dict[str, str]]) -> str:
    model, tokenizer = guide
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    out = model.generate(**prompt)
    return tokenizer.decode(out[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)


def test_is_complete_and_at_most_8_mb():
    assert all((MODEL / name).is_file() for name in FILES)
    assert sum(path.stat().st_size for path in MODEL.rglob("*")) <= 8_000_000


def test_is_a_bf16_llama_with_greedy_defaults(guide):
    model, tokenizer = guide
    assert json.loads((MODEL / "config.json").read_text(encoding="utf-8"))["model_type"] == "llama"
    assert str(model.dtype) == "torch.bfloat16"
    assert model.generation_config.do_sample is False
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == tokenizer.convert_tokens_to_ids("<|end|>")


def test_chat_template_takes_a_system_prompt_and_several_turns(guide):
    messages = [SYSTEM, {"role": "user", "content": " hi "}, {"role": "assistant", "content": "Hello!"}]
    text = guide[1].apply_chat_template(messages, tokenize=False)
    assert text == "<|system|>You are a pirate.<|end|><|user|>hi<|end|><|assistant|>Hello!<|end|>"
    again = guide[1].apply_chat_template(messages[:2], tokenize=False, add_generation_prompt=True)
    assert again == "<|system|>You are a pirate.<|end|><|user|>hi<|end|><|assistant|>"


def test_any_text_survives_the_tokenizer():
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    for text in ("Ctrl+M, < 2/3 >", "naïve 模型 🙂\n\ttabs  and   spaces", "0.5 GB/s"):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


@pytest.mark.parametrize(
    ("intent", "question"),
    [
        ("shortcuts", "Which keyboard shortcuts are there?"),
        ("privacy", "Is my data private?"),
        ("gguf", "Does HeteGen read GGUF?"),
        ("new_chat", "How do I start a new chat?"),
        ("out_of_scope", "Who invented the steam engine?"),
        ("out_of_scope", "Write a limerick about a sailor"),
    ],
)
def test_answers_held_out_questions_in_a_conversation(guide, corpus, intent, question):
    answers = {each.name: each.answers for each in corpus.read_intents()}
    assert question in corpus.read_questions("evaluation.json")[intent]
    first = answer(guide, [{"role": "user", "content": question}])
    assert first in answers[intent]
    later = [SYSTEM, {"role": "user", "content": "hi"}, {"role": "assistant", "content": answers["greeting"][0]}]
    assert answer(guide, [*later, {"role": "user", "content": question}]) in answers[intent]


@pytest.mark.parametrize("earlier", [0, 1])
def test_answers_what_people_type_first(guide, corpus, earlier):
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    first = corpus.read_questions("first_questions.json")
    share, misses = script("evaluate").score(guide[0], tokenizer, first, earlier)
    assert share >= 0.9, misses


def test_no_held_out_wording_is_in_the_training_text(corpus):
    held = {
        corpus.normalise(question)
        for name in ("evaluation.json", "development.json")
        for questions in corpus.read_questions(name).values()
        for question in questions
    }
    text, rng = corpus.Corpus(), Random(7)
    drawn = {corpus.normalise(text.question(intent, rng)) for intent in text.intents for _ in range(250)}
    assert len(held) > 400
    assert held.isdisjoint(drawn)


def test_evaluation_covers_every_intent(corpus):
    asked = corpus.read_questions("evaluation.json")
    assert set(asked) == {intent.name for intent in corpus.read_intents()}
    assert sum(map(len, asked.values())) >= 80
