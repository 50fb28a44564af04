"""The settings in force: read at the start, written at every change, edited in a dialog."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from PySide6.QtCore import QObject, QUrl, Signal, Slot
from PySide6.QtGui import QDesktopServices
from PySide6.QtWidgets import QWidget

from app.conversations.conversation import Conversation
from app.notices import notices
from app.settings import settings
from app.settings.settings import PRESETS, Settings
from app.settings.theme import MODES, Mode, Theme
from app.system import readings
from app.system.paths import Places
from core.events import LOOKUP, LoadOptions, Sampling
from core.spec import format_named, kv_named

if TYPE_CHECKING:
    from app.views.settings.settings_dialog import SettingsDialog

GIB = 2**30
LIMITS = ("vram_limit_gib", "ram_limit_gib")
log = logging.getLogger(__name__)


class Preferences(QObject):
    """Owner of the settings.

    Signals: `changed(Settings)` after each change; `limited` if a memory limit changed; `notice(Notice)` if the file
    could not be written.
    """

    changed = Signal(object)
    limited = Signal()
    notice = Signal(object)

    def __init__(self, places: Places, started_with: LoadOptions) -> None:
        """`started_with`: the options of the command line, which take precedence over the settings."""
        super().__init__()
        self._places, self._started_with = places, started_with
        reading = settings.read(places.settings)
        self.settings, self.problems, self._unknown = reading.settings, reading.problems, reading.unknown

    @property
    def mode(self) -> Mode:
        """The colour scheme as a theme mode; "system" for an unknown value."""
        return next((known for known in MODES if known == self.settings.theme), "system")

    def sampling(self, conversation: Conversation) -> Sampling:
        """Return how replies in a conversation are sampled: by its preset, else by the settings."""
        return PRESETS.get(conversation.preset) or self.settings.sampling()

    def options(self) -> LoadOptions:
        """Return the options for a load."""
        kept, asked = self.settings, self._started_with
        return replace(
            asked,
            context=asked.context or kept.context,
            format=asked.format if asked.format != "auto" else format_named(kept.format),
            vram=asked.vram if asked.vram is not None else _bytes(kept.vram_limit_gib),
            ram=asked.ram if asked.ram is not None else _bytes(kept.ram_limit_gib),
            threads=asked.threads or kept.threads,
            kv=asked.kv if asked.kv != "bf16" else kv_named(kept.kv),
            draft=asked.draft if asked.draft != LOOKUP else kept.drafts,
        )

    def open(self, theme: Theme, diagnostics: Callable[[], str], parent: QWidget) -> SettingsDialog:
        """Show the dialog. Changes take effect immediately."""
        # Imported late: most starts never open it.
        from app.views.settings.settings_dialog import SettingsDialog

        places = self._places
        folders = (
            ("Conversations", places.data),
            ("Settings", places.config),
            ("Cache", places.cache),
            ("Log", places.logs),
        )
        dialog = SettingsDialog(theme, self.settings, folders, places.log, diagnostics, parent, readings.nbytes)
        dialog.remove_requested.connect(remove_readings)
        dialog.show_problems(self.problems)
        dialog.changed.connect(self._on_changed)
        dialog.open_requested.connect(open_folder)
        dialog.finished.connect(dialog.deleteLater)
        dialog.open()
        return dialog

    @Slot(str)
    def size_type(self, wish: str) -> None:
        """Change the font size: one step "larger" or "smaller", or back to "normal"."""
        name, now = "font_percent", self.settings.font_percent
        step = int(settings.declared()[name].step)
        wished = {"larger": now + step, "smaller": now - step, "normal": Settings.font_percent}[wish]
        if wished != now and settings.objection(name, wished) is None:
            self._on_changed(settings.with_value(self.settings, name, wished), name)

    @Slot(object, str)
    def _on_changed(self, changed: Settings, name: str) -> None:
        self.settings = changed
        try:
            settings.write(self._places.settings, changed, self._unknown)
        except OSError as error:
            log.warning("The settings were not written: %s", error)
            self.notice.emit(notices.not_written(self._places.settings, error))
        self.changed.emit(changed)
        if name in LIMITS:
            self.limited.emit()


def remove_readings() -> None:
    """Delete the KV caches kept on disk."""
    readings.keep_only(())


def open_folder(path: str) -> None:
    """Open a folder in the system's file manager."""
    QDesktopServices.openUrl(QUrl.fromLocalFile(path))


def _bytes(gib: float | None) -> int | None:
    return None if gib is None else round(gib * GIB)
