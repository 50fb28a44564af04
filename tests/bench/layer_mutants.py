"""The mutations of layers for `tests.bench.missing_waits`: moves of states and rows, and experts on a device."""

from __future__ import annotations

from functools import partial

from tests.bench.mutants import COPIES, Mutant

ATTENTION, PACKED, RECENT = "layers/attention.py", "layers/kv_packed.py", "layers/kv_recent.py"
CPU_LAYERS, MIRROR = "layers/cpu_layers.py", "layers/kv_mirror.py"
CACHE, EXCHANGE = "layers/expert_cache.py", "layers/expert_exchange.py"
LISTED = "layers/held_at_once.py"
IN_RAM = partial(Mutant, tests="packed_states", files=("second_device/test_states.py",))
BESIDE = partial(Mutant, tests="on_the_card and llama", files=("second_device/test_cpu_layers.py",))
DRAFTS = partial(Mutant, tests="no_token_changes", files=("second_device/test_drafts.py",))
LATENT = partial(Mutant, tests="beside_a_card", files=("layers/test_latent_attention.py",))
SIGHT = partial(Mutant, files=("vision/test_placed_sight.py",))
HELD = partial(Mutant, tests="changed_in_mid_reply and qwen3_moe", files=("layers/test_held_at_once.py",))
EXCHANGED = partial(Mutant, tests="expert or copies", files=("second_device/test_exchanges.py",))
ONE_BY_ONE = partial(Mutant, tests="random_placements and second", files=("layers/test_expert_cache.py",))
LAYERS = (
    Mutant(
        "the halves of gate and up are joined on the device",
        "offload/halves.py",
        "self._accelerator.to_device(self.here())",
        "self.here()",
        "not_elementwise",
    ),
    SIGHT(
        "embeddings of pictures go to the device",
        COPIES,
        "states.to(self._device)",
        "states",
        tests="on_a_device_from_ram",
    ),
    SIGHT(
        "rows of placeholders go to the device",
        COPIES,
        "        found: Tensor = self._tensor[rows]\n        return self._accelerator.to_device(found)",
        "        found: Tensor = self._tensor[rows]\n        return found",
        tests="on_a_device_from_ram",
    ),
    BESIDE(
        "hidden states come to layers of the CPU",
        CPU_LAYERS,
        "self._accelerator.to_host(x).result()",
        "x",
    ),
    BESIDE(
        "they are waited for",
        CPU_LAYERS,
        "self._accelerator.to_host(x).result()",
        "self._accelerator.to_host(x)._host",
    ),
    BESIDE(
        "results of layers of the CPU go to the device",
        CPU_LAYERS,
        "self._accelerator.to_device(x) if x is self._left else x",
        "x",
    ),
    LATENT(
        "queries of latents come to the CPU",
        ATTENTION,
        "latents.heads.queries(query.cpu())",
        "latents.heads.queries(query)",
    ),
    LATENT("they travel to latents that lie elsewhere", ATTENTION, "rows = query.to(keys.device)", "rows = query"),
    LATENT("what they see comes to the CPU", ATTENTION, "seen_part.cpu()", "seen_part"),
    IN_RAM(
        "many new tokens travel to the newest ones",
        RECENT,
        "torch.cat((one, new.to(one.device)), 2)",
        "torch.cat((one, new), 2)",
    ),
    IN_RAM(
        "packed states are handed over where attention is its own",
        PACKED,
        "stored.floats(recent.dtype, mixed=mixed).to(self.home)",
        "stored.floats(recent.dtype, mixed=mixed)",
    ),
    IN_RAM(
        "parked inputs of convolutions go to the device",
        "layers/kv_states.py",
        "            there = tensor.to(device)\n",
        "            there = tensor\n",
        tests="parked",
    ),
    IN_RAM(
        "parked states come to RAM",
        "layers/kv_states.py",
        'one.to("cpu", copy=True)',
        "one.clone()",
        tests="parked",
    ),
    Mutant(
        "the transform of packed states lies where they do",
        PACKED,
        "hadamard(self.recent.keys.shape[3]).to(self.keys.device)",
        "hadamard(self.recent.keys.shape[3])",
        "test_graphs and several_rows and whole-int8-llama",
    ),
    Mutant(
        "the same without graphs",
        "kernels/packed_states.py",
        "hadamard(x.shape[-1]).to(x.device)",
        "hadamard(x.shape[-1])",
        "test_graphs and several_rows and whole-int8-llama",
    ),
    Mutant(
        "a copy of the KV cache is waited for",
        MIRROR,
        "self._accelerator.to_host(whole).result()",
        "self._accelerator.to_host(whole)._host",
        "follows_what_is_added and second",
        ("layers/test_kv_mirror.py",),
    ),
    DRAFTS(
        "what the target lends goes to an assistant's device",
        "model/assistant.py",
        "one.to(last.device, module.dtype)",
        "one.to(module.dtype)",
    ),
    DRAFTS(
        "its state comes to the table of clusters",
        "model/assistant.py",
        "state.flatten().cpu()",
        "state.flatten()",
    ),
    DRAFTS("states go to the head that guesses ahead", "model/mtp.py", "self.states.to(embedded)", "self.states"),
    HELD(
        "lists of held experts go to the device",
        LISTED,
        "self.accelerator.together_to_device([*lists, rows_here, choices_here])",
        "[*lists, rows_here, choices_here]",
    ),
    ONE_BY_ONE(
        "places of an expert's tokens go to the device",
        CACHE,
        "part.to(self._accelerator.device) for part in",
        "part for part in",
    ),
    ONE_BY_ONE("shares come to the CPU's experts", CACHE, "routed.shares.cpu()", "routed.shares"),
    ONE_BY_ONE("their results go to the device", CACHE, "self._accelerator.to_device(found.y)", "found.y"),
    HELD(
        "an expert's copy is recorded",
        EXCHANGE,
        "        arrived.record(self._stream)\n",
        "",
        tests="what_is_replaced_counts",
    ),
    EXCHANGED(
        "an expert's copy waits for who had its memory",
        EXCHANGE,
        "        follow(self._accelerator, self._stream)  # the spare memory may still be read\n",
        "",
    ),
    EXCHANGED(
        "copies of experts are waited for at the end",
        EXCHANGE,
        "        self._stream.synchronize()\n",
        "",
    ),
)
