"""Measures what formats cost in quality on the built-in guide: agreement with bf16, and questions answered.

    python -m tests.bench.agreement [--questions evaluation.json] [--every 1]

Top-1 agreement: the share of positions, in the held-out questions and in bf16's greedy answers to them, at which the
most likely token is bf16's. Q4_0 and Q8_0 are simulated by rounding weights, not activations. The last line is one JSON
object.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from core.events import LoadOptions, Sampling, never
from core.generation.generate import DrawnToken, generate
from core.generation.sampler import TokenSampler, resolve
from core.runtime.loaded_model import LoadedModel
from core.runtime.loader import load_model
from core.startup.environment import prepare_environment

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "assets" / "builtin-model"
NEW_TOKENS = 90
GREEDY = resolve(Sampling(temperature=0.0, repetition_penalty=1.0, seed=0), Sampling())


def load(format: Any, folder: Path = MODEL) -> LoadedModel:
    return next(s for s in load_model(folder, LoadOptions(format=format)) if isinstance(s, LoadedModel))


def answer(loaded: LoadedModel, prompt: list[int], end: int) -> list[int]:
    """Return the ids of the greedy answer without the end token."""
    ids: list[int] = []
    for step in generate(loaded.model, loaded.cache, prompt, TokenSampler(GREEDY), never):
        if isinstance(step, DrawnToken):
            if step.id == end or len(ids) == NEW_TOKENS:
                break
            ids.append(step.id)
    return ids


def likeliest(loaded: LoadedModel, texts: list[list[int]]) -> Tensor:
    """Return the most likely token after every position of every text, concatenated."""
    found = []
    for ids in texts:
        loaded.cache.reset()
        found.append(loaded.model.forward(ids, loaded.cache, keep=len(ids)).argmax(-1))
    return torch.cat(found)


def as_peer(weight: Tensor, bits: int) -> Tensor:
    """Round to Q4_0 or Q8_0 and back: 32 columns share one fp16 scale, taken from their largest value."""
    groups = weight.float().view(-1, 32)
    if bits == 8:
        scale = (groups.abs().amax(1, keepdim=True) / 127).half().float()
        values = (groups / scale.clamp_min(1e-12)).round()
    else:
        extreme = groups.gather(1, groups.abs().argmax(1, keepdim=True))
        scale = (extreme / -8).half().float()
        values = torch.where(scale == 0, 0, groups / scale).add(8.5).floor().clamp(0, 15) - 8
    return (values * scale).view(weight.shape).to(weight.dtype)


def peer_like(bits: int, folder: Path) -> LoadedModel:
    """Return the model in bf16 with all matrices, including the embedding, rounded like llama.cpp."""
    shutil.copytree(MODEL, folder, dirs_exist_ok=True)
    tensors = load_file(MODEL / "model.safetensors")
    changed = {name: as_peer(value, bits) if value.dim() == 2 else value for name, value in tensors.items()}
    save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
    return load("bf16", folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", default="evaluation.json")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="ask only every Nth question")
    options = parser.parse_args()
    prepare_environment()
    sys.path.insert(0, str(ROOT / "packaging" / "builtin_model"))
    from corpus import read_intents, read_questions
    from tokenizer import ASSISTANT, END, USER
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    right = {intent.name: set(intent.answers) for intent in read_intents()}
    asked = [(name, q) for name, questions in read_questions(options.questions).items() for q in questions]
    asked = asked[:: options.every]
    prompts = [tokenizer.encode(f"{USER}{question.strip()}{END}{ASSISTANT}").ids for _, question in asked]
    end = tokenizer.token_to_id(END)
    exact = load("bf16")
    answers = [answer(exact, prompt, end) for prompt in prompts]
    texts = [prompt + reply for prompt, reply in zip(prompts, answers, strict=True)]
    expected = likeliest(exact, texts)
    exact.close()
    results = []
    for name in ("bf16", "int8", "int4", "Q8_0", "Q4_0"):
        folder = Path(tempfile.mkdtemp())
        loaded = peer_like(int(name[1]), folder) if name.startswith("Q") else load(name)
        replies = [answer(loaded, prompt, end) for prompt in prompts]
        texts_of = [tokenizer.decode(reply, skip_special_tokens=True).strip() for reply in replies]
        results.append({
            "format": name,
            "top1": round(float((likeliest(loaded, texts) == expected).float().mean()), 4),
            "same_answer": round(sum(a == b for a, b in zip(replies, answers, strict=True)) / len(asked), 4),
            "as_intended": round(sum(t in right[n] for t, (n, _) in zip(texts_of, asked, strict=True)) / len(asked), 4),
        })  # fmt: skip
        loaded.close()
        shutil.rmtree(folder)
        print(*results[-1].values(), flush=True)
    print(json.dumps({"positions": len(expected), "questions": len(asked), "formats": results}))


if __name__ == "__main__":
    main()
