"""Pictures of a conversation: small in a chip, larger over the question, whole in a dialog."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial

from PySide6.QtCore import QBuffer, QByteArray, QIODevice, QRectF, QSize, Qt, Signal
from PySide6.QtGui import (
    QColor,
    QIcon,
    QImage,
    QImageIOHandler,
    QImageReader,
    QPainter,
    QPainterPath,
    QPaintEvent,
    QPen,
    QPixmap,
)
from PySide6.QtWidgets import QDialog, QDialogButtonBox, QLabel, QPushButton, QVBoxLayout, QWidget

from app.i18n.translator import tr
from app.settings.theme import BUTTON_RADIUS, EDGE, INSIDE, RELATED, Theme
from core.documents.document import Document

CHIP, SHOWN, WHOLE = QSize(20, 20), QSize(280, 200), QSize(900, 640)
"""The largest sizes, in points."""
LARGEST = 2048
"""Pixels of the longer side of what is pasted."""


def pixels_of(data: bytes) -> tuple[int, int]:
    """Width and height of a picture's file, without reading all of it; 0 where it is none."""
    with opened(data) as reader:
        size = reader.size()
        turned = reader.transformation() & QImageIOHandler.Transformation.TransformationRotate90
    width, height = max(0, size.width()), max(0, size.height())
    return (height, width) if turned else (width, height)


def small_picture(data: bytes) -> QIcon:
    """The picture for a chip."""
    return QIcon(scaled(data, CHIP, 2.0))


@lru_cache(maxsize=16)
def scaled(data: bytes, most: QSize, ratio: float) -> QPixmap:
    """The picture, upright, no larger than this many points, for a screen of this ratio."""
    room = most * ratio
    with opened(data) as reader:
        # Said before it is read: a JPEG is then not even unpacked whole.
        if max(size := reader.size().toTuple()) > max(room.toTuple()):
            side = max(room.toTuple())
            reader.setScaledSize(QSize(*size).scaled(side, side, Qt.AspectRatioMode.KeepAspectRatio))
        image = reader.read()
    if image.isNull():
        image = QImage(1, 1, QImage.Format.Format_ARGB32)
        image.fill(QColor(0, 0, 0, 0))
    if image.width() > room.width() or image.height() > room.height():
        image = image.scaled(room, Qt.AspectRatioMode.KeepAspectRatio, Qt.TransformationMode.SmoothTransformation)
    found = QPixmap.fromImage(image)
    found.setDevicePixelRatio(ratio)
    return found


@contextmanager
def opened(data: bytes) -> Iterator[QImageReader]:
    """A reader of a picture's file, which turns it upright; it does not keep alive what it reads from."""
    buffer = QBuffer()
    buffer.setData(QByteArray(data))
    buffer.open(QIODevice.OpenModeFlag.ReadOnly)
    reader = QImageReader(buffer)
    reader.setAutoTransform(True)
    reader.setDecideFormatFromContent(True)
    yield reader
    buffer.close()


def as_png(image: QImage) -> bytes:
    """An image, as from the clipboard, as the content of a file; no larger than models look."""
    if max(image.width(), image.height()) > LARGEST:
        image = image.scaled(
            LARGEST, LARGEST, Qt.AspectRatioMode.KeepAspectRatio, Qt.TransformationMode.SmoothTransformation
        )
    data = QByteArray()
    buffer = QBuffer(data)
    buffer.open(QIODevice.OpenModeFlag.WriteOnly)
    image.save(buffer, "PNG")  # type: ignore[call-overload]
    return bytes(data.data())


class Thumbnail(QPushButton):
    """A picture over a question; a press shows all of it."""

    def __init__(self, name: str, data: bytes, parent: QWidget) -> None:
        super().__init__(parent)
        self._data = data
        self.setFlat(True)
        self.setAccessibleName(name)
        self.setToolTip(name)
        self.setCursor(Qt.CursorShape.PointingHandCursor)
        self._pixmap = scaled(data, SHOWN, self.devicePixelRatioF())
        self.resize(self._pixmap.deviceIndependentSize().toSize())

    def paintEvent(self, event: QPaintEvent) -> None:
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        corners = QPainterPath()
        corners.addRoundedRect(QRectF(self.rect()).adjusted(1, 1, -1, -1), BUTTON_RADIUS, BUTTON_RADIUS)
        painter.setClipPath(corners)
        painter.drawPixmap(0, 0, self._pixmap)
        painter.setClipping(False)
        if self.hasFocus():
            painter.setPen(QPen(self.palette().highlight().color(), 2))
            painter.drawPath(corners)


class PictureRow(QWidget):
    """Thumbnails side by side at the right, in as many lines as they need. Signal: `opened(Document)`."""

    opened = Signal(object)

    def __init__(self, pictures: Sequence[Document], parent: QWidget) -> None:
        super().__init__(parent)
        self._thumbnails = [Thumbnail(each.name, each.picture, self) for each in pictures]
        for thumbnail, picture in zip(self._thumbnails, pictures, strict=True):
            thumbnail.clicked.connect(partial(self.opened.emit, picture))

    def measure(self, width: int) -> int:
        """Place them within this width; the height, 0 for none."""
        lines: list[list[Thumbnail]] = [[]]
        for one in self._thumbnails:
            if lines[-1] and _width([*lines[-1], one]) > width:
                lines.append([])
            lines[-1].append(one)
        top = 0
        for line in lines if self._thumbnails else ():
            left, tallest = max(0, width - _width(line)), max(one.height() for one in line)
            for one in line:
                one.move(left, top + tallest - one.height())
                left += one.width() + INSIDE
            top += tallest + INSIDE
        return top


def _width(line: Sequence[QWidget]) -> int:
    return sum(one.width() + INSIDE for one in line) - INSIDE


class PictureDialog(QDialog):
    """Shows a picture as large as there is room."""

    def __init__(self, theme: Theme, name: str, data: bytes, parent: QWidget) -> None:
        super().__init__(parent)
        self._theme = theme
        self.setWindowTitle(name)
        self.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        label = QLabel(self)
        label.setAccessibleName(name)
        label.setPixmap(scaled(data, WHOLE, self.devicePixelRatioF()))
        label.setAlignment(Qt.AlignmentFlag.AlignCenter)
        close = QDialogButtonBox(self)
        close.addButton(tr("Close"), QDialogButtonBox.ButtonRole.RejectRole)
        close.rejected.connect(self.reject)
        column = QVBoxLayout(self)
        column.setContentsMargins(EDGE, EDGE, EDGE, EDGE)
        column.setSpacing(RELATED)
        column.addWidget(label, 1)
        column.addWidget(close)

    def paintEvent(self, event: QPaintEvent) -> None:
        QPainter(self).fillRect(self.rect(), self._theme.colour("window"))
