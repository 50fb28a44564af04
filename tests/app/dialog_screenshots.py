"""States of the model dialog worth looking at, on a Hub double."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from PySide6.QtWidgets import QApplication

from app.catalog.downloads import Transfer
from app.catalog.recommended import recommended
from app.i18n import translator
from app.settings.theme import Mode
from core.errors import DownloadFailed
from core.hub.progress import Progress
from core.paths import assets
from tests.app.dialog_fixture import DialogStage, hub_repos
from tests.core.hub.fake_hub import Double

CHOSEN = "heron/heron-7b-instruct"


class HubStage:
    """The dialog and the Hub it asks."""

    def __init__(self, mode: Mode, words: str = "en") -> None:
        self._home = tempfile.TemporaryDirectory()
        self._words = translator.install(words)
        self.hub = Double(*hub_repos())
        self.hub.__enter__()
        self._staged = DialogStage(self.hub, Path(self._home.name), recommended(assets()), mode)
        self.dialog, self.downloads = self._staged.dialog, self._staged.downloads
        self.dialog.show()
        self.until(lambda: self.dialog.collection.is_judged)

    @property
    def subject(self) -> object:
        return self.dialog

    def until(self, met: Callable[[], bool], limit: float = 30.0) -> None:
        end = time.monotonic() + limit
        while not met():
            QApplication.processEvents()
            assert time.monotonic() < end, "it did not happen"
            time.sleep(0.002)

    def settle(self, seconds: float = 0.5) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            QApplication.processEvents()
            time.sleep(0.005)

    def look_at(self, id: str) -> None:
        self.dialog.search.setText("heron")
        self.until(lambda: self.dialog.collection.found is not None)
        self.until(lambda: all(self.dialog.rows.index_of(one.id).isValid() for one in hub_repos()))
        self.dialog.list.setCurrentIndex(self.dialog.rows.index_of(id))
        self.settle()

    def tell(self, transfer: Transfer) -> None:
        self.downloads._set(transfer)

    def close(self) -> None:
        self._staged.close()
        self.hub.__exit__(None, None, None)
        self._home.cleanup()


def first_run(stage: HubStage) -> None:
    stage.settle()


def search(stage: HubStage) -> None:
    stage.dialog.search.setText("heron")
    stage.until(lambda: stage.dialog.collection.found is not None)
    stage.settle()


def verdict_of(id: str) -> Callable[[HubStage], None]:
    return lambda stage: stage.look_at(id)


PROGRESS = Progress(CHOSEN, done=4_560_000_000, total=15_200_000_000, fetched=4_560_000_000, rate=41.3e6, eta_s=258.0)


def downloading(stage: HubStage) -> None:
    stage.look_at(CHOSEN)
    stage.tell(Transfer(CHOSEN, "running", PROGRESS))


def paused(stage: HubStage) -> None:
    stage.look_at(CHOSEN)
    stage.tell(Transfer(CHOSEN, "paused", PROGRESS))


def failed(stage: HubStage) -> None:
    stage.look_at(CHOSEN)
    error = DownloadFailed("model-00002-of-00004.safetensors did not arrive as it was sent.", "", "Try again.")
    stage.tell(Transfer(CHOSEN, "failed", PROGRESS, error))


DIALOG_SCENES: dict[str, Callable[[HubStage], None]] = {
    f"models_{name}": scene
    for name, scene in (
        ("first_run", first_run),
        ("search", search),
        ("fits", verdict_of("heron/heron-1b")),
        ("cpu_help", verdict_of(CHOSEN)),
        ("slow", verdict_of("heron/heron-14b")),
        ("will_not_fit", verdict_of("heron/heron-70b")),
        ("downloading", downloading),
        ("paused", paused),
        ("failed", failed),
        ("gated", verdict_of("heron/gated-8b")),
        ("strange", verdict_of("heron/strange")),
    )
}
