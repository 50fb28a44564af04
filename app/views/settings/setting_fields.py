"""One row per declared setting: label, control and error."""

from __future__ import annotations

import re
from collections.abc import Sequence

from PySide6.QtCore import QCoreApplication, Qt, QTimer, Signal, Slot
from PySide6.QtWidgets import (
    QCheckBox,
    QComboBox,
    QFileDialog,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QPlainTextEdit,
    QPushButton,
    QVBoxLayout,
    QWidget,
)

from app.i18n.translator import number, said
from app.settings.settings import Declared, Settings, declared, objection
from app.settings.theme import GROUP, INSIDE, RELATED, Theme
from app.views.controls.inputs import ChoiceBox, TextBox, TickBox

TYPING_MS = 400
FIELD_WIDTH = 260
WHOLE_NUMBER = re.compile(r"[+-]?(\d+|\d{1,3}([.,'’_\s])\d{3}(\2\d{3})*)")


def words(text: str) -> str:
    """Translate a declaration's text."""
    return QCoreApplication.translate("Settings", text)


class SettingField(QWidget):
    """The row of one setting.

    Signal: `changed(name, value)` for each valid value. An invalid value is explained in place and not emitted.
    """

    changed = Signal(str, object)

    def __init__(self, theme: Theme, name: str, settings: Settings, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._theme, self.name = theme, name
        self._declared: Declared = declared()[name]
        self._value: object = getattr(settings, name)
        self._label, self._help, self._error = QLabel(self), QLabel(self), QLabel(self)
        self._delay = QTimer(self, singleShot=True, interval=TYPING_MS)
        self._delay.timeout.connect(self._take_text)
        self.control = self._make()
        self.control.setAccessibleName(words(self._declared.label))
        self.control.setAccessibleDescription(words(self._declared.help))
        self._lay_out()
        theme.changed.connect(self._on_theme)
        self._on_theme()
        self.show_value(self._value)

    def show_value(self, value: object) -> None:
        """Set the control's value without emitting `changed`."""
        self._value = value
        control = self.control
        control.blockSignals(True)
        if isinstance(control, QCheckBox):
            control.setChecked(bool(value))
        elif isinstance(control, QComboBox):
            if control.findData(value) < 0:  # a valid value between the steps, from a file edited by hand
                control.addItem(str(value), value)
            control.setCurrentIndex(control.findData(value))
        elif isinstance(control, QPlainTextEdit):
            control.setPlainText(str(value))
        elif isinstance(control, QLineEdit):
            control.setText(_written(value))
        control.blockSignals(False)
        self._say("")

    @property
    def error(self) -> str:
        """What is wrong with the control's value; empty if it is valid."""
        return self._error.text()

    @Slot()
    def flush(self) -> None:
        """Apply text that is still being typed."""
        if self._delay.isActive():
            self._take_text()

    def _make(self) -> QWidget:
        entry = self._declared
        if entry.kind == "bool":
            return self._check_box()
        if entry.kind == "choice":
            return self._choice_box([(value, words(label)) for value, label in entry.choices])
        if entry.kind == "int" and not entry.unset:
            return self._choice_box(self._steps())
        if entry.lines > 1:
            return self._text_box()
        return self._line()

    def _check_box(self) -> QWidget:
        box = TickBox(self._theme, words(self._declared.label), self)
        box.toggled.connect(self._take)
        return box

    def _choice_box(self, choices: Sequence[tuple[object, str]]) -> QWidget:
        box = ChoiceBox(self._theme, self)
        for value, label in choices:
            box.addItem(label, value)
        box.currentIndexChanged.connect(lambda: self._take(box.currentData()))
        return box

    def _steps(self) -> list[tuple[object, str]]:
        """Return the values of a setting with few steps, in ascending order."""
        entry = self._declared
        values = range(int(entry.low or 0), int(entry.high or 0) + 1, int(entry.step))
        return [(value, f"{value} {entry.unit}".strip()) for value in values]

    def _text_box(self) -> QWidget:
        box = TextBox(self._theme, self)
        box.setTabChangesFocus(True)
        box.setFixedHeight(box.fontMetrics().lineSpacing() * self._declared.lines + 2 * GROUP)
        box.textChanged.connect(self._delay.start)
        return box

    def _line(self) -> QWidget:
        line = QLineEdit(self)
        line.setPlaceholderText(words(self._declared.unset or self._declared.example))
        line.textEdited.connect(self._on_typing)
        line.editingFinished.connect(self.flush)
        return line

    @Slot(str)
    def _on_typing(self, text: str) -> None:
        # Errors are shown at once; valid values are applied when typing pauses.
        value = self._parsed(text)
        self._say(objection(self.name, value) or "")
        self._delay.start()

    @Slot()
    def _take_text(self) -> None:
        self._delay.stop()
        control = self.control
        text = control.toPlainText() if isinstance(control, QPlainTextEdit) else control.text()  # type: ignore[attr-defined]
        self._take(self._parsed(text))

    def _parsed(self, text: str) -> object:
        """Parse the text. Text that is not a number stays text and is objected to."""
        if self._declared.kind not in ("int", "float"):
            return text if self._declared.kind == "text" else text.strip()
        if not text.strip():
            return None
        number = _whole_number if self._declared.kind == "int" else _number
        try:
            return number(text.strip())
        except ValueError:
            return text.strip()

    @Slot(object)
    def _take(self, value: object) -> None:
        sentence = objection(self.name, value) or ""
        self._say(sentence)
        if sentence or value == self._value:
            return
        self._value = value
        self.changed.emit(self.name, value)

    def _say(self, sentence: str) -> None:
        self._error.setText(said(sentence))
        self._error.setVisible(bool(sentence))

    def _lay_out(self) -> None:
        entry = self._declared
        unit = f" ({words(entry.unit)})" if entry.unit and isinstance(self.control, QLineEdit) else ""
        self._label.setText(words(entry.label) + unit)
        self._label.setWordWrap(True)
        self._label.setBuddy(self.control)
        self._help.setText(words(entry.help))
        self._help.setVisible(bool(entry.help))
        for label in (self._help, self._error):
            label.setWordWrap(True)
            label.setTextFormat(Qt.TextFormat.PlainText)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(INSIDE)
        if entry.kind == "bool":
            self._label.hide()
            column.addWidget(self.control)
        elif entry.lines > 1:
            column.addWidget(self._label)
            column.addWidget(self.control)
        elif entry.kind == "folder":
            column.addWidget(self._label)
            column.addLayout(self._folder_row())
        else:
            column.addLayout(self._row())
        column.addWidget(self._help)
        column.addWidget(self._error)

    def _row(self) -> QHBoxLayout:
        row = QHBoxLayout()
        row.setSpacing(RELATED)
        row.addWidget(self._label, 1)
        row.addWidget(self.control)
        return row

    def _folder_row(self) -> QHBoxLayout:
        """Lay out the field and its button below the label: paths are long."""
        row = QHBoxLayout()
        row.setSpacing(RELATED)
        row.addWidget(self.control, 1)
        choose = QPushButton(self.tr("Choose…"), self)
        choose.clicked.connect(self._choose_folder)
        row.addWidget(choose)
        return row

    @Slot()
    def _fit(self) -> None:
        width = self._theme.grown(FIELD_WIDTH)
        if self._declared.kind == "folder":
            self.control.setMinimumWidth(width)
        elif self._declared.kind != "bool" and self._declared.lines == 1:
            self.control.setFixedWidth(width)

    @Slot()
    def _choose_folder(self) -> None:
        folder = QFileDialog.getExistingDirectory(self, words(self._declared.label), str(self._value))
        if folder and isinstance(self.control, QLineEdit):
            self.control.setText(folder)
            self._take(folder)

    @Slot()
    def _on_theme(self) -> None:
        colours = self._theme.colours
        self._fit()
        for label, colour in ((self._help, colours.muted), (self._error, colours.danger)):
            label.setFont(self._theme.font("small"))
            label.setStyleSheet(f"color: {colour};")


def _whole_number(text: str) -> int:
    """Parse an integer with thousands separators; "2.5" and "2,5" are not integers. Raises ValueError."""
    if not WHOLE_NUMBER.fullmatch(text):
        raise ValueError(text)
    return int("".join(character for character in text if character.isdigit() or character in "+-"))


def _number(text: str) -> float:
    return float(text.replace(" ", "").replace("_", "").replace(",", "."))


def _written(value: object) -> str:
    if value is None:
        return ""
    return number(f"{value:g}") if isinstance(value, float) else str(value)
