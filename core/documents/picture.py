"""A picture's bytes as pixels, within limits: files of strangers, whose sizes promise anything."""

from __future__ import annotations

import io
import warnings
from typing import Any

from core.errors import BadRequest
from core.sentence import sentence
from core.units import MIB

KINDS = ("PNG", "JPEG", "WEBP", "GIF")
HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"mif1", b"msf1")
"""What phones' pictures begin with, behind a length and "ftyp"."""
MOST_BYTES = 40 * MIB
MOST_PIXELS = 100_000_000
LONGEST_SIDE = 2048
"""Larger ones are made smaller: no model looks closer, and conversations keep their pictures."""
KEPT_BYTES = 2 * MIB
"""Files of at most this size are kept as they are."""
QUALITY = 90


def decode(data: bytes) -> Any:
    """The picture (its first frame), upright, as an RGB image of Pillow's. Raises BadRequest."""
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
    # Damaged files end in any of these, by the part that was being read.
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise BadRequest("The picture is damaged.", "", "Save it again, or choose another one.") from error


def prepared(data: bytes) -> bytes:
    """A picture's file as conversations keep it: what is large, or HEIC, is saved anew. Raises BadRequest."""
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
    """Whether a file that begins so is a HEIC picture."""
    return start[4:8] == b"ftyp" and start[8:12] in HEIC_BRANDS


def _formats(data: bytes) -> tuple[str, ...]:
    """Pillow's names of the formats that this file may have. Raises BadRequest where nothing here reads it."""
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
    """RGB, with white behind what is transparent, as people see it on a page."""
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
