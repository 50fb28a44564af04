"""Stress-tests the local server: `python -m tests.bench.serving MODEL [--seconds 60] [--schemas 500] [--fuzz 2000]`.

Prints one line each for: many clients at once with some disconnecting, fuzzed bodies, random JSON schemas, and the
speed of one stream, also with a grammar, relative to the engine's own.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import psutil

from core.engine import Engine
from core.events import Loaded, LoadOptions, Message, Request, Sampling, Stats
from core.server.engine_thread import EngineThread
from core.server.options import Limits, ServerOptions
from core.server.served import OneModel
from core.server.server import Server
from tests.bench.crowd import CHAT, CLIENTS, QUESTION, post


def many_clients(server: Server, seconds: float) -> str:
    """Serve a crowd in a process of its own; report the answers and any growth of memory and threads."""
    threads = threading.active_count()
    memory, answers = beside_crowd(server.port, seconds, lambda: None)
    while server.activity.running:
        time.sleep(0.05)
    gc.collect()
    return f"{answers}, memory {growth(memory):+.1f} MiB, threads {threading.active_count() - threads:+d}"


def beside_crowd(port: int, seconds: float, meanwhile: Callable[[], None]) -> tuple[list[int], str]:
    """Return this process's memory, sampled once a second during the crowd's requests, and the crowd's report."""
    process, memory, sampled = psutil.Process(), [], time.monotonic()
    program = [sys.executable, "-m", "tests.bench.crowd", str(port), str(seconds)]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as clients:
        while clients.poll() is None:
            meanwhile()
            time.sleep(0.001)
            if time.monotonic() - sampled > 1:
                sampled = time.monotonic()
                memory.append(process.memory_info().rss)
        assert clients.stdout is not None
        return memory, clients.stdout.read().strip()


def growth(memory: list[int]) -> float:
    """Return the growth, in MiB, from the second to the last third."""
    third = len(memory) // 3
    return (statistics.mean(memory[-third:]) - statistics.mean(memory[third : 2 * third])) / 2**20


def schemas(server: Server, count: int) -> str:
    """Request replies under random schemas at a high temperature; count those that parse and fit."""
    chance, good, cut = random.Random(0), 0, 0
    for number in range(count):
        schema = random_schema(chance)
        wanted = {"type": "json_schema", "json_schema": {"schema": schema}}
        body = {"messages": QUESTION, "seed": number, "temperature": 1.2, "max_tokens": 900, "response_format": wanted}
        status, text = post(server.port, json.dumps(body).encode())
        choice = json.loads(text)["choices"][0] if status == 200 else {"finish_reason": text}
        cut += choice["finish_reason"] != "stop"
        good += status == 200 and fits(schema, json.loads(choice["message"]["content"]))
    return f"{good} of {count} parse and fit, {cut} not finished"


def random_schema(chance: random.Random, depth: int = 0) -> dict[str, Any]:
    simple: list[dict[str, Any]] = [
        {"type": "string", "maxLength": chance.randint(1, 12)},
        {"type": "integer", "minimum": 0, "maximum": chance.randint(1, 10_000)},
        {"type": "boolean"},
        {"type": "null"},
        {"enum": ["red", "green", 'a "b"', 7]},
    ]
    if depth > 2 or (depth and chance.random() < 0.5):
        return chance.choice(simple)
    if depth and chance.random() < 0.3:
        return {"type": "array", "items": random_schema(chance, depth + 1), "minItems": 1, "maxItems": 3}
    properties = {f"field_{at}": random_schema(chance, depth + 1) for at in range(chance.randint(1, 4))}
    required = [name for name in properties if chance.random() < 0.8]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def fits(schema: dict[str, Any], value: Any) -> bool:
    match schema.get("type"):
        case "object":
            known = all(fits(schema["properties"][name], item) for name, item in value.items())
            return known and set(schema["required"]) <= set(value) <= set(schema["properties"])
        case "array":
            return 1 <= len(value) <= 3 and all(fits(schema["items"], item) for item in value)
        case "string":
            return isinstance(value, str) and len(value) <= schema["maxLength"]
        case "integer":
            return isinstance(value, int) and 0 <= value <= schema["maximum"]
        case "boolean":
            return isinstance(value, bool)
        case "null":
            return value is None
    return value in schema["enum"]


