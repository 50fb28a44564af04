"""Measures the window's tick delays while it serves a crowd.

`python -m tests.bench.serving_beside_window [MODEL] [--seconds 60]` starts the server inside the window's process, as
its page does, and the clients in a process of their own. Prints the ticks of the window alone and beside the crowd, the
clients' answers, and the growth of memory and threads. With `--chat` the window asks for replies of its own all the
time.
"""

from __future__ import annotations

import argparse
import gc
import os
import tempfile
import threading

from tests.app.waiting import idle, until
from tests.bench.serving import beside_crowd, growth
from tests.bench.ticks import Ticks

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
QUIET_S = 5.0


def measure(model: str, seconds: float, chats: bool) -> None:
    """Start the window with its server and print a line per part."""
    from PySide6.QtWidgets import QApplication

    from app.application import Application, StartOptions
    from app.engine.engine_import import make_engine
    from core.events import LoadOptions

    qt = QApplication.instance() or QApplication([])
    app = Application(StartOptions(model, LoadOptions(context=1024)), make_engine)
    app.window.show()
    until(lambda: app.session.state.phase == "ready", 120)
    app.server.open()
    app.server.start(wide=False)
    until(lambda: app.server.runs, 60)
    port = int(app.server.state.address.rsplit(":", 1)[1].split("/")[0])
    ticks = Ticks()
    idle(QUIET_S)
    print("alone:", ticks.summary(), flush=True)
    threads = threading.active_count()

    def live() -> None:
        qt.processEvents()
        if chats and not app.session.state.busy:
            app.session.submit("Tell me about the sea.")

    ticks.reset()
    memory, answers = beside_crowd(port, seconds, live)
    print("beside the crowd:", ticks.summary(), flush=True)
    print("answers:", answers, flush=True)
    until(lambda: not app.server.state.activity.live and not app.session.state.busy, 60)
    gc.collect()
    print(f"memory {growth(memory):+.1f} MiB, threads {threading.active_count() - threads:+d}", flush=True)
    app.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--chat", action="store_true")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        os.environ["HETEGEN_HOME"] = home
        measure(chosen.model, chosen.seconds, chosen.chat)


if __name__ == "__main__":
    main()
