"""Builds the objects of the application and makes every connection between them. One page."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil
from PySide6.QtCore import QObject, QTimer, Slot
from PySide6.QtGui import QAccessible, QAccessibleAnnouncementEvent
from PySide6.QtWidgets import QApplication

from app.about.diagnostics import diagnostics
from app.catalog.recommended import recommended
from app.catalog.recommender import Recommendation, Recommender
from app.controllers.about import AboutController
from app.controllers.actions import Actions
from app.controllers.attachments import Attachments
from app.controllers.gpu import GpuController
from app.controllers.models import ModelController, late_fit_check
from app.controllers.preferences import Preferences
from app.controllers.remote import RemoteController
from app.controllers.server import ServerController
from app.conversations.chat_model import ChatModel
from app.conversations.conversation import Conversation, Turn
from app.conversations.library import Library
from app.conversations.session import Session
from app.engine.app_state import State
from app.engine.engine_import import make_engine
from app.engine.worker import EngineLike, Worker
from app.i18n import formatting, translator
from app.monitor.observer import Observer
from app.monitor.telemetry import Sample
from app.monitor.telemetry_nvml import GpuSample
from app.notices import notices
from app.settings.settings import PRESETS, Settings
from app.settings.theme import Theme
from app.system import window_state
from app.system.paths import Places, places
from app.system.sleep import SleepWatch
from app.system.window_state import WindowState
from app.views.conversations.sidebar import Sidebar
from app.views.frame.window import MainWindow
from app.views.monitor.live_view import LiveView, Telemetry
from core.events import LoadOptions, Sampling
from core.gpu_runtime.start import Standing
from core.gpu_runtime.store import Runtime
from core.hub.client import Client
from core.hub.environment import hub_environment
from core.paths import assets, builtin_model, gpu_runtime

ADVICE_MS = 4000
LIMITS_MS = 800


def package_client() -> Client:
    """For the indexes and servers of Python packages; no token is ever sent there."""
    return Client("https://download.pytorch.org", offline=hub_environment(os.environ).offline)


@dataclass(frozen=True)
class Wishes:
    """What the command line asked for, which model and how much of the machine; and what the start settled."""

    model: str = ""
    options: LoadOptions = field(default_factory=LoadOptions)
    gpu: Standing = field(default_factory=Standing)


class Application(QObject):
    """Everything that lives as long as the window. `close()` saves, stops and joins."""

    def __init__(self, wishes: Wishes, engine: Callable[[], EngineLike] = make_engine) -> None:
        super().__init__()
        self._wishes = wishes
        self._places: Places = places()
        self.preferences = Preferences(self._places)
        self._remembered = window_state.read(self._window_file)
        self._closed = False
        self.restarts = False
        """Whether the program is to be started again once it has ended."""
        self._sample: Sample | None = None
        self._cores = psutil.cpu_count(logical=False) or psutil.cpu_count()
        # Kept by a name of ours: Qt does not own translators.
        self._words = translator.install(self.preferences.settings.language)
        self.theme = Theme(self.preferences.mode, self.preferences.settings.font_percent)
        self.chat = ChatModel()
        self.gpu = GpuController(Runtime(gpu_runtime()), wishes.gpu, package_client)
        self.worker = Worker(self.gpu.guarded(engine))
        self.session = Session(self.worker, self.chat, self._sampling)
        self.library = Library(self._places.conversations, self.chat, self._system_prompt)
        self.observer = Observer()
        self.telemetry = Telemetry()
        self.window = MainWindow(self.theme, self.chat)
        self.sidebar, self.live = Sidebar(self.theme), LiveView(self.theme)
        self.models = ModelController(self.theme, self._places, self._settings, self._options, self.window)
        self.recommender = Recommender(late_fit_check(self._options), recommended(assets()))
        self.attachments = Attachments(self.window, self.worker, self.chat, lambda: self._sampling().max_new_tokens)
        self.commands = Actions(self.window, self.session, self.chat, self.library, self.attachments)
        self.about = AboutController(self.theme, self.window)
        self.server = ServerController(self.theme, self.worker, self.window)
        self.remote = RemoteController(self.theme, self.window)
        self._advice_later = QTimer(self, singleShot=True, interval=ADVICE_MS)
        self._advice_later.timeout.connect(self.recommender.ask)
        # Not with every digit that is typed.
        self._limits_later = QTimer(self, singleShot=True, interval=LIMITS_MS)
        self._limits_later.timeout.connect(self._apply_limits)
        self.sleep_watch = SleepWatch(parent=self)
        self._idle = QTimer(self, singleShot=True)
        self._idle.timeout.connect(self.session.rest)
        self._connect_session()
        self._connect_window()
        self._connect_sides()
        self._restore()

    def _connect_session(self) -> None:
        self.session.changed.connect(self._on_state)
        self.session.changed.connect(self.observer.on_state)
        self.session.notice.connect(self.window.notices.add)
        self.session.finished.connect(self._on_finished)
        self.library.notice.connect(self.window.notices.add)
        self.library.opening.connect(self._on_opening)
        self.commands.load_wished.connect(self.load)
        self.commands.type_wished.connect(self.preferences.size_type)
        self.commands.settings_wished.connect(self._open_settings)
        self.commands.log_wished.connect(self._open_log)
        self.commands.gpu_wished.connect(self._open_gpu)
        self.commands.server_wished.connect(self.server.open)
        self.commands.remote_wished.connect(self.remote.open)
        self.remote.chosen.connect(self.load)
        self.server.started.connect(self.session.wake)
        self.gpu.notice.connect(self.window.notices.add)
        self.gpu.restart_wished.connect(self._restart)
        self.preferences.changed.connect(self._on_settings)
        self.preferences.changed.connect(self.models.on_settings)
        self.preferences.limited.connect(self._limits_later.start)
        self.preferences.notice.connect(self.window.notices.add)
        self.commands.models_wished.connect(self.models.open)
        self.commands.about_wished.connect(self.about.open)
        self.about.link.connect(self.commands.open_page)
        self.about.notice.connect(self.window.notices.add)
        self.models.chosen.connect(self.load)
        self.recommender.found.connect(self._on_recommended)
        self.window.empty.model_wished.connect(self.models.open_at)
        self.models.link.connect(self.commands.open_link)
        self.sleep_watch.woke.connect(self.session.after_sleep)
        self.sleep_watch.woke.connect(self.models.after_sleep)

    def _connect_window(self) -> None:
        window, commands = self.window, self.commands
        window.may_close = commands.may_quit
        window.acted.connect(commands.act)
        window.folder_chosen.connect(self.load)
        window.shown.connect(self._on_shown)
        window.closing.connect(self.close)
        window.notices.acted.connect(commands.act_on_notice)
        window.notices.load_cancelled.connect(self.session.cancel_load)
        window.composer.submitted.connect(commands.submit)
        window.composer.stop_requested.connect(self.session.stop)
        window.composer.recall_requested.connect(commands.recall)
        window.files.connect(self.attachments.add)
        window.chips.opened.connect(self.attachments.open)
        window.chips.removed.connect(self.attachments.remove)
        window.transcript.opened.connect(self.attachments.show_document)
        self.attachments.notice.connect(window.notices.add)
        window.empty.chosen.connect(commands.submit)
        window.transcript.wished.connect(commands.wish)
        window.transcript.edited.connect(self.session.edit)
        window.transcript.link.connect(commands.open_link)
        window.transcript.freed.connect(window.composer.take_focus)
        window.top.model_pressed.connect(commands.models_wished)

    def _connect_sides(self) -> None:
        sidebar, library, observer = self.sidebar, self.library, self.observer
        self.window.set_side("sidebar", sidebar)
        self.window.set_side("live", self.live)
        library.listed.connect(sidebar.show_entries)
        library.found.connect(sidebar.show_hits)
        self.window.search_wished.connect(sidebar.focus_search)
        sidebar.new_requested.connect(self.window.actions_by_id["new_chat"].trigger)
        sidebar.opened.connect(library.open)
        sidebar.renamed.connect(library.rename)
        sidebar.pinned.connect(library.pin)
        sidebar.deleted.connect(library.delete)
        sidebar.undeleted.connect(library.undelete)
        sidebar.delete_settled.connect(library.purge)
        sidebar.searched.connect(library.search)
        sidebar.export_requested.connect(self.commands.export)
        sidebar.import_requested.connect(self.commands.import_file)
        self.chat.added.connect(self._mark_open)
        self.telemetry.sampled.connect(self.live.show_sample)
        self.telemetry.sampled.connect(observer.on_sample)
        self.telemetry.sampled.connect(self._on_sample)
        observer.outlooked.connect(self.live.show_outlook)
        observer.figured.connect(self.live.show_stats)
        observer.explained.connect(self.live.show_why)
        observer.answered.connect(self.live.what_if.show_answer)
        observer.split.connect(self.window.top.strip.set_shares)
        observer.reload_wished.connect(self._on_reload)
        observer.replan_wished.connect(self.session.replan)
        self.live.wished.connect(observer.on_wish)
        self.live.applied.connect(observer.on_apply)

    def _restore(self) -> None:
        self.window.restore(self._remembered.geometry)
        self.window.panes.prefer_folded("sidebar", not self._remembered.sidebar)
        self.window.panes.prefer_folded("live", not self._remembered.live)
        self._on_settings(self.preferences.settings)
        self.chat.show(self.library.new())
        for problem in self.preferences.problems:
            self.window.notices.add(notices.setting_ignored(problem.sentence))

    @Slot()
    def close(self) -> None:
        """Ends the reply, keeps everything, frees the model and joins the threads."""
        if self._closed:
            return
        self._closed = True
        # A timer that still runs must not be left to the collector, which may come in any thread.
        self.sleep_watch.stop()
        for timer in (self._advice_later, self._limits_later, self._idle):
            timer.stop()
        window = self.window
        kept = WindowState(
            window.state(), window.panes.unfolded("sidebar"), window.panes.unfolded("live"), self.session.state.source
        )
        window_state.write(self._window_file, kept)
        self.telemetry.stop()
        self.recommender.close()
        self.models.close()
        self.attachments.close()
        self.gpu.close()
        self.session.end()
        self.about.close()
        self.server.close()
        self.remote.close()
        self.worker.close()
        self.library.close()

    @property
    def _window_file(self) -> Path:
        return self._places.config / "window.json"

    @Slot()
    def _on_shown(self) -> None:
        # After the first paint: reading torch from the disk would delay it.
        QTimer.singleShot(0, self, self._start)

    @Slot()
    def _start(self) -> None:
        self.library.refresh()
        self.telemetry.start()
        self.sleep_watch.start()
        if self.preferences.settings.update_check:
            self.about.updates.check()
        self.gpu.greet()
        self.load(self._wishes.model or self._remembered.source or str(builtin_model()))

    @Slot(str)
    def load(self, source: str) -> None:
        """Makes another model ready."""
        self.session.load(source, self._options())

    def _settings(self) -> Settings:
        return self.preferences.settings

    def _options(self) -> LoadOptions:
        return self.preferences.options(self._wishes.options)

    def _sampling(self) -> Sampling:
        return PRESETS.get(self.chat.conversation.preset) or self.preferences.settings.sampling()

    def _system_prompt(self) -> str:
        return self.preferences.settings.system_prompt

    @Slot(object)
    def _on_settings(self, kept: Settings) -> None:
        self.theme.choose(self.preferences.mode, kept.font_percent)
        self.window.composer.enter_sends = kept.enter_sends

    @Slot()
    def _apply_limits(self) -> None:
        wished, now = self._options(), self.session.state.options
        self.session.replan(replace(now, vram=wished.vram, ram=wished.ram))

    @Slot()
    def _open_settings(self) -> None:
        self.preferences.open(self.theme, self._diagnostics, self.window)

    @Slot()
    def _open_log(self) -> None:
        self.preferences.open(self.theme, self._diagnostics, self.window).show_log()

    @Slot()
    def _open_gpu(self) -> None:
        self.gpu.open(self.theme, self.window)

    @Slot()
    def _restart(self) -> None:
        self.restarts = True
        self.window.close()

    def _diagnostics(self) -> str:
        model = self.session.state.model
        facts = (
            {"Model": f"{model.name}, {model.format}, {model.context} tokens", "Plan": model.plan_reason}
            if model
            else {}
        )
        return diagnostics(self.preferences.settings, self._sample, self._places.log, facts)

    @Slot(object)
    def _on_reload(self, options: LoadOptions) -> None:
        self.session.load(self.session.state.source, options)

    @Slot(object)
    def _on_state(self, state: State) -> None:
        if self._closed:
            return
        self.server.set_model(state.model)
        self._rest_when_idle(state)
        window = self.window
        window.top.show_state(state)
        window.status.show_state(state)
        window.notices.show_state(state)
        window.composer.show_state(state)
        self.recommender.pause(state.busy)
        guide = state.source in ("", str(builtin_model()))
        window.empty.set_guide(guide)
        if guide and state.phase == "ready":
            # Not at once, and not beside a reply: it measures the machine, and the first question is worth more.
            self._advice_later.start()
        else:
            self._advice_later.stop()

    def _rest_when_idle(self, state: State) -> None:
        minutes = self.preferences.settings.keep_loaded_minutes
        if state.phase == "ready" and minutes is not None and not self.server.runs:
            self._idle.start(minutes * 60_000)
        else:
            self._idle.stop()

    @Slot(object)
    def _on_sample(self, sample: Sample) -> None:
        self._sample = sample
        self.window.status.show_machine(sample.cpu_percent, sample.ram_used, sample.ram_total)
        cards = tuple((card.name, _free(card)) for card in sample.gpus)
        self.window.empty.set_machine(formatting.machine(self._cores, sample.ram_total, cards))

    @Slot(object)
    def _on_recommended(self, advice: Recommendation) -> None:
        model, speed = advice.model, advice.fit.tok_s
        words = formatting.advice(model.id.split("/")[-1], model.download_bytes, speed)
        self.window.empty.advise(model.id, words)

    @Slot(object, str)
    def _on_opening(self, conversation: Conversation, turn: str) -> None:
        self.session.show(conversation)
        self.sidebar.set_current(conversation.id)
        if turn:
            # Found by searching: what comes next is reading, or asking more.
            self.window.transcript.show_turn(turn)
            self.window.composer.take_focus()

    @Slot(object)
    def _mark_open(self, turn: Turn) -> None:
        self.sidebar.set_current(self.chat.conversation.id)

    @Slot(object)
    def _on_finished(self, turn: Turn) -> None:
        """One announcement per reply, for those who listen instead of reading or look at another window."""
        if not self.window.isActiveWindow():
            QApplication.alert(self.window)
        if turn.content and QAccessible.isActive():
            QAccessible.updateAccessibility(QAccessibleAnnouncementEvent(self.window, turn.content[:1000]))


def _free(card: GpuSample) -> int | None:
    """The memory of a card that is there for us: what we hold ourselves counts as free."""
    held = card.vram_used if card.vram_others is None else card.vram_others
    return None if card.vram_total is None or held is None else card.vram_total - held
