"""The self-test: loads a model, asks it once through the real window and thread, and prints one JSON line."""

from __future__ import annotations

import json
import time

import psutil
from PySide6.QtCore import QCoreApplication, QObject, QTimer, Slot

from app.application import Application
from app.conversations.conversation import Turn
from app.engine.app_state import State
from app.notices.notices import Notice

QUESTION = "What is HeteGen?"
LIMIT_S = 180


class SelfTest(QObject):
    """One test run. `run()` returns the exit code, 0 if a reply came."""

    def __init__(self, application: Application) -> None:
        super().__init__()
        self._app = application
        self._began = psutil.Process().create_time()
        self._report: dict[str, object] = {"ok": False}
        self._asked = False

    def run(self) -> int:
        """Show the window, wait for the reply, print the report and close."""
        session = self._app.session
        self._app.window.shown.connect(self._on_shown)
        session.changed.connect(self._on_state)
        session.notice.connect(self._on_notice)
        session.replies.finished.connect(self._on_finished)
        QTimer.singleShot(LIMIT_S * 1000, self, self._on_timeout)
        self._app.window.show()
        QCoreApplication.exec()
        self._app.window.close()
        self._app.close()
        print(json.dumps(self._report, ensure_ascii=True), flush=True)
        return 0 if self._report["ok"] else 1

    def _since_start(self) -> float:
        return round(time.time() - float(self._began), 3)

    @Slot()
    def _on_shown(self) -> None:
        self._report["window_s"] = self._since_start()

    @Slot(object)
    def _on_state(self, state: State) -> None:
        if state.phase == "ready" and not self._asked and state.model is not None:
            self._asked = True
            self._report |= {"ready_s": self._since_start(), "load_s": round(state.model.load_s, 3)}
            self._report |= {"model": state.model.name, "format": state.model.format}
            self._app.window.composer.submitted.emit(QUESTION)

    @Slot(object)
    def _on_notice(self, notice: Notice) -> None:
        self._end({"reason": f"{notice.title}. {notice.sentence}"})

    @Slot(object)
    def _on_finished(self, turn: Turn) -> None:
        figures = {name: turn.receipt.get(name) for name in ("new_tokens", "tok_s", "ttft_s")}
        memory = psutil.Process().memory_info().rss
        reply = {"ok": bool(turn.content.strip()) and turn.end != "failed", "text": turn.content, "finish": turn.end}
        self._end({**reply, **figures, "rss_bytes": memory})

    @Slot()
    def _on_timeout(self) -> None:
        self._end({"reason": f"No reply within {LIMIT_S} s."})

    def _end(self, report: dict[str, object]) -> None:
        self._report |= report
        QCoreApplication.quit()
