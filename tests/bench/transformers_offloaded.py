"""transformers with accelerate's offloading on a shape in bf16: the usual way to run a model larger than the card.

    python -m tests.bench.transformers_offloaded --shape opt-30b --vram-gib 24

Prints one JSON line last, with the keys of `core bench`. Without a card, all of it runs on the processor.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from typing import Any

import psutil
import torch
from accelerate import dispatch_model, infer_auto_device_map

from core.weights.known_shapes import shape
from tests.bench.transformers_eager import build, measure

GIB = 2**30
RAM_SHARE = 0.9
"""Of the free memory, what accelerate may use."""


def offloaded(model: Any, vram_gib: float) -> Any:
    """Return the model with its layers on the card as far as they fit into `vram_gib`, and the others in RAM."""
    if not torch.accelerator.is_available():
        return model
    limits = {0: int(vram_gib * GIB), "cpu": int(psutil.virtual_memory().total * RAM_SHARE)}
    layer = type(model.get_decoder().layers[0]).__name__
    places = infer_auto_device_map(model, max_memory=limits, no_split_module_classes=[layer])
    return dispatch_model(model, places)


def measured(config: dict[str, Any], vram_gib: float, prompt_tokens: int, new_tokens: int) -> dict[str, Any]:
    """Return the speed of a model of this configuration, and the most memory that it took of the card."""
    model = offloaded(build(config, "sdpa"), vram_gib)
    prompt = random.Random(0).choices(range(model.config.vocab_size), k=prompt_tokens)
    prefill, steps = measure(model, prompt, new_tokens)
    return {
        "prefill_tok_s": round(prompt_tokens / prefill, 2),
        "decode_tok_s": round(1 / statistics.median(steps), 3),
        "peak_vram_bytes": torch.accelerator.max_memory_allocated() if torch.accelerator.is_available() else 0,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="opt-6.7b")
    parser.add_argument("--vram-gib", type=float, default=8.0)
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--new-tokens", type=int, default=16)
    options = parser.parse_args()
    found = measured(shape(options.shape), options.vram_gib, options.prompt_tokens, options.new_tokens)
    print(json.dumps({"engine": "accelerate", "shape": options.shape, "vram_gib": options.vram_gib, **found}))


if __name__ == "__main__":
    main()
