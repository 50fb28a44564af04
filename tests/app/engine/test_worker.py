import threading
import time
from collections.abc import Iterator
from itertools import pairwise

from PySide6.QtCore import QCoreApplication
from pytestqt.qtbot import QtBot

from app.engine.task_thread import NEWS_MS, Defect, TaskThread, Tell
from app.engine.worker import Worker
from core.errors import BadRequest
from core.events import Event, Finished, Loaded, LoadOptions, Message, Piece, Request, Stop
from tests.app.scripted_engine import MODEL, ScriptedEngine, answer

REQUEST = Request((Message("user", "hi"),))


class Told:
    """The worker's events, in order."""

    def __init__(self, worker: Worker) -> None:
        self.events: list[tuple[int, Event]] = []
        self.crashes: list[tuple[int, str]] = []
        self.done: list[int] = []
        worker.told.connect(lambda ticket, event: self.events.append((ticket, event)))
        worker.failed.connect(self._on_failed)
        worker.done.connect(lambda ticket, _: self.done.append(ticket))

    def _on_failed(self, ticket: int, error: Defect) -> None:
        self.crashes.append((ticket, error.details))
        self.done.append(ticket)

    def of(self, ticket: int) -> list[Event]:
        return [event for at, event in self.events if at == ticket]


def test_commands_run_in_order_in_a_thread_of_their_own(qtbot: QtBot) -> None:
    engine = ScriptedEngine(answer("One."))
    worker = Worker(lambda: engine)
    told = Told(worker)
    load, chat = worker.load("model", LoadOptions()), worker.chat(REQUEST)
    qtbot.waitUntil(lambda: told.done == [load, chat])
    assert told.of(load)[-1] == MODEL
    assert "".join(event.text for event in told.of(chat) if isinstance(event, Piece)) == "One."
    assert engine.threads
    assert threading.get_ident() not in engine.threads
    assert not worker.busy
    worker.close()
    assert engine.closed


def test_stop_ends_what_runs_and_what_waits(qtbot: QtBot) -> None:
    engine = ScriptedEngine(answer("Never heard."))
    engine.gate.clear()
    worker = Worker(lambda: engine)
    told = Told(worker)
    tickets = [worker.chat(REQUEST), worker.chat(REQUEST)]
    worker.stop_all()
    qtbot.waitUntil(lambda: told.done == tickets)
    assert all(isinstance(told.of(ticket)[-1], Finished) for ticket in tickets)
    worker.close()


def test_a_command_after_a_stop_is_not_stopped(qtbot: QtBot) -> None:
    engine = ScriptedEngine(answer("Heard."))
    engine.gate.clear()
    worker = Worker(lambda: engine)
    told = Told(worker)
    first = worker.chat(REQUEST)
    worker.stop_all()
    second = worker.chat(REQUEST)
    qtbot.waitUntil(lambda: first in told.done)
    engine.gate.set()
    qtbot.waitUntil(lambda: second in told.done)
    assert "".join(event.text for event in told.of(second) if isinstance(event, Piece)) == "Heard."
    worker.close()


def test_loading_another_model_stops_the_reply(qtbot: QtBot) -> None:
    engine = ScriptedEngine(answer("Endless."))
    engine.gate.clear()
    worker = Worker(lambda: engine)
    told = Told(worker)
    chat = worker.chat(REQUEST)
    load = worker.load("other", LoadOptions())
    qtbot.waitUntil(lambda: chat in told.done)
    engine.gate.set()
    qtbot.waitUntil(lambda: load in told.done)
    assert isinstance(told.of(load)[-1], Loaded)
    worker.close()


class BrokenEngine(ScriptedEngine):
    def chat(self, request: Request, stop: Stop) -> Iterator[Event]:
        yield Piece("then ")
        raise ZeroDivisionError("of ours")


def test_a_defect_is_told_and_the_thread_goes_on(qtbot: QtBot) -> None:
    worker = Worker(BrokenEngine)
    told = Told(worker)
    chat, load = worker.chat(REQUEST), worker.load("model", LoadOptions())
    qtbot.waitUntil(lambda: told.done == [chat, load])
    assert [ticket for ticket, _ in told.crashes] == [chat]
    assert "ZeroDivisionError: of ours" in told.crashes[0][1]
    assert told.of(load)[-1] == MODEL
    worker.close()


def test_closing_in_mid_reply_joins_the_thread(qtbot: QtBot) -> None:
    engine = ScriptedEngine(answer("x" * 1000, size=1))
    engine.gate.clear()
    worker = Worker(lambda: engine)
    worker.chat(REQUEST)
    worker.close()
    worker.close()
    assert engine.closed


def test_an_engine_that_cannot_be_made_is_told(qtbot: QtBot) -> None:
    def missing() -> ScriptedEngine:
        raise ImportError("no torch here")

    worker = Worker(missing)
    told = Told(worker)
    worker.load("model", LoadOptions())
    qtbot.waitUntil(lambda: bool(told.crashes))
    worker.close()


def test_news_of_a_fast_job_arrive_together_in_order_and_before_its_end(qtbot: QtBot) -> None:
    thread, heard, moments = TaskThread("fast"), list[object](), list[float]()
    thread.told.connect(lambda _, news: heard.append(news))
    thread.told.connect(lambda *_: moments.append(time.perf_counter()))
    thread.done.connect(lambda *_: heard.append("done"))

    def work(stop: Stop, tell: Tell) -> None:
        for number in range(200):
            tell(number)
            time.sleep(0.001)

    thread.run(work)
    qtbot.waitUntil(lambda: heard[-1:] == ["done"])
    thread.close()
    assert heard == [*range(200), "done"]
    # On a busy machine the job's pauses may be as long as those between deliveries, which are no harm.
    gaps = (later - earlier for earlier, later in pairwise(moments))
    assert sum(0.0005 < gap < (NEWS_MS - 1) / 1000 for gap in gaps) < 100


def test_news_do_not_wait_for_the_end_of_a_job_or_for_more_news(qtbot: QtBot) -> None:
    thread, heard, gate = TaskThread("slow"), list[object](), threading.Event()
    thread.told.connect(lambda _, news: heard.append(news))

    def work(stop: Stop, tell: Tell) -> None:
        tell("one")
        tell("two")
        gate.wait(60)

    thread.run(work)
    qtbot.waitUntil(lambda: heard == ["one", "two"])
    gate.set()
    thread.close()


def test_a_closed_thread_tells_nothing_of_jobs_that_have_ended(qtbot: QtBot) -> None:
    """Who listens may be gone by then: both jobs end while the main thread processes no events."""
    thread, heard, ended = TaskThread("closed"), list[str](), threading.Event()
    thread.told.connect(lambda *_: heard.append("told"))
    thread.done.connect(lambda *_: heard.append("done"))
    thread.failed.connect(lambda *_: heard.append("failed"))

    def good(stop: Stop, tell: Tell) -> None:
        tell("news")

    def bad(stop: Stop, tell: Tell) -> None:
        ended.set()
        raise BadRequest("It is wrong.")

    thread.run(good)
    thread.run(bad)
    assert ended.wait(60)
    thread.close()
    QCoreApplication.processEvents()
    assert heard == []
