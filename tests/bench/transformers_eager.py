"""transformers' eager forward pass on a shape in bf16, as a peer for `against_llama_cpp`.

    python -m tests.bench.against_llama_cpp --pairs bf16:eager --peer python tests/bench/transformers_eager.py

Takes the peer's options and prints its JSON line. Uses `core` for the shape's dimensions and names only.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache
from transformers.initialization import no_init_weights

sys.path.insert(0, str(Path(__file__).parents[2]))
from core.layers.kv_cache import cache_argument
from core.weights.known_shapes import shape


def build(config: dict[str, Any], attention: str) -> Any:
    """Return a model of this configuration with random weights in bf16."""
    with no_init_weights():
        model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(**config), dtype=torch.bfloat16, attn_implementation=attention
        )
    block = torch.empty(1 << 22).normal_(0, 0.02).bfloat16()
    for value in model.parameters():
        flat = value.data.view(-1)
        for start in range(0, flat.numel(), block.numel()):
            flat[start : start + block.numel()] = block[: flat.numel() - start]
    return model.eval()


@torch.inference_mode()
def measure(model: Any, prompt: list[int], new_tokens: int) -> tuple[float, list[float]]:
    model(input_ids=torch.tensor([prompt[:16]]))
    cache = {cache_argument(model): DynamicCache(config=model.config)}
    began = time.perf_counter()
    model(input_ids=torch.tensor([prompt]), logits_to_keep=1, **cache)
    prefill = time.perf_counter() - began
    steps = []
    for token in prompt[:new_tokens]:
        began = time.perf_counter()
        model(input_ids=torch.tensor([[token]]), **cache)
        steps.append(time.perf_counter() - began)
    return prefill, steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="llama-3.2-1b")
    parser.add_argument("--quant", default="eager", help="not used: always bf16")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt-tokens", type=int, default=256)
    parser.add_argument("--new-tokens", type=int, default=64)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = build(shape(options.shape), "eager")
    rng = random.Random(0)
    prompt = [rng.randrange(model.config.vocab_size) for _ in range(options.prompt_tokens)]
    prefill, steps = measure(model, prompt, options.new_tokens)
    p50 = statistics.median(steps)
    print(json.dumps({
        "engine": "transformers eager", "shape": options.shape, "threads": options.threads,
        "prefill_tok_s": round(len(prompt) / prefill, 1), "decode_tok_s": round(1 / p50, 2),
        "decode_ms_p50": round(1e3 * p50, 2),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
