"""The update check: asks GitHub once, only on the user's request, and reports failures as well."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from PySide6.QtCore import QObject, Signal, Slot

from app import REPOSITORY, VERSION
from app.engine.task_thread import TaskThread, Tell
from core.errors import AccessDenied, HeteGenError, ModelNotFound, NetworkError
from core.events import Stop
from core.hub.client import Client
from core.hub.environment import hub_environment
from core.hub.retry import Retries
from core.sentence import sentence

API = "https://api.github.com"
RELEASES_PAGE = f"{REPOSITORY}/releases"
NUMBER = re.compile(r"\d+(?:\.\d+)*")


@dataclass(frozen=True)
class UpdateAnswer:
    """The outcome of a check. `version`: the newest one, described at `page`; `error`: why it is `unknown`."""

    kind: Literal["newest", "newer", "unknown"]
    version: str = ""
    page: str = RELEASES_PAGE
    error: HeteGenError | None = None


class Updates(QObject):
    """Checks for updates in a worker thread.

    Signal: `answered(UpdateAnswer)` after each `check`.
    """

    answered = Signal(object)

    def __init__(self) -> None:
        super().__init__()
        self._tasks = TaskThread("updates")
        self._tasks.done.connect(self._on_done)
        self._tasks.failed.connect(self._on_failed)

    @Slot()
    def check(self) -> None:
        """Start a check."""
        self._tasks.run(_ask)

    def close(self) -> None:
        """Stop and join."""
        self._tasks.close()

    @Slot(int, object)
    def _on_done(self, ticket: int, answer: UpdateAnswer | None) -> None:
        if answer is not None:
            self.answered.emit(answer)

    @Slot(int, object)
    def _on_failed(self, ticket: int, error: HeteGenError) -> None:
        self.answered.emit(UpdateAnswer("unknown", error=error))


def _ask(stop: Stop, tell: Tell) -> UpdateAnswer:
    return newest(API, stop)


def newest(api: str, stop: Stop) -> UpdateAnswer:
    """Compare the newest release with this program's version. Raises NetworkError."""
    offline = hub_environment(os.environ).offline
    with Client(api, offline=offline, retries=Retries(limit=1)) as client:
        url = client.url(f"repos{urlsplit(REPOSITORY).path}/releases/latest")
        try:
            found, _ = client.get_json(url, "", stop)
        except ModelNotFound:
            raise NetworkError("No version has been released yet.") from None
        except AccessDenied:
            raise NetworkError(sentence("{} does not tell it now.", client.host), "", "Try again in an hour.") from None
        return _compare(found, client.host)


def _compare(release: object, host: str) -> UpdateAnswer:
    said = release if isinstance(release, dict) else {}
    number = NUMBER.search(str(said.get("tag_name", "")))
    if number is None:
        raise NetworkError(sentence("{} was not understood.", host), "Its answer names no version.", "Try again later.")
    page = str(said.get("html_url", ""))
    kind: Literal["newest", "newer"] = "newer" if parts(number[0]) > parts(VERSION) else "newest"
    return UpdateAnswer(kind, number[0], page if page.startswith(f"{RELEASES_PAGE}/") else RELEASES_PAGE)


def parts(version: str) -> tuple[int, ...]:
    """Return a version's numbers for comparison: "1.10" is later than "1.9" and equal to "1.10.0"."""
    numbers = [int(part) for part in version.split(".")]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)
