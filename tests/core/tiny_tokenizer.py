"""A tiny byte-level tokenizer with a chat template, made by the `tokenizers` library, and models that say a script."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from core.events import Message
from core.generation.tokenizer import Tokenizer
from tests.core.families import make_model

VOCABULARY = 320
END_OF_TURN = "<|im_end|>"
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT = ("the quick brown fox jumps over the lazy dog and the other dog", "you are the one who asks for the answer")


def write_tokenizer(folder: Path, template: str | None = TEMPLATE) -> Path:
    """Write tokenizer.json and its configuration to `folder`: 256 bytes, some merges, control tokens, reasoning
    marks."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=["<pad>", "<|im_start|>", END_OF_TURN],
        show_progress=False,
    )
    backend.train_from_iterator(TEXT, trainer)
    # As in Qwen3: added, but not control tokens, so that decoding shows them.
    backend.add_tokens([AddedToken(text, special=False) for text in ("<think>", "</think>")])
    wrapped = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END_OF_TURN, pad_token="<pad>")
    wrapped.chat_template = template
    wrapped.save_pretrained(folder)
    return folder


def chat_model(folder: Path, family: str = "llama", seed: int = 0, **changes: Any) -> Path:
    """Make a tiny random model that can be chatted with (and says nonsense)."""
    make_model(family, folder, seed=seed, **({"vocab_size": VOCABULARY} | changes))
    return write_tokenizer(folder)


def scripted_model(folder: Path, prompt: Sequence[Message], script: Sequence[int | str], **files: Any) -> Path:
    """Make a real model whose weights make it answer `prompt` with `script` (ids or text) and then end its turn.

    A GPT-2 with one layer that adds nothing: the position embedding of each place is the vector of the token to say.
    `files`: content of further JSON files by stem, such as generation_config.
    """
    write_tokenizer(folder)
    tokenizer = Tokenizer.load(folder)
    start = len(tokenizer.render(prompt)) - 1
    ids = [one for part in script for one in ([part] if isinstance(part, int) else tokenizer.encode(part))]
    config = GPT2Config(
        vocab_size=VOCABULARY, n_embd=VOCABULARY, n_layer=1, n_head=4, n_inner=8, n_positions=1024,
        tie_word_embeddings=False, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    end = next(iter(tokenizer.stop_ids))
    with torch.no_grad():
        for value in model.parameters():
            value.zero_()
        model.transformer.ln_f.weight.fill_(1)
        model.lm_head.weight.copy_(torch.eye(VOCABULARY))
        model.transformer.wpe.weight[:, end] = 1
        for place, token in enumerate(ids, start):
            model.transformer.wpe.weight[place, end] = 0
            model.transformer.wpe.weight[place, token] = 1
    model.save_pretrained(folder)
    for stem, content in files.items():
        (folder / f"{stem}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder
