"""Notable states of the model dialog, on a fake Hub."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from app.catalog.catalog import Details
from app.catalog.downloads import Transfer
from app.catalog.recommended import recommended
from app.i18n import translator
from app.settings.theme import Mode
from core.errors import DownloadFailed
from core.hub.fit import Kind, Wishes
from core.hub.gguf_choices import GgufChoice, Judged
from core.hub.listing import ModelInfo, Page, RemoteFile
from core.hub.progress import Progress
from core.paths import assets
from tests.app.dialog_fixture import DialogStage, check_fit, hub_repos
from tests.app.waiting import idle, until
from tests.core.hub.fake_hub import Double

CHOSEN = "heron/heron-7b-instruct"


class HubStage:
    """The dialog and its Hub."""

    def __init__(self, mode: Mode, words: str = "en") -> None:
        self._home = tempfile.TemporaryDirectory()
        self._words = translator.install(words)
        self.hub = Double(*hub_repos())
        self.hub.__enter__()
        self._staged = DialogStage(self.hub, Path(self._home.name), recommended(assets()), mode)
        self.dialog, self.downloads = self._staged.dialog, self._staged.downloads
        self.catalog = self._staged.catalog
        self.shown: object = None
        """The widget to show instead of the dialog."""
        self.dialog.show()
        until(lambda: self.dialog.collection.is_judged)

    @property
    def subject(self) -> object:
        return self.shown or self.dialog

    def settle(self, seconds: float = 0.5) -> None:
        idle(seconds)

    def look_at(self, id: str) -> None:
        self.dialog.search.setText("heron")
        until(lambda: self.dialog.collection.found is not None)
        until(lambda: all(self.dialog.rows.index_of(one.id).isValid() for one in hub_repos()))
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
    until(lambda: stage.dialog.collection.found is not None)
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


GGUF = "heron/heron-7b-instruct-GGUF"
FILES = (("Q2_K", 3.0, "fits"), ("Q4_K_M", 4.7, "fits"), ("Q6_K", 6.3, "cpu_help"), ("Q8_0", 8.1, "cpu_help"),
         ("BF16", 15.2, "slow"), ("F32", 30.5, "no"))  # fmt: skip
"""Kinds, gigabytes and verdicts."""


def judged(kind: str, gigabytes: float, verdict: Kind) -> Judged:
    path, size = f"heron-7b-instruct-{kind}.gguf", int(gigabytes * 1e9)
    verdict_of_size = replace(
        check_fit({"parameters": {"fits": 2e9, "cpu_help": 7e9, "slow": 1.4e10, "no": 7e10}[verdict]}, {}, Wishes()),
        parameters=7_600_000_000, stored_bytes=size, converted_bytes=size, format="bf16",
        stored_as=f"GGUF {kind}", kept=True,
    )  # fmt: skip
    choice = GgufChoice(path, kind, (RemoteFile(path, size, "1" * 40),))
    return Judged(choice, {"general.architecture": "llama"}, {}, verdict_of_size)


def show_files(stage: HubStage, *, open_list: bool = False) -> None:
    info = ModelInfo(GGUF, downloads=412_000, likes=210, license="apache-2.0", updated="2025-01-01",
                     parameters=(("", 7_600_000_000),), tags=("gguf",))  # fmt: skip
    stage.dialog.search.setText("heron")
    until(lambda: stage.dialog.collection.found is not None)
    stage.catalog.found.emit(Page((info, *(stage.dialog.collection.found or ())), ""), False)
    stage.dialog.list.setCurrentIndex(stage.dialog.rows.index_of(GGUF))
    stage.settle()
    choices = tuple(judged(*file) for file in FILES)
    card = "# Heron 7B in GGUF\n\nMade from the original weights."
    stage.catalog.detailed.emit(Details(GGUF, info, card, choices=choices, asking=False))
    stage.settle(0.1)
    if open_list:
        stage.dialog.details.files.showPopup()
        stage.shown = stage.dialog.details.files.view().window()


def files(stage: HubStage) -> None:
    show_files(stage)


def files_open(stage: HubStage) -> None:
    show_files(stage, open_list=True)


def files_narrow(stage: HubStage) -> None:
    stage.dialog.resize(640, 480)
    show_files(stage)


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
        ("files", files),
        ("files_open", files_open),
        ("files_narrow", files_narrow),
    )
}
