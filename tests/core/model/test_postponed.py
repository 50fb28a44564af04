"""Weights converted one matrix at a time: the same as in a loaded tree, and never the entire model in memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from core.model.filling import fill
from core.model.linear_weights import matrices
from core.model.model_source import open_source
from core.model.postponed import Postponed, parameter_name, untied
from core.model.trace import survey
from core.paths import SHAPE_PREFIX
from core.weights.random_weights import RandomWeights
from tests.core.families import make_model
from tests.core.tiny_tokenizer import write_tokenizer


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "gpt_oss", "deepseek_v3", "llama", "gpt2", "phi3"])
def test_every_matrix_is_what_the_filled_tree_holds(family: str, tmp_path: Path) -> None:
    make_model(family, tmp_path, dtype=torch.bfloat16)
    whole, source = open_source(tmp_path), open_source(tmp_path)
    spec = survey(source.module)
    later = Postponed(untied(source.module, spec.linears))
    for _ in fill(source.module, source.weights, later):
        pass
    for _ in fill(whole.module, whole.weights):
        pass
    names = [linear for linear in spec.linears if parameter_name(source.module, linear) in later]
    assert names
    for _ in range(2):  # an interrupted conversion is repeated
        for linear in names:
            made = list(later.matrices(source.module, linear))
            held = list(matrices(whole.module, linear))
            assert len(made) == linear.matrices
            assert all(torch.equal(one, other) for one, other in zip(made, held, strict=True))


def test_a_tied_head_is_not_postponed(tmp_path: Path) -> None:
    make_model("llama", tmp_path, tie_word_embeddings=True)
    module = open_source(tmp_path).module
    assert not {"lm_head.weight", "model.embed_tokens.weight"} & untied(module, survey(module).linears)


def test_a_part_of_random_weights_is_that_part(tmp_path: Path) -> None:
    make_model("mixtral", tmp_path)
    made = RandomWeights(open_source(tmp_path).module)
    name = "model.layers.0.mlp.experts.down_proj"
    assert all(torch.equal(made.part(name, index), made[name][index]) for index in range(4))
    assert not torch.equal(made.part(name, 0), made.part(name, 1))
    assert SHAPE_PREFIX + "qwen3-moe-8l" == "shape:qwen3-moe-8l"


LOAD = """
import json, re, sys, threading
from pathlib import Path
from core.startup.environment import prepare_environment
prepare_environment()
from core.events import LoadOptions
from core.model import model_source
from core.runtime.loader import load_model
from core.weights.known_shapes import shape

model_source.shape = lambda name: shape(name) | json.loads(sys.argv[2])

def own():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) << 10

done, peak = threading.Event(), 0
def watch():
    global peak
    while not done.wait(0.002):
        peak = max(peak, own())
steps = load_model(sys.argv[1], LoadOptions(format="int4", context=256, threads=1))
# What comes before is not the model's: imports, and what measuring this machine takes.
next(step for step in steps if step.fraction >= 0.1)
before = own()
thread = threading.Thread(target=watch)
thread.start()
*_, loaded = steps
done.set()
thread.join()
print(json.dumps({"peak": max(peak, own()) - before, "told": loaded.plan.load_peak}))
"""


def loaded_peak(model: str, **changes: object) -> dict[str, int]:
    """Load in another process; return its peak of private bytes, and the plan's prediction `told`."""
    run = subprocess.run(
        [sys.executable, "-c", LOAD, model, json.dumps(changes)],
        capture_output=True, text=True, check=True, timeout=250,
    )  # fmt: skip
    found: dict[str, int] = json.loads(run.stdout.splitlines()[-1])
    return found


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the system tells it in another way")
def test_loading_experts_takes_no_more_memory_than_the_plan_says(tmp_path: Path) -> None:
    sizes = {"hidden_size": 512, "moe_intermediate_size": 768, "num_experts": 40, "num_hidden_layers": 4}
    make_model("qwen3_moe", tmp_path, dtype=torch.bfloat16, **sizes)
    write_tokenizer(tmp_path)
    stored = sum(file.stat().st_size for file in tmp_path.glob("*.safetensors"))
    layer = 40 * 3 * 512 * 768 * 2
    assert stored > 4 * layer
    for _ in ("converted", "found converted"):
        found = loaded_peak(str(tmp_path))
        assert found["peak"] <= found["told"] < stored
        assert found["peak"] <= layer


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the system tells it in another way")
def test_a_large_head_is_converted_some_rows_at_a_time() -> None:
    vocabulary, hidden = 120_000, 512
    head, packed = 2 * vocabulary * hidden, vocabulary * hidden * 7 // 8
    small = {"num_hidden_layers": 1, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 4}
    found = loaded_peak(
        f"{SHAPE_PREFIX}tinyllama-1.1b", vocab_size=vocabulary, hidden_size=hidden, tie_word_embeddings=False, **small
    )
    # The input embedding as stored, and the head as kept, but not the head as stored.
    assert found["peak"] <= found["told"] < 2 * head
    assert found["peak"] <= head + packed + (48 << 20)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the system tells it in another way")
def test_experts_that_are_converted_leave_no_holes() -> None:
    cut = {"hidden_size": 768, "num_experts": 24, "num_hidden_layers": 8, "vocab_size": 4096}
    found = loaded_peak(f"{SHAPE_PREFIX}qwen3-moe-8l", **cut)
    assert found["peak"] <= found["told"]
