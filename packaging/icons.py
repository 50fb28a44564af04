"""Draws the icon files from `assets/logo/logo.svg`: PNGs, `app.ico`, `app.icns`. Run after changing the logo."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

from PySide6.QtCore import QBuffer, QIODevice, Qt
from PySide6.QtGui import QGuiApplication, QImage, QPainter
from PySide6.QtSvg import QSvgRenderer

ASSETS = Path(__file__).resolve().parent.parent / "assets"
SIZES = (16, 22, 24, 32, 48, 64, 128, 256, 512)
ICO_SIZES = (16, 20, 24, 32, 40, 48, 64, 128, 256)
ICNS_TYPES = {
    b"icp4": 16, b"icp5": 32, b"ic11": 32, b"ic12": 64, b"ic07": 128, b"ic13": 256, b"ic08": 256, b"ic14": 512,
    b"ic09": 512, b"ic10": 1024,
}  # fmt: skip
"""Apple's type of each entry and its pixels; types that share a size differ in the screen scale."""


def png(drawing: QSvgRenderer, size: int, margin: float = 0.0) -> bytes:
    """Render the drawing to `size` x `size` pixels. `margin`: share of the width left free at each side."""
    image = QImage(size, size, QImage.Format.Format_ARGB32_Premultiplied)
    image.fill(Qt.GlobalColor.transparent)
    painter = QPainter(image)
    edge = size * margin
    painter.translate(edge, edge)
    painter.scale(1 - 2 * margin, 1 - 2 * margin)
    drawing.render(painter)
    painter.end()
    buffer = QBuffer()
    buffer.open(QIODevice.OpenModeFlag.WriteOnly)
    image.save(buffer, "PNG")  # type: ignore[call-overload]
    return bytes(buffer.data().data())


def ico(images: dict[int, bytes]) -> bytes:
    """Compose a Windows icon with PNG entries: header, table, images."""
    offset, table, data = 6 + 16 * len(images), b"", b""
    for size, image in images.items():
        # 256 is stored as 0.
        table += struct.pack("<BBBBHHII", size % 256, size % 256, 0, 0, 1, 32, len(image), offset + len(data))
        data += image
    return struct.pack("<HHH", 0, 1, len(images)) + table + data


def icns(images: dict[bytes, bytes]) -> bytes:
    """Compose a macOS icon: per entry its type, its length including these eight bytes, and a PNG."""
    data = b"".join(kind + struct.pack(">I", len(image) + 8) + image for kind, image in images.items())
    return b"icns" + struct.pack(">I", len(data) + 8) + data


def main() -> None:
    _application = QGuiApplication([sys.argv[0], "-platform", "offscreen"])
    drawing = QSvgRenderer(str(ASSETS / "logo" / "logo.svg"))
    if not drawing.isValid():
        raise SystemExit("The drawing cannot be read.")
    for size in SIZES:
        (ASSETS / "logo" / f"{size}.png").write_bytes(png(drawing, size))
    (ASSETS / "app.ico").write_bytes(ico({size: png(drawing, size) for size in ICO_SIZES}))
    # Apple's icon grid leaves a tenth free at each side.
    (ASSETS / "app.icns").write_bytes(icns({kind: png(drawing, size, 0.1) for kind, size in ICNS_TYPES.items()}))


if __name__ == "__main__":
    main()
