"""Tests other programs' servers as remote models.

    python -m tests.bench.remote_servers llama_cpp|transformers MODEL

Each server is a process of its own on loopback. Both need `fastapi`, the first also `llama-cpp-python[server]`. Prints,
for the remote engine alone and then for the whole window (offscreen): a reply, a stop in mid-reply with the time until
the server is idle, a wrong key, and the server's death in mid-reply.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable

from core.events import Event, Failed, Finished, Loaded, LoadOptions, Message, Piece, Request, Sampling
from core.remote.engine import RemoteEngine
from tests.core.remote.real_servers import KEY, Kind, RealServer, served

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

QUESTION = "Tell me a long story about the sea."
ROUNDS = 3
Say = Callable[[str, str], None]


def loaded(server: RealServer, key: str) -> tuple[RemoteEngine, Event]:
    engine = RemoteEngine(lambda _: key)
    return engine, list(engine.load(f"remote:{server.url}#{server.model}", LoadOptions()))[-1]


def asked(tokens: int) -> Request:
    return Request((Message("user", QUESTION),), Sampling(0.0, max_new_tokens=tokens))


def reply(engine: RemoteEngine) -> str:
    events = list(engine.chat(asked(24)))
    text = "".join(event.text for event in events if isinstance(event, Piece))
    end = events[-1]
    return f"{text[:60]!r}, {end.reason}, {end.stats.new_tokens} tokens" if isinstance(end, Finished) else f"{end}"


def stopped(engine: RemoteEngine, server: RealServer) -> str:
    pieces: list[str] = []
    for event in engine.chat(asked(1000), lambda: len(pieces) >= 5):
        if isinstance(event, Piece):
            pieces.append(event.text)
    return f"{event.reason if isinstance(event, Finished) else event}, idle after {server.idle_after():.2f} s"


def killed(engine: RemoteEngine, server: RealServer) -> str:
    said = 0
    for event in engine.chat(asked(1000)):
        said += isinstance(event, Piece)
        if said == 5:
            server.kill()
    return str(event.error) if isinstance(event, Failed) else f"NOT A FAILURE: {event}"


def with_engine(server: RealServer, say: Say) -> None:
    """Test the remote engine alone."""
    engine, outcome = loaded(server, KEY)
    say("load", outcome.name if isinstance(outcome, Loaded) else str(outcome))
    say("reply", reply(engine))
    for _ in range(ROUNDS):
        say("stop", stopped(engine, server))
    wrong, outcome = loaded(server, "sk-wrong")
    say("wrong key", str(outcome.error) if isinstance(outcome, Failed) else f"accepted: {reply(wrong)}")
    say("killed", killed(engine, server))


def with_window(server: RealServer, say: Say) -> None:
    """Test the whole window: remote page, composer, transcript, notices."""
    from PySide6.QtWidgets import QApplication

    from tests.app.remote_user import remote_user

    application = QApplication.instance() or QApplication([])
    with tempfile.TemporaryDirectory() as home:
        os.environ["HETEGEN_HOME"] = home
        with remote_user() as user:
            user.connect(server.url, "sk-wrong", server.model)
            refused = user.notices()
            said = f"{refused[-1].title}: {refused[-1].sentence} [{refused[-1].button}]" if refused else "accepted"
            say("wrong key", said)
            user.connect(server.url, KEY, server.model)
            turn = user.ask("Name three seas.")
            say("reply", f"{user.shown(turn)[:60]!r}, {turn.end}, {turn.receipt.get('new_tokens')} tokens")
            for _ in range(ROUNDS):
                turn = user.begin(QUESTION)
                user.stop()
                say("stop", f"{turn.end}, idle after {server.idle_after(application.processEvents):.2f} s")
            turn = user.begin(QUESTION)
            server.kill()
            user.wait()
            notice = user.notices()[-1]
            say("killed", f"{turn.end} after {len(user.shown(turn))} characters; {notice.title}: {notice.sentence}")
            turn = user.ask("Are you there?")
            say("asked again", f"{turn.end}; {user.notices()[-1].sentence}")
            say("kept", f"{user.app.chat.rowCount()} turns")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=("llama_cpp", "transformers"))
    parser.add_argument("model")
    parser.add_argument("--only", choices=("engine", "window"))
    chosen = parser.parse_args()
    kind: Kind = chosen.kind
    for face, measure in (("engine", with_engine), ("window", with_window)):
        if chosen.only in (None, face):
            with served(kind, chosen.model) as server:
                measure(server, lambda what, how, face=face: print(f"| {kind} | {face} | {what} | {how} |", flush=True))


if __name__ == "__main__":
    main()
