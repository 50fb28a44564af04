"""Decodes pictures within limits: their stated sizes are untrusted."""

from __future__ import annotations

import io
import warnings
from typing import Any

from core.errors import BadRequest
from core.sentence import sentence
from core.units import MIB

KINDS = ("PNG", "JPEG", "WEBP", "GIF")
HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"mif1", b"msf1")
"""The brands of HEIC files, after a length and "ftyp"."""
MOST_BYTES = 40 * MIB
MOST_PIXELS = 100_000_000
LONGEST_SIDE = 2048
"""Larger pictures are scaled down: models use no more detail, and conversations store their pictures."""
KEPT_BYTES = 2 * MIB
"""Files of at most this size are kept unchanged."""
QUALITY = 90


def decode(data: bytes) -> Any:
    """Return the picture's first frame, upright, as a Pillow RGB image. Raises BadRequest."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    if len(data) > MOST_BYTES:
        raise _too_large()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=_formats(data))
            if image.width * image.height > MOST_PIXELS:
                raise _too_large()
            upright = ImageOps.exif_transpose(image)
            upright.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
            return _on_white(upright)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning, MemoryError) as error:
        raise _too_large() from error
    except UnidentifiedImageError as error:
        raise BadRequest(
            "The file is no picture that can be read.", "", sentence("Choose one of {}.", ", ".join(KINDS))
        ) from error
    # A damaged file raises any of these, depending on the part being read.
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise BadRequest("The picture is damaged.", "", "Save it again, or choose another one.") from error


def prepared(data: bytes) -> bytes:
    """Return a picture's file as conversations store it: large and HEIC files are re-encoded. Raises BadRequest."""
    from PIL import Image

    image = decode(data)
    with Image.open(io.BytesIO(data), formats=_formats(data)) as kept:
        longest = max(kept.size)
    if longest <= LONGEST_SIDE and len(data) <= KEPT_BYTES and not is_heic(data):
        return data
    file = io.BytesIO()
    image.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def is_heic(start: bytes) -> bool:
    """Return whether a file with these first bytes is a HEIC picture."""
    return start[4:8] == b"ftyp" and start[8:12] in HEIC_BRANDS


def _formats(data: bytes) -> tuple[str, ...]:
    """Return Pillow's names of the formats that this file may have. Raises BadRequest if none can be read."""
    if not is_heic(data):
        return KINDS
    try:
        from pillow_heif import register_heif_opener
    except ImportError as error:
        raise BadRequest(
            "HEIC pictures cannot be read by this installation.", "", "Save it as JPEG, or install pillow-heif."
        ) from error
    register_heif_opener()
    return ("HEIF",)


def _on_white(image: Any) -> Any:
    """Convert to RGB on a white background, which is what people see."""
    from PIL import Image

    if not image.has_transparency_data:
        return image.convert("RGB")
    clear = image.convert("RGBA")
    page = Image.new("RGBA", clear.size, "white")
    page.alpha_composite(clear)
    return page.convert("RGB")


def _too_large() -> BadRequest:
    return BadRequest(
        "The picture is too large.",
        sentence("At most {} million pixels and {} MB are read.", MOST_PIXELS // 1_000_000, MOST_BYTES // MIB),
        "Save it smaller.",
    )
