"""Measures the gain of an MTP head or assistant that is always right, streamed to a simulated card and on the CPU.

    python -m tests.bench.mtp [--family glm4_moe] [--hidden 1536] [--layers 12] [--simulate-gpu SPEC] [--strategy S]

Creates a checkpoint of realistic cost whose tokens follow a fixed order that its head (`tests.core.mtp_heads`) or its
assistant (family gemma4_text, `tests.core.assistants`) knows as well. Acceptance is 1 by design, so the path is
measured. Plain and drafted passes alternate. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from core.commands.arguments import size
from core.commands.bench import STRATEGIES
from core.events import LOOKUP, MTP, LoadOptions, Sampling, never
from core.generation.generate import DrawnToken, generate
from core.generation.sampler import TokenSampler, resolve
from core.planning.drafting import prices
from core.runtime.loaded_model import LoadedModel
from core.runtime.loader import load_model
from tests.bench.speculation import Counted
from tests.core.assistants import make_pair
from tests.core.families import EXPERT_FAMILIES, make_model
from tests.core.mtp_heads import add_mtp, make_predictable
from tests.core.tiny_tokenizer import write_tokenizer

ASSISTED = "gemma4_text"


def checkpoint(folder: Path, options: argparse.Namespace) -> Path:
    heads = options.hidden // 128
    sizes = {
        "hidden_size": options.hidden, "num_hidden_layers": options.layers, "intermediate_size": 3 * options.hidden,
        "num_attention_heads": heads, "num_key_value_heads": max(1, heads // 4), "head_dim": 128,
        "vocab_size": options.vocabulary, "tie_word_embeddings": False,
    }  # fmt: skip
    # Every token uses all experts: a pass of several rows reads no more of them than a pass of one row.
    experts = {
        "n_routed_experts": 2, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1,
        "moe_intermediate_size": 3 * options.hidden // 2,
    }  # fmt: skip
    recurrent = {
        "linear_key_head_dim": 128, "linear_value_head_dim": 128, "linear_num_key_heads": heads,
        "linear_num_value_heads": heads,
    }  # fmt: skip
    sizes |= experts if options.family in EXPERT_FAMILIES else recurrent
    made = make_model(options.family, folder, torch.bfloat16, spread=0.02, **sizes)
    write_tokenizer(made)
    return make_predictable(add_mtp(made, options.family), options.family)


def pair(folder: Path, options: argparse.Namespace) -> tuple[Path, str]:
    """Make a model that can draft; return its folder, and who drafts as in `LoadOptions.draft`."""
    if options.family != ASSISTED:
        return checkpoint(folder, options), MTP
    heads = {"num_attention_heads": options.hidden // 128, "num_key_value_heads": 2}
    shared = heads | {"head_dim": 128, "global_head_dim": 128, "vocab_size": options.vocabulary, "sliding_window": 512}
    kinds = ["sliding_attention", "sliding_attention", "full_attention"] * (options.layers // 3)
    sizes = {
        "hidden_size": options.hidden, "num_hidden_layers": len(kinds), "layer_types": kinds, "enable_moe_block": False,
        "intermediate_size": 3 * options.hidden, "vocab_size_per_layer_input": options.vocabulary, "spread": 0.02,
    }  # fmt: skip
    text = shared | {"intermediate_size": options.hidden}
    target, assistant = make_pair(folder, torch.bfloat16, sizes=sizes | shared, text=text)
    return target, str(assistant)


def load(folder: Path, options: argparse.Namespace, draft: str) -> LoadedModel:
    wishes = LoadOptions(vram=options.vram, format="bf16", context=1024, simulate_gpu=options.simulate_gpu, draft=draft)
    *_, model = load_model(folder, wishes, options.strategy)
    assert isinstance(model, LoadedModel)
    return model


def rate(model: LoadedModel, count: int) -> tuple[float, list[int], Counted]:
    """Return tokens/s of `count` tokens after the first ones, during which draft sizes settle."""
    model.cache.reset()
    ids = list(range(7, 71))
    ahead = Counted([model.draft.drafter(model.cache, ids)] if model.draft else [])
    tokens, moments = list[int](), list[float]()
    sample = TokenSampler(resolve(Sampling(temperature=0.0), Sampling()))
    for step in generate(model.model, model.cache, ids, sample, never, model.plan.prefill_chunk, ahead):
        if isinstance(step, DrawnToken):
            tokens.append(step.id)
            moments.append(time.perf_counter())
        if len(tokens) >= count + 16:
            break
    return (len(moments) - 16) / (moments[-1] - moments[15]), tokens, ahead


def measured(folder: Path, options: argparse.Namespace, drafter: str) -> dict[str, Any]:
    plain, drafted = load(folder, options, LOOKUP), load(folder, options, drafter)
    assert drafted.draft is not None
    pairs = []
    for _ in range(options.rounds):
        before, expected, _ = rate(plain, options.tokens)
        after, found, ahead = rate(drafted, options.tokens)
        assert expected[: len(found)] == found[: len(expected)]
        pairs.append((before, after))
    asked = prices(drafted.plan, drafted.draft.plan)
    return {
        "tok_s": round(statistics.median(before for before, _ in pairs), 2),
        "with_drafts": round(statistics.median(after for _, after in pairs), 2),
        "ratio": round(statistics.median(after / before for before, after in pairs), 3),
        "predicted_ratio": round(ahead.tokens / sum(map(asked.of_pass, ahead.sizes)), 3),
        "expected_gain": round(drafted.draft.gain, 3),
        "acceptance": ahead.acceptance,
        "tokens_per_pass": ahead.tokens_per_pass,
        "bytes_of_the_head": drafted.draft.nbytes,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=("glm4_moe", "qwen3_5_text", ASSISTED), default="glm4_moe")
    parser.add_argument("--hidden", type=int, default=1536)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--vocabulary", type=int, default=16384)
    parser.add_argument("--strategy", choices=STRATEGIES, default="stream")
    parser.add_argument("--simulate-gpu", default="vram=384MiB,link=3GB/s,cores=1")
    parser.add_argument("--vram", type=size)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    options.simulate_gpu = options.simulate_gpu or None
    with tempfile.TemporaryDirectory() as folder:
        made, drafter = pair(Path(folder), options)
        print(json.dumps(measured(made, options, drafter)))


if __name__ == "__main__":
    main()
