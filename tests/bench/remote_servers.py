"""Real servers of other programs as remote models: `python -m tests.bench.remote_servers llama_cpp|transformers MODEL`.

Each is started as a process of its own on loopback; both need `fastapi`, the first also `llama-cpp-python[server]`.
Shown are a reply, a stop in mid-reply, how long the server computes after it, a wrong key, and the server's death
in mid-reply.
"""

from __future__ import annotations

import argparse
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

from core.events import Event, Failed, Finished, Loaded, LoadOptions, Message, Piece, Request, Sampling
from core.remote.engine import RemoteEngine

KEY = "sk-right"
PATIENCE_S = 90.0
IDLE_CPU = 20.0
"""Percent of one core: below it a server does nothing for anybody."""


def command(kind: str, model: str, port: int) -> list[str]:
    if kind == "llama_cpp":
        place = ["--host", "127.0.0.1", "--port", str(port)]
        return [
            sys.executable,
            "-m",
            "llama_cpp.server",
            "--model",
            model,
            *place,
            "--api_key",
            KEY,
            "--n_threads",
            "2",
        ]
    program = [sys.executable, "-c", "from transformers.cli.transformers import main; main()"]
    return [*program, "serve", model, "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]


@contextmanager
def served(kind: str, model: str) -> Iterator[tuple[psutil.Process, str]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(command(kind, model, port), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline and process.poll() is None:
            with socket.socket() as line:
                if line.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.2)
        yield psutil.Process(process.pid), f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        process.wait()


def loaded(url: str, key: str, model: str = "") -> tuple[RemoteEngine, Event]:
    engine = RemoteEngine(lambda _: key)
    return engine, list(engine.load(f"remote:{url}#{model}", LoadOptions()))[-1]


def asked(tokens: int) -> Request:
    return Request((Message("user", "Tell me a long story about the sea."),), Sampling(0.0, max_new_tokens=tokens))


def reply(engine: RemoteEngine) -> str:
    events = list(engine.chat(asked(24)))
    text = "".join(event.text for event in events if isinstance(event, Piece))
    end = events[-1]
    return f"{text[:60]!r}, {end.reason}, {end.stats.new_tokens} tokens" if isinstance(end, Finished) else f"{end}"


def stopped(engine: RemoteEngine, process: psutil.Process) -> str:
    """How long the server goes on after a stop in mid-reply."""
    pieces: list[str] = []
    for event in engine.chat(asked(1000), lambda: len(pieces) >= 5):
        if isinstance(event, Piece):
            pieces.append(event.text)
    end, process_cpu = time.monotonic(), 100.0
    process.cpu_percent()
    while process_cpu > IDLE_CPU and time.monotonic() - end < PATIENCE_S:
        time.sleep(0.1)
        process_cpu = process.cpu_percent()
    return f"{event.reason if isinstance(event, Finished) else event}, idle after {time.monotonic() - end:.1f} s"


def killed(engine: RemoteEngine, process: psutil.Process) -> str:
    """What a user reads when the server dies in mid-reply."""
    said = 0
    for event in engine.chat(asked(1000)):
        said += isinstance(event, Piece)
        if said == 5:
            process.kill()
    return str(event.error) if isinstance(event, Failed) else f"NOT A FAILURE: {event}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=("llama_cpp", "transformers"))
    parser.add_argument("model")
    chosen = parser.parse_args()
    with served(chosen.kind, chosen.model) as (process, url):
        name = chosen.model if chosen.kind == "transformers" else ""
        engine, outcome = loaded(url, KEY, name)
        print("load:", outcome.name if isinstance(outcome, Loaded) else outcome, flush=True)
        print("reply:", reply(engine), flush=True)
        print("stop:", stopped(engine, process), flush=True)
        print("again:", reply(engine), flush=True)
        wrong, outcome = loaded(url, "sk-wrong", name)
        print("wrong key:", outcome.error if isinstance(outcome, Failed) else reply(wrong), flush=True)
        print("killed:", killed(engine, process), flush=True)


if __name__ == "__main__":
    main()
