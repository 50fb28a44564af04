"""Compares every kind of model that transformers can generate text with to transformers' own tokens.

    python -m tests.bench.families_sweep RESULTS.jsonl [--kinds a,b] [--jobs 1] [--seconds 300] [--gib 4]

For each kind, a tiny random model (`tests.bench.tiny_kinds`) is saved as safetensors and loaded by the engine in 32
bits. Three turns are compared: a prompt, a second turn behind the first reply, and an edit that cuts the KV cache. The
reference is transformers' `generate` on the whole text of the turn. The model must also answer in int8, and
`core plan` must accept it. Each kind runs in a process of its own, with a limit of time and of memory (on Linux), and
adds one line of JSON to RESULTS.jsonl; kinds that have a line are not run again. The last line printed counts verdicts:

    same        all tokens are transformers'
    wrong       a token is not; `turn`, `at`, and the margin of transformers' choice over the next token (logits)
    refused     the engine says in a sentence that it does not run the kind
    failed      the engine opens it, and a turn, int8 or the plan ends in a sentence
    broken      a traceback, a crash, or the limit of time or memory
    no model    no tiny model of it can be made, or transformers itself does not answer
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from core.errors import HeteGenError, UnsupportedModel
from core.startup.environment import prepare_environment

NEW_TOKENS = (16, 12, 12)
Result = dict[str, Any]


class Verdict(Exception):
    """Ends the examination of a kind with what was found."""

    def __init__(self, verdict: str, **details: Any) -> None:
        self.result = {"verdict": verdict, **details}


def examine(kind: str, folder: Path) -> Result:
    """Make a tiny model of the kind, and compare its turns, its int8 and its plan. Raises Verdict."""
    from tests.bench.tiny_kinds import make_kind
    from tests.core.greedy import OPTIONS, GreedyPath

    reference = _expect("no model", lambda: make_kind(kind, folder).from_pretrained(folder).eval())
    told = _expect("no model", lambda: _turns(partial(_reference, reference)))
    path = _ours("open", lambda: GreedyPath(folder))
    for number, (prompt, expected) in enumerate(told):
        found = _ours(f"turn {number + 1}", partial(path.tokens, prompt, len(expected)))
        if found != expected:
            at = next(i for i, (one, other) in enumerate(zip(found, expected, strict=True)) if one != other)
            margin = _margin(reference, [*prompt, *expected[:at]])
            raise Verdict("wrong", turn=number + 1, at=at, margin=margin)
    _ours("int8", lambda: GreedyPath(folder, replace(OPTIONS, format="int8")).tokens(told[0][0], 4))
    _ours("plan", lambda: _plan(folder))
    return {"verdict": "same", "distinct": len({id for _, tokens in told for id in tokens})}


def _expect(verdict: str, work: Callable[[], Any]) -> Any:
    try:
        return work()
    except Exception as error:  # each architecture fails in its own way
        raise Verdict(verdict, **_told(error)) from error


def _ours(step: str, work: Callable[[], Any]) -> Any:
    """Do what the engine must be able to do."""
    try:
        return work()
    except HeteGenError as error:
        refused = step == "open" and isinstance(error, UnsupportedModel)
        sentences = " ".join(part for part in (error.what, error.why) if part)
        raise Verdict("refused" if refused else "failed", step=step, error=sentences) from error
    except Exception as error:
        raise Verdict("broken", step=step, **_told(error)) from error


def _told(error: Exception) -> Result:
    last = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{'/'.join(Path(last.filename).parts[-2:])}:{last.lineno}"
    return {"error": f"{type(error).__name__}: {str(error)[:300]}", "place": place}


def _turns(answer: Callable[[list[int], int], list[int]]) -> list[tuple[list[int], list[int]]]:
    """Return the three turns as (text before, transformers' tokens)."""
    from tests.core.greedy import random_prompt

    first = random_prompt(20)
    reply = answer(first, NEW_TOKENS[0])
    second = [*first, *reply, *random_prompt(9, seed=7)]
    edited = [*second[:27], *random_prompt(6, seed=8)]
    return [(first, reply)] + [
        (text, answer(text, count)) for text, count in zip((second, edited), NEW_TOKENS[1:], strict=True)
    ]


def _reference(model: Any, prompt: Sequence[int], count: int) -> list[int]:
    from tests.core.greedy import transformers_tokens

    tokens = transformers_tokens(model, prompt, count)
    if len(tokens) != count:
        raise ValueError(f"transformers answers with {len(tokens)} of {count} tokens")
    return tokens


def _margin(model: Any, text: list[int]) -> float:
    """Return how far transformers' choice of the next token lies above the second one."""
    import torch

    with torch.inference_mode():
        first, second = model(torch.tensor([text])).logits[0, -1].float().topk(2).values.tolist()
    return round(first - second, 5)


def _plan(folder: Path) -> None:
    from core.__main__ import main as command

    with contextlib.redirect_stdout(io.StringIO()):
        status = command(["plan", str(folder), "--json"])
    if status:
        raise RuntimeError(f"core plan exits with {status}")


def child(kind: str, gib: float, results: Connection) -> None:
    """Examine one kind in this process and send the result."""
    with contextlib.suppress(ImportError):  # there is none on Windows
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (int(gib * 2**30),) * 2)
    import torch

    torch.set_num_threads(1)
    quiet = contextlib.redirect_stderr(io.StringIO())
    with quiet, tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        try:
            result = examine(kind, Path(folder))
        except Verdict as verdict:
            result = verdict.result
    results.send(result)


def run(kind: str, context: Any, seconds: float, gib: float) -> Result:
    """Examine one kind in a process of its own."""
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=child, args=(kind, gib, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        result = ours.recv() if ours.poll(seconds) else {"verdict": "broken", "error": f"not ready in {seconds} s"}
    except EOFError:
        process.join()
        result = {"verdict": "broken", "error": f"the process ended with {process.exitcode}"}
    process.kill()
    process.join()
    return {"kind": kind, **result}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--kinds", default="", help="only these, separated by commas")
    parser.add_argument("--jobs", type=int, default=1, help="processes at once")
    parser.add_argument("--seconds", type=float, default=300, help="limit for each kind")
    parser.add_argument("--gib", type=float, default=4, help="memory limit for each kind")
    options = parser.parse_args()
    prepare_environment()
    from tests.bench.tiny_kinds import kinds

    lines = options.results.read_text(encoding="utf-8").splitlines() if options.results.exists() else []
    known = {result["kind"]: result for result in map(json.loads, lines)}
    wanted = [kind for kind in options.kinds.split(",") if kind] or kinds()
    context = multiprocessing.get_context("forkserver" if os.name == "posix" else "spawn")
    if os.name == "posix":  # children begin with torch and transformers imported
        context.set_forkserver_preload(["tests.bench.tiny_kinds", "tests.core.greedy"])  # type: ignore[attr-defined]
    examined = partial(run, context=context, seconds=options.seconds, gib=options.gib)
    with ThreadPoolExecutor(options.jobs) as pool, options.results.open("a", encoding="utf-8") as file:
        for done in as_completed([pool.submit(examined, kind) for kind in wanted if kind not in known]):
            result = done.result()
            known[result["kind"]] = result
            print(json.dumps(result), file=file, flush=True)
            print(*result.values(), flush=True)
    print(json.dumps(Counter(result["verdict"] for result in known.values())))


if __name__ == "__main__":
    main()
