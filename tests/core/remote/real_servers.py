"""Servers of other programs, each a process on loopback: `llama_cpp.server` and `transformers serve`."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

Kind = Literal["llama_cpp", "transformers"]
KEY = "sk-right"
PATIENCE_S = 90.0
SAMPLE_S, QUIET_S, BUSY_SHARE = 0.05, 0.5, 0.4
"""A server is idle once no sample of its CPU time in QUIET_S was above BUSY_SHARE of one core."""


@dataclass(frozen=True)
class RealServer:
    """A listening server. `model`: the name to request; "" = its first model."""

    process: psutil.Process
    url: str
    model: str

    def kill(self) -> None:
        """Kill it at once, like a lost machine."""
        self.process.kill()

    def idle_after(self, meanwhile: Callable[[], None] = lambda: None) -> float:
        """Return the seconds from now to the end of its last busy sample."""
        began = last_busy = sampled = time.perf_counter()
        used = _seconds(self.process)
        while (now := time.perf_counter()) - last_busy < QUIET_S and now - began < PATIENCE_S:
            meanwhile()
            time.sleep(0.002)
            if now - sampled >= SAMPLE_S:
                before, used = used, _seconds(self.process)
                last_busy = now if used - before > BUSY_SHARE * (now - sampled) else last_busy
                sampled = now
        return last_busy - began


def is_installed(kind: Kind) -> bool:
    """Return whether the server can be started here."""
    package = {"llama_cpp": "llama_cpp", "transformers": "transformers"}[kind]
    return all(importlib.util.find_spec(name) is not None for name in (package, "fastapi", "sse_starlette"))


@contextmanager
def served(kind: Kind, model: str) -> Iterator[RealServer]:
    """Start a server with a model (a GGUF file, or a folder for transformers) and stop it afterwards."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # One thread: two that wait for each other are extremely slow while other programs compute.
    process = subprocess.Popen(
        _command(kind, model, port),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        _wait(process, port)
        name = Path(model).as_posix() if kind == "transformers" else ""
        yield RealServer(psutil.Process(process.pid), f"http://127.0.0.1:{port}/v1", name)
    finally:
        process.kill()
        process.wait()


def _command(kind: Kind, model: str, port: int) -> list[str]:
    place = ["--host", "127.0.0.1", "--port", str(port)]
    if kind == "llama_cpp":
        what = ["-m", "llama_cpp.server", "--model", model, "--api_key", KEY, "--n_threads", "1"]
        return [sys.executable, *what, *place]
    program = [sys.executable, "-c", "from transformers.cli.transformers import main; main()"]
    return [*program, "serve", model, *place, "--device", "cpu"]


def _wait(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as line:
            if line.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise RuntimeError(f"the server did not start: {process.poll()}")


def _seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system
