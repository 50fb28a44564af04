"""Alternating conversations keep their prefixes, and their replies are the same as alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.engine import Engine
from core.events import Finished, LoadOptions, Message, Piece, Prefill, Request, Sampling
from core.layers.kv_parking import ParkedPrefixes
from tests.core.families import make_model
from tests.core.greedy import GreedyPath, random_prompt
from tests.core.tiny_tokenizer import chat_model


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3_text"])
def test_a_parked_conversation_goes_on_as_if_it_had_been_alone(tmp_path: Path, family: str) -> None:
    path = GreedyPath(make_model(family, tmp_path / family))
    first, second = random_prompt(150, 1), random_prompt(150, 2)
    alone = path.tokens(first, 8)
    prefixes = ParkedPrefixes(1 << 24)
    prefixes.switch(path.cache, second, 0)
    path.tokens(second, 8)
    prefixes.switch(path.cache, first, 0)
    assert path.cache.tokens[:150] == first
    assert path.tokens(first, 8) == alone
    assert path.reused == 149


def test_the_least_recently_used_is_given_up_for_the_room(tmp_path: Path) -> None:
    path = GreedyPath(make_model("llama", tmp_path / "llama"))
    prompts = [random_prompt(150, seed) for seed in range(4)]
    path.tokens(prompts[0], 1)
    one = int(path.cache.nbytes / path.cache.capacity * len(path.cache.tokens))
    prefixes = ParkedPrefixes(2 * one)
    for prompt in prompts[1:]:
        prefixes.switch(path.cache, prompt, 0)
        path.tokens(prompt, 1)
    assert prefixes.nbytes <= 2 * one
    prefixes.switch(path.cache, prompts[0], 0)
    assert path.cache.tokens[:150] != prompts[0], "it was the oldest of three"
    prefixes.switch(path.cache, prompts[1], 0)
    assert path.cache.tokens[:150] == prompts[1] or prefixes.nbytes <= 2 * one


@pytest.mark.parametrize("options", [LoadOptions(), LoadOptions(simulate_gpu="vram=1GiB,link=12GB/s")])
def test_two_clients_in_turns_read_their_prompts_once(tmp_path: Path, options: LoadOptions) -> None:
    engine = Engine()
    list(engine.load(chat_model(tmp_path), options))

    def ask(text: str) -> tuple[str, int]:
        sampling = Sampling(temperature=0, max_new_tokens=4)
        events = list(engine.chat(Request((Message("user", text),), sampling, whole=True)))
        assert isinstance(events[-1], Finished), events
        said = "".join(event.text for event in events if isinstance(event, Piece))
        return said, next(event.reused for event in events if isinstance(event, Prefill))

    texts = ["the quick brown fox " * 30, "you are the one who asks " * 30]
    first = [ask(text)[0] for text in texts]
    again = [ask(text) for text in texts]
    assert [said for said, _ in again] == first
    assert all(reused > 100 for _, reused in again)
    engine.close()
