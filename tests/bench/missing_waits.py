"""Mutation test of waits and copies between devices, and of captured passes: removes one at a time, runs the tests.

    python -m tests.bench.missing_waits [--only TEXT] [--skip N] [--count N]

Prints a table of what was removed and the first test that failed. Each mutant is a copy of `core` in a temporary
folder. Not part of the test suite because it takes minutes. Exits with 1 if a mutant survived.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import hypothesis  # noqa: F401  imported before forking, as transformers is
import pytest
import transformers.models.auto.modeling_auto  # noqa: F401

ROOT = Path(__file__).resolve().parents[2]
TESTS = [f"tests/core/second_device/test_{name}.py" for name in ("device", "engine", "graphs", "heads")]
LIMIT_S, OUTPUT = 300, "said.txt"


@dataclass(frozen=True)
class Mutant:
    """A mutation: in one file of `core`, `old` becomes `new`. `tests`: the tests that should fail, as for pytest -k."""

    what: str
    file: str
    old: str
    new: str
    tests: str


CARD, RING, LINEAR = "accelerators/card.py", "offload/parameter_manager.py", "offload/hetero_linear.py"
PLACEMENT, COPIES, CACHE = "model/placement.py", "model/device_copies.py", "layers/kv_layers.py"
CAPTURE, RUN = "model/captures.py", "model/captured_run.py"
HEADS = "layers/divided_attention.py"
GRAPH, STRETCH = "accelerators/graph.py", "layers/kv_stretch.py"
STREAMING = "storage_is_streamed or ring_keeps or slow_link"
CONTROL = Mutant("nothing", CARD, "class Card:", "class Card:", "pinning or llama")
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
CAPTURES = (
    Mutant(
        "captured work ends with its plan",
        CAPTURE,
        "        if self._whole is not None:\n            self._whole.drop()\n",
        "        return\n",
        "drops_what or end_with_their_plan",
    ),
    Mutant(
        "captured runs are freed at once", CAPTURE, "            run.remove()\n", "            pass\n", "freed_before"
    ),
    Mutant(
        "a captured model is freed at once",
        CAPTURE,
        "            self._whole.drop()\n",
        "            pass\n",
        "freed_before",
    ),
    Mutant(
        "a captured run is used with its own buffers only",
        RUN,
        "all(map(operator.is_, self.buffers, stretch.buffers)) and ",
        "",
        "cache_that_moved",
    ),
    Mutant(
        "a captured run is used for its own stretch only",
        RUN,
        "self.seen == stretch.seen and ",
        "",
        "every_family and llama",
    ),
    Mutant(
        "the places change from token to token",
        RUN,
        "captured.replay(stretch.places, ",
        "captured.replay(0 * stretch.places + 40, ",
        "taken_back",
    ),
    Mutant(
        "inputs change from token to token",
        GRAPH,
        "            self._put(there, value)\n",
        "            self._put(there, value) if value.device.type == 'cpu' else None\n",
        "are_divided and llama",
    ),
    Mutant(
        "the embedding rows change from token to token",
        CAPTURE,
        "torch.tensor([list(ids)])",
        "torch.tensor([[5 for _ in ids]])",
        "one_launch",
    ),
    Mutant(
        "a graph is for its own number of rows",
        RUN,
        "self._captured.get(stretch.rows)",
        "next(iter(self._captured.values()), None)",
        "several_rows and llama and bf16",
    ),
    Mutant(
        "windows end where they should",
        STRETCH,
        "(index > last - window)",
        "(index > last - 2 * window)",
        "several_rows",
    ),
    Mutant(
        "unpacked states are seen once",
        STRETCH,
        "older = _in_sight(index, last, window) & (index < first + ahead)",
        "older = _in_sight(index, last, window)",
        "several_rows and llama",
    ),
    Mutant("replayed tokens are counted", RUN, "            stretch.advance()\n", "", "several_tokens"),
    Mutant("the rest of a stretch is zeroed", RUN, "                stretch.blank()\n", "", "one_launch"),
    Mutant(
        "the cache keeps what the ordinary pass wrote",
        STRETCH,
        "                part.copy_(old)\n",
        "                pass\n",
        "something_else",
    ),
    Mutant(
        "writes of a failed pass are waited for",
        CARD,
        "            self.synchronize()  # its results",
        "            pass  # its results",
        "without_room",
    ),
    Mutant(
        "a captured run is compared with an ordinary one",
        RUN,
        "return _agree(replay(stretch.places, *piece.inputs).cpu(), expected)",
        "return replay(stretch.places, *piece.inputs).cpu() is not expected",
        "something_else",
    ),
    Mutant(
        "keys that are not there yet are masked",
        STRETCH,
        "else index <= last",
        "else index < last + seen",
        "one_launch",
    ),
    Mutant(
        "what comes between deferred layers is noticed",
        "model/resident_run.py",
        "if x is self._waiting and place",
        "if place",
        "comes_between",
    ),
    Mutant(
        "work runs once before it is captured",
        CARD,
        "self.can.without_waits():\n                work(*there)",
        "self.can.without_waits():\n                pass",
        "captured_is_done",
    ),
    Mutant("the memory of a dropped pass is freed", GRAPH, "        self._graph.reset()", "        pass", "its_own"),
)


DIVIDED_HEADS = (
    Mutant("hidden states are waited for", HEADS, "brought.result()", "brought._host", "undivided"),
    Mutant("the CPU's sum goes to the device", HEADS, "accelerator.to_device(rest)", "rest", "undivided"),
    Mutant(
        "positions and masks come to RAM",
        HEADS,
        "self.activations.on_host(value) if isinstance(value, Tensor) else value",
        "value",
        "undivided",
    ),
    Mutant("norms of queries and keys come to RAM", HEADS, "one.detach().cpu()", "one.detach()", "undivided"),
    Mutant("new tokens are counted", HEADS, "        layer.length += rows\n", "", "undivided"),
    Mutant("biases are divided", HEADS, "linear.host_bias[resident.rows :]", "linear.host_bias", "undivided"),
    Mutant(
        "a cache that is divided otherwise is not taken",
        HEADS,
        " and layer.keys.there.shape[1] == self._heads",
        "",
        "otherwise",
    ),
    Mutant(
        "results of the CPU's heads go to the device",
        "layers/attention.py",
        "rest.to(query.device)",
        "rest",
        "undivided",
    ),
)


def outcome(mutant: Mutant) -> str:
    """Return the first test that failed, '' if none did."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("core", "tests"):
            shutil.copytree(ROOT / name, Path(folder, name), ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "assets"):
            Path(folder, name).symlink_to(ROOT / name)
        path = Path(folder, "core", mutant.file)
        source = path.read_text(encoding="utf-8")
        if mutant.old not in source:
            raise SystemExit(f"{mutant.file} has changed: {mutant.old!r} is not there")
        path.write_text(source.replace(mutant.old, mutant.new), encoding="utf-8")
        return _outcome(Path(folder), mutant.tests)


