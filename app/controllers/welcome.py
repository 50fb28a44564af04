"""The empty chat: a line about this computer, and a suggested model that suits it better than the built-in one."""

from __future__ import annotations

import psutil
from PySide6.QtCore import QObject, QTimer, Slot

from app.catalog.recommender import Recommendation, Recommender
from app.engine.app_state import State
from app.i18n import formatting
from app.monitor.telemetry import Sample
from app.monitor.telemetry_nvml import GpuSample
from app.views.chat.empty_chat import EmptyChat
from core.paths import builtin_model

ADVICE_MS = 4000


class WelcomeController(QObject):
    """Fills the empty chat; looks for a model to suggest only while the built-in model is idle."""

    def __init__(self, empty: EmptyChat, recommender: Recommender) -> None:
        super().__init__()
        self._empty, self._recommender = empty, recommender
        self._cores = psutil.cpu_count(logical=False) or psutil.cpu_count()
        self._later = QTimer(self, singleShot=True, interval=ADVICE_MS)
        self._later.timeout.connect(recommender.ask)
        recommender.found.connect(self._on_found)

    @Slot(object)
    def on_state(self, state: State) -> None:
        """Schedule the suggestion while the built-in model is idle; pause it during a load or a reply."""
        self._recommender.pause(state.busy or state.phase == "loading")
        guide = state.source in ("", str(builtin_model()))
        self._empty.set_guide(guide)
        if guide and state.phase == "ready":
            # Delayed, and never beside a reply: judging measures the machine, and the first question comes first.
            self._later.start()
        else:
            self._later.stop()

    @Slot(object)
    def on_sample(self, sample: Sample) -> None:
        """Show the machine and its memory."""
        cards = tuple((card.name, free_memory(card)) for card in sample.gpus)
        self._empty.set_machine(formatting.machine(self._cores, sample.ram_total, cards))

    def close(self) -> None:
        """Stop the timer and the thread."""
        self._later.stop()
        self._recommender.close()

    @Slot(object)
    def _on_found(self, advice: Recommendation) -> None:
        model, speed = advice.model, advice.fit.tok_s
        self._empty.advise(model.id, formatting.advice(model.id.split("/")[-1], model.download_bytes, speed))


def free_memory(card: GpuSample) -> int | None:
    """Bytes of a card's memory that a model could use; memory held by this program counts as free."""
    held = card.vram_used if card.vram_others is None else card.vram_others
    return None if card.vram_total is None or held is None else card.vram_total - held