def fuzzed_bodies(server: Server, count: int) -> str:
    from tests.core.server.test_hostile import fuzzed

    chance, statuses = random.Random(1), Counter[int]()
    paths = (CHAT, "/v1/completions", "/v1/responses", "/v1/messages", "/v1/messages/count_tokens")
    for number in range(count):
        statuses[post(server.port, fuzzed(chance), paths[number % len(paths)], 60)[0]] += 1
    return str(dict(statuses))


def speeds(engine: Engine, server: Server) -> str:
    """Compare tokens per second, alternately: the engine alone, one stream, and a stream constrained by a grammar."""
    alone, streamed, held = [], [], []
    array = {"type": "object", "properties": {"a": {"type": "array", "items": {"type": "string"}, "minItems": 50}},
             "required": ["a"], "additionalProperties": False}  # fmt: skip
    grammar = {"response_format": {"type": "json_schema", "json_schema": {"schema": array}}}
    for _ in range(5):
        alone.append(_alone(engine))
        streamed.append(_streamed(server, {}))
        held.append(_streamed(server, grammar))
    a, s, h = map(statistics.median, (alone, streamed, held))
    return (
        f"engine {a:.1f}, stream {s:.1f} ({s / a:.3f}x), with a grammar {h:.1f} ({h / s:.3f}x of the stream) tokens/s"
    )


BIAS = tuple((token, -100.0) for token in (2, 4))  # the end tokens of the two models that this is run with


def _alone(engine: Engine) -> float:
    sampling = Sampling(temperature=0, max_new_tokens=96, logit_bias=BIAS)
    request = Request((Message("user", "Tell me about the sea."),), sampling, whole=True)
    stats = [event for event in engine.chat(request) if isinstance(event, Stats)][-1]
    return stats.mean_tok_s or 0.0


def _streamed(server: Server, more: dict[str, Any]) -> float:
    """Return a stream's speed as measured by a client in another process."""
    body = {"messages": QUESTION, "max_tokens": 96, "temperature": 0, "stream": True, "logit_bias": dict(BIAS)} | more
    body["stream_options"] = {"include_usage": True}
    client = [sys.executable, "-m", "tests.bench.stream_client", str(server.port), "1"]
    return float(subprocess.run(client, input=json.dumps(body).encode(), capture_output=True, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--schemas", type=int, default=500)
    parser.add_argument("--fuzz", type=int, default=2000)
    parser.add_argument("--no-speeds", action="store_true")
    asked = parser.parse_args()
    engine = Engine()
    model = next(event for event in engine.load(asked.model, LoadOptions(context=1024)) if isinstance(event, Loaded))
    backend = EngineThread(engine, OneModel(model), list)
    server = Server(backend, ServerOptions(port=0, limits=Limits(body=256 << 10)))
    parts: list[tuple[str, Callable[[], str], bool]] = [
        ("speed", lambda: speeds(engine, server), not asked.no_speeds),
        (f"{CLIENTS} clients for {asked.seconds:g} s", lambda: many_clients(server, asked.seconds), asked.seconds > 0),
        (f"{asked.fuzz} fuzzed bodies", lambda: fuzzed_bodies(server, asked.fuzz), asked.fuzz > 0),
        ("schemas", lambda: schemas(server, asked.schemas), asked.schemas > 0),
    ]
    for name, measure, wanted in parts:
        if wanted:
            began = time.perf_counter()
            print(f"{name}: {measure()} [{time.perf_counter() - began:.0f} s]", flush=True)
    server.close()
    backend.close()
    engine.close()


if __name__ == "__main__":
    main()