def _outcome(folder: Path, tests: str) -> str:
    # Forked, with torch and transformers imported already: importing takes longer than most of the tests.
    child = multiprocessing.get_context("fork").Process(target=_test, args=(folder, tests))
    child.start()
    child.join(LIMIT_S)
    if child.is_alive():
        child.kill()
        return "hung"
    said = (folder / OUTPUT).read_text(encoding="utf-8", errors="replace").splitlines()
    failed = [line for line in said if line.startswith(("FAILED", "ERROR")) and "::" in line]
    if failed:
        return failed[0].split("::", 1)[1].split(" - ")[0]
    if child.exitcode == -signal.SIGSEGV:
        return "a fault ended the process"
    return f"the process ended ({child.exitcode}): {said[-1] if said else ''}" if child.exitcode else ""


def _test(folder: Path, tests: str) -> None:
    """Run a folder's tests with its `core`, in the child process."""
    os.chdir(folder)
    said = os.open(OUTPUT, os.O_CREAT | os.O_WRONLY)
    os.dup2(said, 1)
    os.dup2(said, 2)
    for name in [name for name in sys.modules if name.partition(".")[0] in ("core", "tests")]:
        del sys.modules[name]
    sys.path.insert(0, str(folder))
    code = pytest.main(
        ["-x", "-W", "ignore::pytest.PytestAssertRewriteWarning", "-q", "-p", "no:cacheprovider", "-k", tests, *TESTS]
    )
    sys.stdout.flush()
    os._exit(int(code))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="mutants whose description contains this")
    parser.add_argument("--skip", type=int, default=0, metavar="N", help="leave out the first N")
    parser.add_argument("--count", type=int, metavar="N", help="and end after N")
    options = parser.parse_args()
    if found := outcome(CONTROL):
        raise SystemExit(f"with nothing removed, this fails: {found}")
    survived = 0
    chosen = [one for one in (*WAITS, *MOVES, *CAPTURES, *DIVIDED_HEADS)[options.skip :] if options.only in one.what]
    for mutant in chosen[: options.count]:
        found = outcome(mutant)
        survived += not found
        print(f"| {mutant.what} | {mutant.file} | {found or 'SURVIVED'} |", flush=True)
    return int(survived > 0)


if __name__ == "__main__":
    sys.exit(main())
