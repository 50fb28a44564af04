"""Malicious or broken files: each gives one sentence, and nothing else happens."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from core.documents.document import Limits
from core.documents.reader import read_document
from core.errors import DocumentUnreadable
from tests.core.documents.made import docx, epub, locked_pdf, office, paragraph, pdf, pptx, shape, xlsx

SMALL = Limits(file_bytes=8 << 20, unpacked_bytes=1 << 20, characters=100_000, pages=50, seconds=60)
BILLION = '<!DOCTYPE l [<!ENTITY a "ha">' + "".join(
    f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
Make = Callable[[Path], Path]


def written(name: str, data: bytes) -> Make:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    return make


def zeros(folder: Path) -> Path:
    """Make 1 GB of zeros as a sparse file."""
    with (folder / "zeros.txt").open("wb") as file:
        file.truncate(10**9)
    return folder / "zeros.txt"


def archive(folder: Path, name: str, data: bytes = b"x") -> Path:
    with zipfile.ZipFile(folder / "a.docx", "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr(name, data)
    return folder / "a.docx"


def torn(folder: Path) -> Path:
    path = docx(folder / "a.docx", paragraph("text " * 500))
    path.write_bytes(path.read_bytes()[:-40])
    return path


def flipped(folder: Path) -> Path:
    path = docx(folder / "a.docx", paragraph("text"))
    data = bytearray(path.read_bytes())
    data[60] ^= 0xFF
    path.write_bytes(data)
    return path


def encrypted_zip(folder: Path) -> Path:
    path = docx(folder / "a.docx", paragraph("text"))
    data = bytearray(path.read_bytes())
    for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(mark) + place] |= 1
    path.write_bytes(data)
    return path


def looping_pdf(folder: Path) -> Path:
    path = pdf(folder / "loop.pdf", [""])
    path.write_bytes(path.read_bytes().replace(b"/Kids [4 0 R]", b"/Kids [2 0 R]"))
    return path


HOSTILE: dict[str, tuple[Make, str]] = {
    "1 GB of zeros": (zeros, "at most 8 are read"),
    "a folder": (lambda folder: folder, "not a file"),
    "nothing there": (lambda folder: folder / "gone.txt", "gone.txt cannot be read"),
    "empty": (written("e.txt", b""), "It is empty"),
    "nothing but space": (written("s.txt", b" \n\t\r\n  "), "It is empty"),
    "a program": (written("p.txt", b"\x7fELF" + bytes(range(256)) * 9), "can be attached"),
    "zeros called text": (written("z.txt", bytes(4096)), "can be attached"),
    "a picture called text": (written("p.txt", b"\x89PNG\r\n\x1a\n" + bytes(64)), "no picture"),
    "an old Word file": (written("o.doc", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(64)), "can be attached"),
    "too much text": (written("l.txt", b"word " * 30_000), "at most 100,000 are read"),
    "no PDF at all": (written("n.pdf", b"%PDF-1.7\nnothing follows"), "damaged"),
    "a torn PDF": (written("t.pdf", b"%PDF-1.4\n1 0 obj\n<< /Type /Catalog /Pages 1 0 R >>"), "damaged"),
    "a locked PDF": (lambda folder: locked_pdf(folder / "l.pdf"), "locked with a password"),
    "a scan": (lambda folder: pdf(folder / "s.pdf", ["", ""]), "without a text layer"),
    "too many pages": (lambda folder: pdf(folder / "m.pdf", ["x"] * 51), "at most 50 are read"),
    "a zip bomb": (lambda folder: docx(folder / "b.docx", "", head=" " * (64 << 20)), "unpacks to more"),
    "a bomb of entities": (
        lambda folder: docx(folder / "e.docx", paragraph("&i;"), head=BILLION + "]>"), "declares entities",
    ),
    "an entity of a file": (
        lambda folder: docx(folder / "x.docx", paragraph("&x;"), head='<!DOCTYPE d [<!ENTITY x SYSTEM "x.txt">]>'),
        "declares entities",
    ),
    "broken XML": (lambda folder: docx(folder / "b.docx", "<w:p>"), "damaged"),
    "a torn archive": (torn, "damaged"),
    "a flipped bit": (flipped, "damaged"),
    "an encrypted archive": (encrypted_zip, "locked with a password"),
    "a bomb of sheets": (
        lambda folder: xlsx(folder / "b.xlsx", {str(n): " " * 300_000 for n in range(9)}), "unpacks to more",
    ),
    "far cells in many rows": (
        lambda folder: xlsx(folder / "f.xlsx", {"A": "".join(f'<row>{"<c><v>1</v></c>" * n}</row>' for n in (300,) * 40)
            + '<row><c><v>1</v></c></row>' * 10_000}), "unpacks to more",
    ),
    "entities in a sheet": (
        lambda folder: office(folder / "e.xlsx", {"xl/workbook.xml": BILLION + "]><workbook>&i;</workbook>"}),
        "declares entities",
    ),
    "entities in a slide": (
        lambda folder: office(folder / "e.pptx", {"ppt/presentation.xml": BILLION + "]><p>&i;</p>"}),
        "declares entities",
    ),
    "slides without words": (lambda folder: pptx(folder / "n.pptx", [shape(""), ""]), "is empty"),
    "a book that is locked": (
        lambda folder: epub(folder / "l.epub", {"a": "x"}, {"META-INF/encryption.xml":
            '<encryption><CipherReference URI="OEBPS/text/a%20x.xhtml"/></encryption>'}), "protected against copying",
    ),
    "a book that climbs": (
        lambda folder: office(folder / "c.epub", {"META-INF/container.xml":
            '<c><rootfile full-path="../../../../etc/passwd"/></c>'}), "is empty",
    ),
    "a workbook with a password": (
        written("p.xlsx", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + "EncryptedPackage".encode("utf-16-le") + bytes(64)),
        "locked with a password",
    ),
    "an archive of other things": (lambda folder: archive(folder, "evil.exe"), "can be attached"),
    "a name that climbs": (lambda folder: archive(folder, "../../escaped.txt"), "can be attached"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file_is_one_sentence(case: str, tmp_path: Path) -> None:
    folder = tmp_path / "inner" / "folder"
    folder.mkdir(parents=True)
    make, why = HOSTILE[case]
    path = make(folder)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DocumentUnreadable, match="cannot be read") as raised:
        read_document(path, SMALL)
    assert why in str(raised.value)
    assert "\n" not in str(raised.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_climbing_member_beside_the_text_is_not_unpacked(tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    document = read_document(docx(inner / "a.docx", paragraph("text"), {"../escaped.txt": "x"}), SMALL)
    assert document is not None
    assert document.text == "text"
    assert not (tmp_path / "escaped.txt").exists()


def replaced(old: bytes, new: bytes) -> Make:
    """Make a PDF with one text replaced."""

    def make(folder: Path) -> Path:
        path = pdf(folder / "wrong.pdf", ["words"])
        path.write_bytes(path.read_bytes().replace(old, new))
        return path

    return make


def outcome(path: Path) -> list[str]:
    """Return the lines of the text found, or of the refusal."""
    try:
        document = read_document(path, SMALL)
    except DocumentUnreadable as error:
        return str(error).splitlines()
    return document.text.splitlines() if document is not None else ["stopped"]


@pytest.mark.parametrize(
    "make",
    [
        looping_pdf,
        replaced(b"/Count 1", b"/Count 2147483647"),
        replaced(b"/Contents 5 0 R", b"/Contents 4 0 R"),
        replaced(b"/Subtype /Type1", b"/Subtype /Type0 /DescendantFonts [3 0 R] /ToUnicode 3 0 R"),
        replaced(b"/BaseFont /Helvetica", b"/FontDescriptor 3 0 R /FontFile2 5 0 R"),
        replaced(b"/Length ", b"/Filter [/FlateDecode /LZWDecode] /Length "),
        replaced(b"startxref", b"startxref\n99999999\n%%"),
    ],
)
def test_a_pdf_that_is_wrong_inside_is_read_or_refused(make: Make, tmp_path: Path) -> None:
    path = make(tmp_path)
    told = outcome(path)
    assert len(told) == 1, "a page of one line, or one sentence"
    assert "crashed" not in told[0]
    assert list(tmp_path.iterdir()) == [path]


def test_macros_are_neither_run_nor_read(tmp_path: Path) -> None:
    parts = {
        "word/vbaProject.bin": "Sub AutoOpen()",
        "word/_rels/document.xml.rels": '<a Target="http://127.0.0.1:9/"/>',
    }
    document = read_document(docx(tmp_path / "m.docm", paragraph("text"), parts), SMALL)
    assert document is not None
    assert document.text == "text"


def test_deep_nesting_is_read_or_refused(tmp_path: Path) -> None:
    (tmp_path / "d.html").write_text("<div>" * 100_000 + "deep")
    document = read_document(tmp_path / "d.html", replace(SMALL, characters=10**6))
    assert document is not None
    assert document.text == "deep"


def test_a_name_like_an_option_or_a_command_is_a_name(tmp_path: Path) -> None:
    path = tmp_path / "--help; touch x.txt"
    path.write_text("words")
    document = read_document(path, SMALL)
    assert document is not None
    assert (document.name, document.text) == (path.name, "words")


def test_reading_that_takes_too_long_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    never_ends = [sys.executable, "-c", "import time; time.sleep(600)"]
    monkeypatch.setattr("core.documents.reader.command", lambda *_: never_ends)
    (tmp_path / "a.txt").write_text("words")
    with pytest.raises(DocumentUnreadable, match="longer than 0 seconds"):
        read_document(tmp_path / "a.txt", replace(SMALL, seconds=0.0))


@pytest.mark.skipif(sys.platform == "win32", reason="named pipes are no files there")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(DocumentUnreadable, match="not a file"):
        read_document(tmp_path / "pipe.txt", SMALL)


@pytest.mark.parametrize(
    "deed",
    [
        "import socket; socket.create_connection(('127.0.0.1', 9))",
        "open('made.txt', 'w')",
        "import pathlib; pathlib.Path('made.txt').write_text('x')",
        "import os; os.open('made.txt', os.O_WRONLY | os.O_CREAT)",
        "import os; os.mkdir('made')",
        "import subprocess, sys; subprocess.run([sys.executable, '-c', ''])",
    ],
)
def test_the_reader_s_process_may_not_write_connect_or_start_others(
    deed: str, repository: Path, tmp_path: Path
) -> None:
    code = f"import sys; from core.documents.__main__ import _forbid; sys.addaudithook(_forbid); {deed}"
    environment = os.environ | {"PYTHONPATH": str(repository)}
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert "PermissionError" in ran.stderr
    assert not list(tmp_path.iterdir())
