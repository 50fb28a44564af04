"""The mutations of `tests.bench.missing_waits`: what is removed, and the tests that should notice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

SECOND = tuple(f"second_device/test_{name}.py" for name in ("device", "engine", "graphs", "gaps", "heads"))


@dataclass(frozen=True)
class Mutant:
    """A mutation: in one file of `core`, `old` becomes `new`. `tests`: the tests that should fail, as for pytest -k, in
    these `files` of `tests/core`."""

    what: str
    file: str
    old: str
    new: str
    tests: str
    files: Sequence[str] = SECOND


CARD, RING, LINEAR = "accelerators/card.py", "offload/parameter_manager.py", "offload/hetero_linear.py"
PLACEMENT, COPIES, CACHE = "model/placement.py", "model/device_copies.py", "layers/kv_layers.py"
HEADS = "layers/divided_attention.py"
STREAMING = "storage_is_streamed or ring_keeps or slow_link"
CONTROL = Mutant("nothing", CARD, "class Card:", "class Card:", "test_device and pinning")
WAITS = (
    Mutant(
        "streams wait for events",
        CARD,
        "                stream.wait_event(self._event)",
        "                pass",
        "test_device",
    ),
    Mutant(
        "what is launched waits for an event", CARD, "        event.hold(self.current())", "        pass", STREAMING
    ),
    Mutant("a copy stream waits for an event", CARD, "        event.hold(self.raw)", "        pass", STREAMING),
    Mutant(
        "the host waits for an event",
        CARD,
        "                self._event.synchronize()",
        "                pass",
        "test_device",
    ),
    Mutant("the host waits for a stream", CARD, "            self.raw.synchronize()", "            pass", STREAMING),
    Mutant(
        "events are recorded in the stream of the copies",
        CARD,
        "self._card.current() if stream is None else stream.raw",
        "self._card.current()",
        STREAMING,
    ),
    Mutant(
        "copies go to their stream and no other",
        CARD,
        "with self.failures(), stream.entered():",
        "with self.failures():",
        STREAMING + " or test_device",
    ),
    Mutant("a result is waited for", CARD, "        self._arrived.synchronize()\n", "", "test_device or every_family"),
    Mutant("a result's arrival is recorded", CARD, "                self._arrived.record()\n", "", "every_family"),
    Mutant(
        "the device is waited for as a whole",
        CARD,
        "            torch.accelerator.synchronize(self.device)",
        "            pass",
        "test_device or test_engine",
    ),
    Mutant(
        "the first touch is waited for", CARD, "            torch.accelerator.synchronize(device)\n", "", "test_device"
    ),
    Mutant(
        "a slot's host side is copied before it is filled", RING, "        slot.copied.synchronize()\n", "", STREAMING
    ),
    Mutant("a slot is free before it is overwritten", RING, "        self._stream.wait(slot.freed)\n", "", STREAMING),
    Mutant("a slot's copy is recorded", RING, "        slot.copied.record(self._stream)\n", "", STREAMING),
    Mutant(
        "what is launched waits for a slot's copy",
        RING,
        "        self._accelerator.wait(fetched.slot.copied)\n",
        "",
        STREAMING,
    ),
    Mutant(
        "the use of a slot is recorded",
        RING,
        "            self._accelerator.record(fetched.slot.freed)",
        "            pass",
        STREAMING,
    ),
    Mutant(
        "a new slot waits for who had its memory", RING, "        self._accelerator.record(freed)\n", "", "new_memory"
    ),
    Mutant("copies to new memory wait for who had it", RING, "    follow(accelerator, stream)\n", "", "new_memory"),
    Mutant(
        "the same of tensors that are no rows",
        COPIES,
        "        follow(self._accelerator, self._stream)\n",
        "",
        "new_memory",
    ),
    Mutant(
        "rows that come to stay are waited for",
        RING,
        "    stream.synchronize()\n    return weight",
        "    return weight",
        STREAMING,
    ),
    Mutant(
        "tensors that come to stay are waited for",
        COPIES,
        "        self._stream.synchronize()\n",
        "",
        "come_to_stay",
    ),
    Mutant(
        "inputs are there when work is captured",
        CARD,
        "        self._captures = self._captures or self.stream()\n        self.synchronize()\n",
        "        self._captures = self._captures or self.stream()\n",
        "test_device and captured_is_done",
    ),
    Mutant(
        "a ring that closes waits for its copies",
        RING,
        "            self._accelerator.synchronize()\n        self._free",
        "            pass\n        self._free",
        "closed",
    ),
)
MOVES = (
    Mutant(
        "the input comes to the host",
        LINEAR,
        "Brought(self._accelerator.to_host(x))",
        "Brought(type('Same', (), {'result': lambda _: x})())",
        STREAMING,
    ),
    Mutant(
        "the CPU's part of a result goes to the device",
        LINEAR,
        "zip(hosted, self.accelerator.together_to_device(found), strict=True)",
        "zip(hosted, found, strict=True)",
        "divided_by_columns",
    ),
    Mutant(
        "looked-up rows of the input table go to the device",
        COPIES,
        "        return self._accelerator.to_device(self.table(ids.cpu()))",
        "        return self.table(ids.cpu())",
        "every_family",
    ),
    Mutant("ids come to the input table", COPIES, "self.table(ids.cpu())", "self.table(ids)", "ids_on"),
    Mutant(
        "biases go to the device",
        PLACEMENT,
        "                    linear.bias = self._uploads.tensor(linear.host_bias)",
        "                    pass",
        "every_family and gpt2",
    ),
    Mutant(
        "norms and buffers go to the device",
        COPIES,
        "            holder[name] = moved[id(tensor)]",
        "            pass",
        "every_family",
    ),
    Mutant(
        "a whole weight goes to the device",
        LINEAR,
        "        return self.accelerator.to_device(self.host.whole())",
        "        return self.host.whole()",
        "every_family",
    ),
    Mutant(
        "states in RAM go to the device",
        LINEAR,
        "            given = self.accelerator.to_device(given)",
        "            pass",
        "in_ram",
    ),
    Mutant(
        "states are handed over where attention is its own",
        CACHE,
        "(keys.to(self.home), values.to(self.home))",
        "(keys, values)",
        "in_ram",
    ),
    Mutant(
        "a query travels to states that lie elsewhere",
        "layers/attention.py",
        "    if (home := keys.rows.device) != query.device:",
        "    if False:",
        "in_ram",
    ),
    Mutant(
        "tokens of an expert go to the device",
        "layers/moe.py",
        "(part.to(hidden_states.device) for part",
        "(part for part",
        "every_family and mixtral",
    ),
)
DIVIDED_HEADS = (
    Mutant(
        "hidden states are waited for", HEADS, "brought.result()", "brought._host", "test_heads and undivided and llama"
    ),
    Mutant(
        "the CPU's sum goes to the device",
        HEADS,
        "accelerator.to_device(rest)",
        "rest",
        "test_heads and undivided and llama",
    ),
    Mutant(
        "positions and masks come to RAM",
        HEADS,
        "self.activations.on_host(value) if isinstance(value, Tensor) else value",
        "value",
        "test_heads and undivided and llama",
    ),
    Mutant(
        "norms of queries and keys come to RAM", HEADS, "one.detach().cpu()", "one.detach()", "test_heads and norms_of"
    ),
    Mutant("new tokens are counted", HEADS, "        layer.length += rows\n", "", "test_heads and undivided and llama"),
    Mutant(
        "biases are divided",
        HEADS,
        "linear.host_bias[resident.rows :]",
        "linear.host_bias",
        "test_heads and undivided and qwen2",
    ),
    Mutant(
        "a cache that is divided otherwise is not taken",
        HEADS,
        " and layer.keys.there.shape[1] == self._heads",
        "",
        "test_heads and otherwise",
    ),
    Mutant(
        "results of the CPU's heads go to the device",
        "layers/attention.py",
        "rest.to(query.device)",
        "rest",
        "test_heads and undivided and llama",
    ),
)
