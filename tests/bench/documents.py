"""Measures the window's responsiveness while a 300-page PDF is read, indexed and asked about in parts.

`python -m tests.bench.documents [--pages 300] [--questions 20] [--model FOLDER]` prints one JSON line. With a model the
real engine reads and answers; without one, a scripted engine computes nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")


CONTEXT = 4096


def pages(count: int) -> list[str]:
    """Return pages of about 2,400 characters, each with its own number."""
    line = "The survey of harbour {} counted cranes and wrote down their loads in tonnes before the tide came in. "
    return [line.format(number * number) * 24 for number in range(count)]


def measure(count: int, questions: int, folder: Path, model: str) -> dict[str, Any]:
    """Return the seconds and the tick delays of each step."""
    from PySide6.QtWidgets import QApplication

    from app.application import Application, StartOptions
    from app.engine.engine_import import make_engine
    from core.documents.passages import PassageIndex
    from core.documents.reader import read_document
    from core.events import LoadOptions
    from tests.app.scripted_engine import MODEL, ScriptedEngine, answer
    from tests.bench.ticks import Ticks
    from tests.core.documents.made import pdf

    qt = QApplication.instance() or QApplication([])
    file = pdf(folder / "survey.pdf", pages(count))
    engine = ScriptedEngine(answer("So many. " * 40), load=[replace(MODEL, context=8192)])
    wishes = StartOptions(model or "somebody/model", LoadOptions(context=CONTEXT))
    app = Application(wishes, make_engine if model else lambda: engine)
    ticks = Ticks()

    def until(met: Callable[[], bool]) -> float:
        began = time.perf_counter()
        while not met():
            qt.processEvents()
            time.sleep(0.0005)
        return round(time.perf_counter() - began, 3)

    app.window.show()
    until(lambda: app.session.state.phase == "ready")
    until(lambda: bool(app.telemetry) and len(ticks.late) > 100)
    ticks.reset()
    app.window.files.emit([file])
    result: dict[str, Any] = {"pages": count}
    result["read_s"] = until(lambda: all(each.counted for each in app.attachments.pending))
    result["index_s"] = until(lambda: all(app.long.is_ready(each.document) for each in app.attachments.pending))
    for number in range(questions):
        app.window.composer.submitted.emit(f"How many cranes did the survey of harbour {number * number} count?")
        until(lambda: not app.session.state.busy)
        result.setdefault("answered", []).append(len(app.chat.turn(app.chat.rowCount() - 1).content))
    result["ticks"] = ticks.summary()
    result["asked"] = app.chat.rowCount() // 2
    app.close()
    document = read_document(file)
    assert document is not None
    began = time.perf_counter()
    index = PassageIndex(document)
    result["index_alone_s"] = round(time.perf_counter() - began, 3)
    began = time.perf_counter()
    index.find("How many cranes did the survey of harbour 144 count?", 3000, len)
    result["find_ms"] = round(1e3 * (time.perf_counter() - began), 2)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pages", type=int, default=300)
    parser.add_argument("--questions", type=int, default=20)
    parser.add_argument("--model", default="", help="a folder; without one a scripted engine answers")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        os.environ["HETEGEN_HOME"] = home
        print(json.dumps(measure(asked.pages, asked.questions, Path(home), asked.model)))


if __name__ == "__main__":
    main()
