"""Creates the application's objects and connects their signals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from PySide6.QtCore import QObject, QTimer, Slot

from app.about.diagnostics import diagnostics, model_facts
from app.catalog.recommended import recommended
from app.catalog.recommender import Recommender
from app.controllers.about import AboutController
from app.controllers.actions import Actions
from app.controllers.attachments import Attachments
from app.controllers.display import Display
from app.controllers.drafts import Drafts
from app.controllers.gpu import GpuController, package_client
from app.controllers.idle import IdleRest
from app.controllers.long_documents import LongDocuments
from app.controllers.models import ModelController, late_fit_check
from app.controllers.preferences import Preferences
from app.controllers.remembered import Remembered
from app.controllers.remote import RemoteController
from app.controllers.server import ServerController
from app.controllers.tools import ToolController
from app.controllers.welcome import WelcomeController
from app.conversations.chat_model import ChatModel
from app.conversations.elsewhere import Elsewhere
from app.conversations.library import Library
from app.conversations.session import Session
from app.engine.app_state import State
from app.engine.engine_import import make_engine
from app.engine.worker import EngineLike, Worker
from app.i18n import translator
from app.monitor.observer import Observer
from app.monitor.telemetry import Sample
from app.notices import notices
from app.settings.settings import Settings
from app.settings.theme import Theme
from app.system.paths import Places, places
from app.system.sleep import SleepWatch
from app.tools.toolbox import Toolbox
from app.views.conversations.sidebar import Sidebar
from app.views.frame.window import MainWindow
from app.views.monitor.live_view import LiveView, Telemetry
from core.events import LoadOptions
from core.gpu_runtime.start import Standing
from core.gpu_runtime.store import Runtime
from core.keyring import system_keyring
from core.paths import assets, builtin_model, gpu_runtime

LIMITS_MS = 800


@dataclass(frozen=True)
class StartOptions:
    """Options of this start: the model and limits from the command line, and the state of the GPU runtime."""

    model: str = ""
    options: LoadOptions = field(default_factory=LoadOptions)
    gpu: Standing = field(default_factory=Standing)


class Application(QObject):
    """Owner of everything that lives as long as the window. `close()` saves, stops and joins."""

    def __init__(self, start: StartOptions, engine: Callable[[], EngineLike] = make_engine) -> None:
        super().__init__()
        self._begun_with = start
        self._places: Places = places()
        self.preferences = Preferences(self._places, start.options)
        self._closed = False
        self.restarts = False
        """Whether the program is to be started again after it has ended."""
        self._sample: Sample | None = None
        # Qt does not own installed translators: keep a reference.
        self._words = translator.install(self.preferences.settings.language)
        self.theme = Theme(self.preferences.mode, self.preferences.settings.font_percent)
        self.chat = ChatModel()
        self.gpu = GpuController(Runtime(gpu_runtime()), start.gpu, package_client)
        self.worker = Worker(self.gpu.guarded(engine))
        self.toolbox = Toolbox(self._places.config / "tools.json", system_keyring, self._places.logs / "tools")
        self.long = LongDocuments(self.chat, lambda: self.session.state)
        self.session = Session(
            self.worker, self.chat, self.toolbox, self.preferences.sampling, self.long.parts, self._keeps
        )
        self.elsewhere = Elsewhere()
        self.library = Library(self._places.conversations, self.chat, self._system_prompt, self.session.replies.live)
        self.observer = Observer()
        self.telemetry = Telemetry()
        self.window = MainWindow(self.theme, self.chat)
        self.sidebar, self.live = Sidebar(self.theme), LiveView(self.theme)
        self.display = Display(self.window, self.sidebar, self.live, self.chat, self.session, self.library)
        self.remembered = Remembered(self._places.config / "window.json", self.window, self.session)
        self.models = ModelController(self.theme, self._places, self._settings, self.preferences.options, self.window)
        self.attachments = Attachments(self.window, self.worker, self.session, self.long, self._longest_reply)
        recommender = Recommender(late_fit_check(self.preferences.options), recommended(assets()))
        self.drafts = Drafts(self.chat, self.window.composer, self.attachments)
        self.welcome = WelcomeController(self.window.empty, recommender)
        self.commands = Actions(self.window, self.session, self.chat, self.library, self.attachments)
        self.about = AboutController(self.theme, self.window)
        self.server = ServerController(self.theme, self.worker, self.window)
        self.remote = RemoteController(self.theme, self._places.config / "servers.json", self.window)
        self.tools = ToolController(self.theme, self.toolbox, self.window)
        # Typing a limit changes it with every digit: wait until the user pauses.
        self._limits_later = QTimer(self, singleShot=True, interval=LIMITS_MS)
        self._limits_later.timeout.connect(self._apply_limits)
        self.sleep_watch = SleepWatch(parent=self)
        self.idle = IdleRest(self.session.model, self._settings, self.server)
        self._connect_session()
        self._connect_window()
        self._connect_sides()
        self._restore()

    def _connect_session(self) -> None:
        self.session.changed.connect(self._on_state)
        self.session.changed.connect(self.observer.on_state)
        self.session.changed.connect(self.elsewhere.on_state)
        self.session.replies.tools.asks.connect(self.elsewhere.on_tool_asks)
        self.elsewhere.notice.connect(self.window.notices.add)
        self.elsewhere.withdrawn.connect(self.window.notices.withdraw)
        self.session.notice.connect(self.window.notices.add)
        self.session.taken_back.connect(self.drafts.on_taken_back)
        self.session.model.withdrawn.connect(self.window.notices.withdraw)
        self.session.model.ready.connect(self.remembered.on_loaded)
        self.session.changed.connect(self.idle.on_state)
        self.session.changed.connect(self.welcome.on_state)
        self.session.replies.finished.connect(self.display.on_finished)
        self.library.notice.connect(self.window.notices.add)
        self.library.withdrawn.connect(self.window.notices.withdraw)
        self.library.opening.connect(self.display.on_opening)
        self.commands.load_wished.connect(self.load)
        self.commands.type_wished.connect(self.preferences.size_type)
        self.commands.settings_wished.connect(self._open_settings)
        self.commands.log_wished.connect(self._open_log)
        self.commands.gpu_wished.connect(self._open_gpu)
        self.commands.server_wished.connect(self.server.open)
        self.commands.remote_wished.connect(self.remote.open)
        self.commands.tools_wished.connect(self.tools.open)
        self.remote.chosen.connect(self.load)
        self.server.started.connect(self.session.model.wake)
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
        self.models.remote_wished.connect(self.remote.open)
        self.window.empty.model_wished.connect(self.models.open_at)
        self.models.link.connect(self.commands.open_link)
        self.sleep_watch.woke.connect(self.session.model.after_sleep)
        self.sleep_watch.woke.connect(self.models.after_sleep)

    def _connect_window(self) -> None:
        window, commands = self.window, self.commands
        window.may_close = commands.may_quit
        window.acted.connect(commands.act)
        window.model_chosen.connect(self.load)
        window.shown.connect(self._on_shown)
        window.closing.connect(self.close)
        window.notices.freed.connect(window.composer.take_focus)
        window.notices.acted.connect(commands.act_on_notice)
        window.notices.load_cancelled.connect(self.session.model.cancel_load)
        window.composer.submitted.connect(commands.submit)
        window.composer.stop_requested.connect(self.session.stop)
        window.composer.recall_requested.connect(commands.recall)
        window.files.connect(self.attachments.add)
        window.composer.picture.connect(self.attachments.show_picture)
        window.chips.opened.connect(self.attachments.open)
        window.chips.removed.connect(self.attachments.remove)
        window.transcript.opened.connect(self.attachments.show_document)
        self.attachments.notice.connect(window.notices.add)
        self.attachments.withdrawn.connect(window.notices.withdraw)
        self.attachments.load_wished.connect(self._on_reload)
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
        sidebar.deleted.connect(self.session.replies.forget)
        sidebar.deleted.connect(library.delete)
        sidebar.undeleted.connect(library.undelete)
        sidebar.delete_expired.connect(library.purge)
        sidebar.searched.connect(library.search)
        sidebar.left.connect(self.window.composer.take_focus)
        sidebar.left.connect(self.window.panes.uncover)
        sidebar.export_requested.connect(self.commands.export)
        sidebar.import_requested.connect(self.commands.import_file)
        self.chat.added.connect(self.display.mark_open)
        self.chat.opened.connect(self.display.mark_open)
        self.telemetry.sampled.connect(self.live.show_sample)
        self.telemetry.sampled.connect(observer.on_sample)
        self.telemetry.sampled.connect(self.welcome.on_sample)
        self.telemetry.sampled.connect(self.display.on_sample)
        self.telemetry.sampled.connect(self._on_sample)
        observer.outlooked.connect(self.live.show_outlook)
        observer.figured.connect(self.live.show_stats)
        observer.explained.connect(self.live.show_why)
        observer.answered.connect(self.live.what_if.show_answer)
        observer.split.connect(self.window.top.strip.set_shares)
        observer.reload_wished.connect(self._on_reload)
        observer.replan_wished.connect(self.session.model.replan)
        self.live.wished.connect(observer.on_wish)
        self.live.applied.connect(observer.on_apply)

    def _restore(self) -> None:
        self.remembered.restore()
        self._on_settings(self.preferences.settings)
        self.chat.show(self.library.new())
        for problem in self.preferences.problems:
            self.window.notices.add(notices.setting_ignored(problem.sentence))

    @Slot()
    def close(self) -> None:
        """End the reply, save everything, free the model and join the threads."""
        if self._closed:
            return
        self._closed = True
        # A timer that still runs must not be left to the garbage collector, which may run in any thread.
        self.sleep_watch.stop()
        self.idle.stop()
        self._limits_later.stop()
        self.remembered.write()
        self.drafts.keep()
        self.telemetry.stop()
        self.welcome.close()
        self.models.close()
        self.attachments.close()
        self.long.close()
        self.gpu.close()
        self.session.end()
        self.about.close()
        self.server.close()
        self.remote.close()
        self.toolbox.close()
        self.worker.close()
        self.library.close()

    @Slot()
    def _on_shown(self) -> None:
        # After the first paint: reading torch from the disk would delay it.
        QTimer.singleShot(0, self, self._start)

    @Slot()
    def _start(self) -> None:
        if self._closed:
            return
        self.library.refresh()
        self.telemetry.start()
        self.sleep_watch.start()
        if self.preferences.settings.update_check:
            self.about.updates.check()
        self.gpu.greet()
        self.toolbox.open()
        self.load(self._begun_with.model or self.remembered.source or str(builtin_model()))

    @Slot(str)
    def load(self, source: str) -> None:
        """Load another model."""
        self.session.load(source, self.preferences.options())

    def _settings(self) -> Settings:
        return self.preferences.settings

    def _longest_reply(self) -> int | None:
        return self.preferences.sampling(self.chat.conversation).max_new_tokens

    def _keeps(self) -> bool:
        return self.preferences.settings.keep_readings

    def _system_prompt(self) -> str:
        return self.preferences.settings.system_prompt

    @Slot(object)
    def _on_settings(self, kept: Settings) -> None:
        self.theme.choose(self.preferences.mode, kept.font_percent)
        self.window.composer.enter_sends = kept.enter_sends
        self.window.transcript.set_enter_sends(kept.enter_sends)

    @Slot()
    def _apply_limits(self) -> None:
        wished, now = self.preferences.options(), self.session.state.options
        self.session.model.replan(replace(now, vram=wished.vram, ram=wished.ram))

    @Slot()
    def _open_settings(self) -> None:
        self.preferences.open(self.theme, self.diagnostics, self.window)

    @Slot()
    def _open_log(self) -> None:
        self.preferences.open(self.theme, self.diagnostics, self.window).show_log()

    @Slot()
    def _open_gpu(self) -> None:
        self.gpu.open(self.theme, self.window)

    @Slot()
    def _restart(self) -> None:
        self.restarts = True
        self.window.close()

    def diagnostics(self) -> str:
        """Compose a text for a bug report: versions, machine, model and plan, but no chat text."""
        facts = model_facts(self.session.state.model)
        return diagnostics(self.preferences.settings, self._sample, self._places.log, facts)

    @Slot(object)
    def _on_reload(self, options: LoadOptions) -> None:
        self.session.load(self.session.state.source, options)

    @Slot(object)
    def _on_state(self, state: State) -> None:
        if not self._closed:
            self.server.set_model(state.model)
            self.display.show_state(state)

    @Slot(object)
    def _on_sample(self, sample: Sample) -> None:
        self._sample = sample
