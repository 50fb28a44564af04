"""Writes Markdown into a QTextDocument in the theme's fonts and colours. No images, no HTML."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from markdown_it.token import Token
from PySide6.QtCore import Qt
from PySide6.QtGui import (
    QFont,
    QFontMetricsF,
    QTextBlockFormat,
    QTextCharFormat,
    QTextCursor,
    QTextFormat,
    QTextFrameFormat,
    QTextLength,
    QTextOption,
    QTextTable,
    QTextTableCellFormat,
    QTextTableFormat,
)

from app.settings.theme import LINE_HEIGHT, RELATED, FontRole, Theme
from app.text.markdown_rules import parser
from app.text.tex import Run, runs

QUOTE_LEVEL = QTextFormat.Property.UserProperty + 1
"""Block property: nesting depth of quotes. The view paints the bars."""
STEP = 24
"""Indentation, in pixels, of each list or quote level."""
MOST_COLUMNS = 24
INSIDE_ITEMS = 4
_ADDRESS = re.compile(r"https?://[^\s<>\"'`]+[^\s<>\"'`.,;:!?)\]}]")


@dataclass(frozen=True)
class _Place:
    """Where the next block goes."""

    level: int = 0
    quote: int = 0
    marker: str = ""
    in_item: bool = False


class ProseWriter:
    """Appends Markdown at a cursor. Use one writer per document; it stores no text."""

    def __init__(self, theme: Theme) -> None:
        self._theme = theme
        self._plain = self._char("message", "text")
        self._metrics = QFontMetricsF(theme.font("message"))
        self._line = self._metrics.height()

    def write(self, cursor: QTextCursor, text: str, level: int = 0) -> None:
        """Append one run of Markdown, starting in the last block if that is empty."""
        if level:
            first = len(text) - len(text.lstrip(" "))
            text = "\n".join(line[min(first, len(line) - len(line.lstrip(" "))) :] for line in text.split("\n"))
        cursor.movePosition(QTextCursor.MoveOperation.End)
        self._blocks(cursor, parser().parse(text), _Place(level=level))

    def _blocks(self, cursor: QTextCursor, tokens: list[Token], place: _Place) -> None:
        places = [place]
        numbers: list[int | None] = []
        at = 0
        while at < len(tokens):
            token = tokens[at]
            here = places[-1]
            match token.type:
                case "bullet_list_open" | "ordered_list_open":
                    ordered = token.type == "ordered_list_open"
                    numbers.append(int(token.attrs.get("start", 1)) if ordered else None)
                case "bullet_list_close" | "ordered_list_close":
                    numbers.pop()
                case "list_item_open":
                    number = numbers[-1]
                    marker = "•" if number is None else f"{number}."
                    numbers[-1] = None if number is None else number + 1
                    places.append(replace(here, level=here.level + 1, marker=marker, in_item=True))
                case "blockquote_open":
                    places.append(replace(here, quote=here.quote + 1, marker="", in_item=False))
                case "footnote_open":
                    places.append(replace(here, level=here.level + 1, marker=token.info, in_item=True))
                case "list_item_close" | "blockquote_close" | "footnote_close":
                    places.pop()
                case "heading_open":
                    self._heading(cursor, tokens[at + 1], here, int(token.tag[1]))
                    at += 1
                case "inline":
                    self._paragraph(cursor, token, here)
                    places[-1] = replace(here, marker="")
                case "fence" | "code_block" | "html_block":
                    self._begin(cursor, here)
                    cursor.insertText(token.content.rstrip("\n").replace("\n", "\u2028"), self._code())
                case "hr":
                    self._rule(cursor, here)
                case "table_open":
                    at = self._table(cursor, tokens, at)
                case _:
                    pass
            at += 1

    def _begin(self, cursor: QTextCursor, place: _Place, above: float = RELATED) -> None:
        form = QTextBlockFormat()
        form.setLineHeight(self._line * LINE_HEIGHT / 1.25, QTextBlockFormat.LineHeightTypes.MinimumHeight.value)
        form.setLeftMargin((place.level + place.quote) * STEP)
        if place.quote:
            form.setProperty(QUOTE_LEVEL, place.quote)
        empty = cursor.block().length() == 1 and cursor.currentTable() is None
        first = cursor.document().blockCount() == 1 and empty
        form.setTopMargin(0 if first else INSIDE_ITEMS if place.in_item and place.marker else above)
        if empty:
            cursor.setBlockFormat(form)
            cursor.setBlockCharFormat(self._plain)
        else:
            cursor.insertBlock(form, self._plain)

    def _heading(self, cursor: QTextCursor, inline: Token, place: _Place, size: int) -> None:
        role: FontRole = ("heading1", "heading2", "heading3")[min(size, 3) - 1]
        self._begin(cursor, place, above=2 * RELATED)
        form = cursor.blockFormat()
        form.setHeadingLevel(size)
        cursor.setBlockFormat(form)
        self._inline(cursor, inline, self._char(role, "text"))
        _turn_around(cursor)

    def _paragraph(self, cursor: QTextCursor, inline: Token, place: _Place) -> None:
        self._begin(cursor, place)
        if place.marker:
            marker = place.marker
            if task := re.match(r"\[([ xX])\] ", inline.content):
                marker = "☐" if task[1] == " " else "☑"
                first = inline.children[0] if inline.children else None
                if first is not None and first.type == "text":
                    first.content = first.content[4:]
            wide = max(STEP, round(self._metrics.horizontalAdvance(marker)) + 6)
            form = cursor.blockFormat()
            form.setTextIndent(-wide)
            form.setLeftMargin(form.leftMargin() - STEP + wide)
            # Qt counts tab stops from the start of the first line.
            form.setTabPositions([QTextOption.Tab(wide, QTextOption.TabType.LeftTab)])
            cursor.setBlockFormat(form)
            cursor.insertText(f"{marker}\t", self._char("message", "muted"))
        self._inline(cursor, inline, self._plain)
        _turn_around(cursor)

    def _rule(self, cursor: QTextCursor, place: _Place) -> None:
        self._begin(cursor, place)
        form = cursor.blockFormat()
        width = QTextLength(QTextLength.Type.PercentageLength, 100)
        form.setProperty(QTextFormat.Property.BlockTrailingHorizontalRulerWidth, width)
        form.setBottomMargin(RELATED)
        cursor.setBlockFormat(form)
        cursor.insertText("\u200b", self._char("small", "border"))

    def _inline(self, cursor: QTextCursor, inline: Token, base: QTextCharFormat) -> None:
        formats = [base]
        for token in inline.children or []:
            here = formats[-1]
            match token.type:
                case "text":
                    self._text(cursor, token.content, here)
                case "softbreak" | "hardbreak":
                    cursor.insertText(" " if token.type == "softbreak" else "\u2028", here)
                case "code_inline":
                    cursor.insertText(token.content, self._merged(here, self._code()))
                case "maths":
                    for run in runs(token.content):
                        cursor.insertText(run.text.replace("\n", "\u2028"), self._maths(here, run))
                case "footnote_ref":
                    cursor.insertText(token.content, self._raised(here))
                case "line_break":
                    cursor.insertText(token.content if token.meta["is_word"] else "\u2028", here)
                case "tagged":
                    cursor.insertText(token.content, self._tagged(here, token.tag))
                case "image":
                    self._link(cursor, f"[image: {token.content or 'no description'}]", str(token.attrs["src"]), here)
                case "strong_open" | "em_open" | "s_open" | "link_open":
                    formats.append(self._opened(here, token))
                case "strong_close" | "em_close" | "s_close" | "link_close":
                    if len(formats) > 1:
                        formats.pop()
                case _:
                    cursor.insertText(token.content, here)

    def _text(self, cursor: QTextCursor, text: str, here: QTextCharFormat) -> None:
        at = 0
        if not here.isAnchor():
            for found in _ADDRESS.finditer(text):
                cursor.insertText(text[at : found.start()], here)
                self._link(cursor, found[0], found[0], here)
                at = found.end()
        cursor.insertText(text[at:], here)

    def _link(self, cursor: QTextCursor, text: str, address: str, here: QTextCharFormat) -> None:
        cursor.insertText(text, self._anchored(here, address))

    def _opened(self, here: QTextCharFormat, token: Token) -> QTextCharFormat:
        form = QTextCharFormat(here)
        if token.type == "strong_open":
            form.setFontWeight(QFont.Weight.DemiBold)
        elif token.type == "em_open":
            form.setFontItalic(True)
        elif token.type == "s_open":
            form.setFontStrikeOut(True)
        else:
            return self._anchored(here, str(token.attrs.get("href", "")))
        return form

    def _anchored(self, here: QTextCharFormat, address: str) -> QTextCharFormat:
        form = QTextCharFormat(here)
        form.setAnchor(True)
        form.setAnchorHref(address)
        form.setToolTip(address)
        form.setForeground(self._theme.colour("accent"))
        form.setFontUnderline(True)
        return form

    def _char(self, role: FontRole, token: str) -> QTextCharFormat:
        form = QTextCharFormat()
        form.setFont(self._theme.font(role))
        form.setForeground(self._theme.colour(token))
        return form

    def _code(self) -> QTextCharFormat:
        form = self._char("code", "text")
        form.setBackground(self._theme.colour("hover"))
        return form

    def _maths(self, here: QTextCharFormat, run: Run) -> QTextCharFormat:
        form = QTextCharFormat(here)
        form.setFontItalic(True)
        if run.level != "line":
            align = QTextCharFormat.VerticalAlignment
            form.setVerticalAlignment(align.AlignSubScript if run.level == "lower" else align.AlignSuperScript)
        return form

    def _tagged(self, here: QTextCharFormat, tag: str) -> QTextCharFormat:
        form = QTextCharFormat(here)
        match tag:
            case "kbd":
                return self._merged(here, self._code())
            case "sub":
                form.setVerticalAlignment(QTextCharFormat.VerticalAlignment.AlignSubScript)
            case "sup":
                form.setVerticalAlignment(QTextCharFormat.VerticalAlignment.AlignSuperScript)
            case "mark":
                form.setBackground(self._theme.colour("selection"))
            case _:
                form.setFontUnderline(True)
        return form

    def _raised(self, here: QTextCharFormat) -> QTextCharFormat:
        form = QTextCharFormat(here)
        form.setVerticalAlignment(QTextCharFormat.VerticalAlignment.AlignSuperScript)
        form.setForeground(self._theme.colour("muted"))
        return form

    def _merged(self, here: QTextCharFormat, over: QTextCharFormat) -> QTextCharFormat:
        form = QTextCharFormat(over)
        form.setFontWeight(here.fontWeight())
        return form

    def _table(self, cursor: QTextCursor, tokens: list[Token], start: int) -> int:
        """Write the table that begins at `start`; return the index of its last token."""
        end = next(at for at in range(start, len(tokens)) if tokens[at].type == "table_close")
        rows: list[list[tuple[Token, str]]] = []
        for at in range(start, end):
            if tokens[at].type == "tr_open":
                rows.append([])
            elif tokens[at].type in ("th_open", "td_open"):
                rows[-1].append((tokens[at + 1], str(tokens[at].attrs.get("style", ""))))
        columns = min(MOST_COLUMNS, max(map(len, rows)))
        self._begin(cursor, _Place())
        table = cursor.insertTable(len(rows), columns, self._table_format(columns))
        for row, cells in enumerate(rows):
            for column, (inline, style) in enumerate(cells[:columns]):
                self._cell(table, row, column, inline, style)
        cursor.movePosition(QTextCursor.MoveOperation.End)
        after = QTextBlockFormat()
        after.setLineHeight(RELATED, QTextBlockFormat.LineHeightTypes.FixedHeight.value)
        cursor.setBlockFormat(after)
        return end

    def _table_format(self, columns: int) -> QTextTableFormat:
        form = QTextTableFormat()
        form.setBorder(1)
        form.setBorderCollapse(True)
        form.setBorderStyle(QTextFrameFormat.BorderStyle.BorderStyle_Solid)
        form.setBorderBrush(self._theme.colour("border"))
        form.setCellPadding(6)
        form.setHeaderRowCount(1)
        form.setTopMargin(RELATED)
        form.setBottomMargin(RELATED)
        return form

    def _cell(self, table: QTextTable, row: int, column: int, inline: Token, style: str) -> None:
        base = QTextCharFormat(self._plain)
        if row == 0:
            base.setFontWeight(QFont.Weight.DemiBold)
            shade = QTextTableCellFormat()
            shade.setBackground(self._theme.colour("side"))
            table.cellAt(row, column).setFormat(shade)
        cursor = table.cellAt(row, column).firstCursorPosition()
        form = QTextBlockFormat()
        if "right" in style:
            form.setAlignment(Qt.AlignmentFlag.AlignRight)
        elif "center" in style:
            form.setAlignment(Qt.AlignmentFlag.AlignHCenter)
        cursor.setBlockFormat(form)
        cursor.setBlockCharFormat(base)
        for token in inline.children or []:
            if token.type == "line_break":  # the only kind that a cell can have
                token.type = "hardbreak"
        self._inline(cursor, inline, base)


def _turn_around(cursor: QTextCursor) -> None:
    """Indent a block that turned out to run from right to left from the right. Qt's margins are those of the page."""
    form = cursor.blockFormat()
    if cursor.block().textDirection() == Qt.LayoutDirection.RightToLeft and form.leftMargin():
        form.setRightMargin(form.leftMargin())
        form.setLeftMargin(0)
        # In such a block, Qt takes a tab's type for that of the other side, but counts its position alike.
        form.setTabPositions(
            [QTextOption.Tab(tab.position, QTextOption.TabType.RightTab) for tab in form.tabPositions()]
        )
        cursor.setBlockFormat(form)


def indent_of(form: QTextBlockFormat) -> float:
    """Return a block's indentation in pixels, from the side where its text begins."""
    return form.leftMargin() + form.rightMargin()
