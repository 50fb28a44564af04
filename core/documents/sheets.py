"""Reads the cells of an Excel workbook (.xlsx), each sheet as a page of tab-separated lines; formulas as last
computed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TypeVar

from core.documents.archive import Archive, TooLarge, elements, hear, local

BOOK = "xl/workbook.xml"
STRINGS, STYLES = "xl/sharedStrings.xml", "xl/styles.xml"
DATES = {*range(14, 23), *range(27, 37), 45, 46, 47, *range(50, 59)}
"""Ids of the built-in date and time formats."""
LITERAL = re.compile(r'"[^"]*"|\\.|\[[^\]]*\]')
COLUMN = re.compile(r"[A-Z]{1,3}")
EPOCH, EPOCH_1904 = datetime(1899, 12, 30), datetime(1904, 1, 1)
T = TypeVar("T")
TRUTH = {"0": "FALSE", "1": "TRUE"}


def sheet_pages(archive: Archive) -> tuple[str, ...]:
    """Return the sheets in order. Raises Forbidden, TooLarge, expat.ExpatError."""
    book, targets = elements(archive.part(BOOK)), archive.targets(BOOK)
    old = any(each.name == "workbookPr" and each.values.get("date1904") in ("1", "true") for each in book)
    values = _Values(_strings(archive.part(STRINGS)), _dates(archive.part(STYLES)), EPOCH_1904 if old else EPOCH)
    pages = []
    for each in book:
        if each.name == "sheet" and (part := targets.get(each.values.get("r:id", ""))):
            rows = _lines(_cells(archive.part(part), values), archive.limit)
            pages.append(f"# {each.values.get('name', '')}\n{rows}".strip())
    return tuple(pages)


@dataclass(frozen=True)
class _Values:
    """Converts a cell's stored value into the text that people see."""

    strings: list[str]
    dates: list[bool]
    epoch: datetime

    def shown(self, kind: str, style: str, stored: str) -> str:
        if kind == "s":
            return _at(self.strings, stored, "")
        if kind == "b":
            return TRUTH.get(stored, stored)
        return self._number(style, stored) if kind == "n" else stored

    def _number(self, style: str, stored: str) -> str:
        try:
            number = float(stored)
        except ValueError:
            return stored
        if _at(self.dates, style, other=False):
            with suppress(OverflowError, ValueError):
                return _moment(self.epoch + timedelta(days=number), number)
        return f"{number:.15g}"


def _at(table: Sequence[T], place: str, other: T) -> T:
    """Return an entry of a table, `other` if the index is invalid."""
    short = place.isdecimal() and len(place) < 10
    return table[int(place)] if short and int(place) < len(table) else other


def _moment(when: datetime, number: float) -> str:
    when = (when + timedelta(microseconds=500_000)).replace(microsecond=0)
    if 0 < number < 1:
        return f"{when:%H:%M:%S}"
    return f"{when:%Y-%m-%d}" if not (when.hour or when.minute or when.second) else f"{when:%Y-%m-%d %H:%M:%S}"


def _strings(xml: bytes) -> list[str]:
    """Return the table of shared strings, without phonetic readings of Japanese ones."""
    found: list[list[str]] = []
    within: list[str] = []

    def characters(text: str) -> None:
        if within[-1:] == ["t"] and "rPh" not in within and found:
            found[-1].append(text)

    def start(name: str, values: dict[str, str]) -> None:
        within.append(local(name))
        if within[-1] == "si":
            found.append([])

    if xml:
        hear(xml, start, lambda name: within.__delitem__(-1), characters)
    return ["".join(parts) for parts in found]


def _dates(xml: bytes) -> list[bool]:
    """Return for each cell style whether it shows numbers as dates."""
    own = set(map(str, DATES))
    styles: list[bool] = []
    in_cells = False
    for name, values in elements(xml):
        if name == "numFmt" and re.search("[dmyhs]", LITERAL.sub("", values.get("formatCode", "").lower())):
            own.add(values.get("numFmtId", ""))
        elif name in ("cellXfs", "cellStyles"):
            in_cells = name == "cellXfs"
        elif name == "xf" and in_cells:
            styles.append(values.get("numFmtId", "") in own)
    return styles


@dataclass
class _Sheet:
    """Handles the cells of one sheet; `rows` holds the texts by column of each row that has any."""

    values: _Values
    rows: list[dict[int, str]] = field(default_factory=list)
    _kind: str = "n"
    _style: str = ""
    _column: int = -1
    _stored: list[str] = field(default_factory=list)
    _hears: bool = False

    def start(self, element: str, values: dict[str, str]) -> None:
        name = local(element)
        if name == "row":
            self.rows.append({})
            self._column = -1
        elif name == "c":
            at = COLUMN.match(values.get("r", ""))
            self._column = _number_of(at[0]) if at else self._column + 1
            self._kind, self._style, self._stored = values.get("t", "n"), values.get("s", ""), []
        self._hears = name in ("v", "t")

    def end(self, element: str) -> None:
        self._hears = False
        if local(element) == "c" and self._stored and self.rows:
            text = self.values.shown(self._kind, self._style, "".join(self._stored))
            self.rows[-1][self._column] = " ".join(text.split())

    def characters(self, text: str) -> None:
        if self._hears:
            self._stored.append(text)


def _number_of(letters: str) -> int:
    number = 0
    for letter in letters:
        number = number * 26 + ord(letter) - 64
    return number - 1


def _cells(xml: bytes, values: _Values) -> list[dict[int, str]]:
    sheet = _Sheet(values)
    if xml:
        hear(xml, sheet.start, sheet.end, sheet.characters)
    return [row for row in sheet.rows if any(row.values())]


def _lines(rows: list[dict[int, str]], limit: int) -> str:
    """Return the rows without columns that are empty in all of them. Raises TooLarge."""
    columns = sorted({column for row in rows for column, text in row.items() if text})
    lines, length = [], 0
    for row in rows:
        length += len(columns) + sum(map(len, row.values()))
        if length > limit:
            raise TooLarge
        lines.append("\t".join(row.get(column, "") for column in columns).rstrip("\t"))
    return "\n".join(lines)
