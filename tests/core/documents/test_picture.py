"""Untrusted pictures: whatever the file claims, pixels within limits or one sentence."""

import io
import struct
import sys
import zlib
from pathlib import Path

import pytest
from PIL import Image

from core.documents.document import Document, picture_in
from core.documents.picture import LONGEST_SIDE, decode, prepared
from core.documents.reader import read_document
from core.errors import BadRequest, DocumentUnreadable
from tests.core.vision.seeing import picture


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)  # type: ignore[arg-type]
    return file.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
def test_kinds(kind: str) -> None:
    found = decode(saved(Image.new("RGB", (30, 20), (200, 20, 20)), kind))
    assert (found.mode, found.size) == ("RGB", (30, 20))
    red, green, _ = found.getpixel((5, 5))
    assert red > 180 > 60 > green


def test_a_heic_picture_without_what_reads_it_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    data = struct.pack(">I", 24) + b"ftypheic" + bytes(12) + b"mif1"
    with pytest.raises(BadRequest, match="HEIC") as found:
        prepared(data)
    assert "JPEG" in found.value.next_step


def test_a_heic_picture_is_kept_as_a_jpeg(tmp_path: Path) -> None:
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    file = tmp_path / "phone.heic"
    file.write_bytes(saved(Image.new("RGB", (300, 200), (200, 20, 20)), "HEIF"))
    kept = prepared(file.read_bytes())
    assert kept.startswith(b"\xff\xd8\xff")
    assert decode(kept).size == (300, 200)
    assert isinstance(read_document(file), Document)
    damaged = file.read_bytes()[:200]
    with pytest.raises(BadRequest):
        prepared(damaged)


def test_the_first_frame_white_behind_it_and_upright() -> None:
    frames = [Image.new("P", (8, 8), color) for color in (1, 2)]
    assert decode(saved(frames[0], "GIF", save_all=True, append_images=frames[1:])).size == (8, 8)
    assert decode(saved(Image.new("RGBA", (4, 4), (0, 0, 0, 0)), "PNG")).getpixel((1, 1)) == (255, 255, 255)
    turned = Image.Exif()
    turned[0x0112] = 6
    assert decode(saved(Image.new("RGB", (30, 20)), "JPEG", exif=turned)).size == (20, 30)


def test_large_ones_are_made_smaller() -> None:
    assert decode(saved(Image.new("L", (2 * LONGEST_SIDE, 10)), "PNG")).size == (LONGEST_SIDE, 5)


def test_large_files_are_kept_smaller_and_others_as_they_are() -> None:
    small = picture(1)
    assert prepared(small) is small
    large = prepared(saved(Image.effect_noise((3000, 2000), 50).convert("RGB"), "PNG"))
    assert len(large) < 3_000_000
    assert decode(large).size == (2048, 1365)


def test_a_picture_is_a_document_whose_page_is_its_data_url(tmp_path: Path) -> None:
    path = tmp_path / "seen.txt"  # whatever its name is
    path.write_bytes(picture(1))
    document = read_document(path)
    assert document is not None
    assert document.picture == picture(1)
    assert picture_in(document.pages[0]) == picture(1)
    assert document.digest != Document("seen.txt", ("the text",)).digest
    assert not Document("a", ("data:image/png;base64,%%%",)).picture
    path.write_bytes(picture(1)[:300])
    with pytest.raises(DocumentUnreadable, match=r"seen\.txt cannot be read") as found:
        read_document(path)
    assert found.value.why == "The picture is damaged."


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def test_bombs_end_before_they_are_unpacked() -> None:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 200_000, 200_000, 8, 2, 0, 0, 0))
    with pytest.raises(BadRequest, match="too large"):
        decode(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 1000)))
    with pytest.raises(BadRequest, match="too large"):
        decode(b"\0" * (41 << 20))


@pytest.mark.parametrize("data", [b"", b"words", b"%PDF-1.7", b"GIF89a", b"<svg xmlns='http://www.w3.org/2000/svg'/>"])
def test_what_is_no_picture(data: bytes) -> None:
    with pytest.raises(BadRequest, match=r"no picture|damaged"):
        decode(data)


@pytest.mark.parametrize("end", [40, 200, 2000])
def test_cut_files(end: int) -> None:
    with pytest.raises(BadRequest, match=r"damaged|no picture"):
        decode(picture(1)[:end])
