"""The choice among a repository's GGUF files, each with size and verdict. The best one is preselected."""

from __future__ import annotations

from collections.abc import Collection

from PySide6.QtCore import Signal, Slot
from PySide6.QtWidgets import QSizePolicy, QWidget

from app.i18n.translator import tr
from app.settings.theme import Theme
from app.views.controls.inputs import ChoiceBox
from app.views.models import words
from core.hub.gguf_choices import Judged, best_choice

LEAST_LETTERS = 10
AROUND = 64
"""Pixels beside the text: icon, arrow, margins."""


class FileBox(ChoiceBox):
    """Combo box of files. `wanted`: the file or kind named in the search.

    Signal: `picked` when the user chose another file.
    """

    picked = Signal()

    def __init__(self, theme: Theme, parent: QWidget) -> None:
        super().__init__(theme, parent)
        self.wanted = ""
        self._choices: tuple[Judged, ...] = ()
        self._picked = ""
        self.setAccessibleName(tr("File"))
        self.setSizeAdjustPolicy(ChoiceBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self.setMinimumContentsLength(LEAST_LETTERS)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.activated.connect(self._on_activated)
        theme.changed.connect(self._refill)
        self.hide()

    @property
    def chosen(self) -> Judged | None:
        """The file that is selected."""
        return self._choices[self.currentIndex()] if 0 <= self.currentIndex() < len(self._choices) else None

    def forget(self) -> None:
        """Clear the box for another repository."""
        self._picked = ""
        self.show_choices(())

    def show_choices(self, choices: tuple[Judged, ...], here: Collection[str] = ()) -> None:
        """Show these files. `here`: paths of downloaded or downloading ones, preferred to the recommended one."""
        self._choices = choices
        self.setVisible(bool(choices))
        self._refill()
        best = best_choice(choices)
        known = [one for one in choices if one.choice.path in here]
        asked = [one for one in choices if self.wanted and one.choice.is_meant(self.wanted)]
        picked = [one for one in choices if one.choice.path == self._picked]
        first = next(iter((*picked, *asked, *known)), best)
        self.setCurrentIndex(choices.index(first) if first is not None else len(choices) - 1)

    def _refill(self) -> None:
        at, best = self.currentIndex(), best_choice(self._choices)
        self.clear()
        for judged in self._choices:
            _, icon, token = words.VERDICTS[judged.fit.kind] if judged.fit else ("", "warning", "muted")
            self.addItem(self._theme.icon(icon, token), words.choice_with_verdict(judged, is_best=judged is best))
        self.setCurrentIndex(at)
        widest = max(
            (self.view().fontMetrics().horizontalAdvance(self.itemText(i)) for i in range(self.count())), default=0
        )
        self.view().setMinimumWidth(widest + AROUND)

    def closed_text(self) -> str:
        """Return the file without its verdict, which is shown below."""
        chosen = self.chosen
        return "" if chosen is None else words.choice(chosen, is_best=chosen is best_choice(self._choices))

    @Slot(int)
    def _on_activated(self, at: int) -> None:
        self._picked = self._choices[at].choice.path
        self.picked.emit()
