"""Pictures in a conversation: an icon in a chip, a thumbnail above the question, full size in a dialog."""

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
from PySide6.QtWidgets import QDialogButtonBox, QLabel, QPushButton, QVBoxLayout, QWidget

from app.i18n.translator import tr
from app.settings.theme import BUTTON_RADIUS, EDGE, INSIDE, RELATED, Theme
from app.views.controls.dialog import Dialog
from core.documents.document import Document

CHIP, SHOWN, WHOLE = QSize(20, 20), QSize(280, 200), QSize(900, 640)
"""Largest sizes, in device-independent pixels."""
LARGEST = 2048
"""Longer side, in pixels, to which pasted pictures are scaled down."""


def pixels_of(data: bytes) -> tuple[int, int]:
    """Return a picture's width and height without decoding it; 0 for data that is not a picture."""
    with opened(data) as reader:
        size = reader.size()
        turned = reader.transformation() & QImageIOHandler.Transformation.TransformationRotate90
    width, height = max(0, size.width()), max(0, size.height())
    return (height, width) if turned else (width, height)


def small_picture(data: bytes) -> QIcon:
    """Return the picture as the icon of a chip."""
    return QIcon(scaled(data, CHIP, 2.0))


@lru_cache(maxsize=16)
def scaled(data: bytes, most: QSize, ratio: float) -> QPixmap:
    """Decode a picture, upright, to at most this size in device-independent pixels."""
    room = most * ratio
    with opened(data) as reader:
        # Set before reading: a JPEG is then decoded at a smaller size.
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
    """Open a reader of a picture file that applies its orientation. Valid inside the `with` block only."""
    buffer = QBuffer()
    buffer.setData(QByteArray(data))
    buffer.open(QIODevice.OpenModeFlag.ReadOnly)
    reader = QImageReader(buffer)
    reader.setAutoTransform(True)
    reader.setDecideFormatFromContent(True)
    yield reader
    buffer.close()


def as_png(image: QImage) -> bytes:
    """Encode an image, such as one from the clipboard, as PNG, no larger than models need."""
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
    """A thumbnail above a question; a press shows the whole picture."""

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
    """Right-aligned thumbnails that wrap to as many lines as needed.

    Signal: `opened(Document)`.
    """

    opened = Signal(object)

    def __init__(self, pictures: Sequence[Document], parent: QWidget) -> None:
        super().__init__(parent)
        self._thumbnails = [Thumbnail(each.name, each.picture, self) for each in pictures]
        for thumbnail, picture in zip(self._thumbnails, pictures, strict=True):
            thumbnail.clicked.connect(partial(self.opened.emit, picture))

    def measure(self, width: int) -> int:
        """Lay out the thumbnails within this width and return the height, 0 if there are none."""
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


class PictureDialog(Dialog):
    """Shows a picture as large as it fits."""

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
