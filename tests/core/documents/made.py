"""Small files of each kind, made here so that their text is known."""

from __future__ import annotations

import zipfile
from hashlib import md5
from pathlib import Path

WORDS = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"


def pdf(path: Path, pages: list[str], extra: bytes = b"", trailer: bytes = b"") -> Path:
    """Make a PDF with one line of text per page (none for "")."""
    kids = " ".join(f"{4 + 2 * n} 0 R" for n in range(len(pages)))
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>".encode(),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>",
    ]
    for number, text in enumerate(pages):
        stream = f"BT /F1 12 Tf 20 100 Td ({text}) Tj ET".encode("latin-1") if text else b"0 0 m"
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 600 200] /Contents {5 + 2 * number} 0 R "
            "/Resources << /Font << /F1 3 0 R >> >> >>".encode()
        )
        objects.append(b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream))
    if extra:
        objects.append(extra)
    data, places = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        places.append(len(data))
        data += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    size = len(objects) + 1
    end = b"xref\n0 %d\n0000000000 65535 f \n%strailer\n<< /Size %d /Root 1 0 R %s >>\nstartxref\n%d\n%%%%EOF\n"
    path.write_bytes(data + end % (size, table, size, trailer % (size - 1) if trailer else b"", len(data)))
    return path


def locked_pdf(path: Path) -> Path:
    """Make a PDF with an unknown password."""
    lock = b"<< /Filter /Standard /V 1 /R 2 /P -44 /O <%s> /U <%s> >>" % (b"5a" * 32, b"c3" * 32)
    return pdf(path, ["secret"], lock, b"/Encrypt %d 0 R /ID [<00> <00>]")


PADDING = bytes.fromhex("28bf4e5e4e758a4164004e56fffa01082e2e00b6d0683e802f0ca9fe6453697a")


def rc4(key: bytes, data: bytes) -> bytes:
    """Apply RC4, the cipher of old PDFs."""
    state, at = list(range(256)), 0
    for n in range(256):
        at = (at + state[n] + key[n % len(key)]) % 256
        state[n], state[at] = state[at], state[n]
    result, one, two = bytearray(), 0, 0
    for byte in data:
        one = (one + 1) % 256
        two = (two + state[one]) % 256
        state[one], state[two] = state[two], state[one]
        result.append(byte ^ state[(state[one] + state[two]) % 256])
    return bytes(result)


def pdf_with_password(path: Path, text: str, password: str) -> Path:
    """Make a PDF of one page that opens with this password."""
    padded = (password.encode() + PADDING)[:32]
    owner = rc4(md5(padded).digest()[:5], padded)
    key = md5(padded + owner + (-44).to_bytes(4, "little", signed=True) + b"\0").digest()[:5]
    lock = b"<< /Filter /Standard /V 1 /R 2 /P -44 /O <%s> /U <%s> >>"
    lock %= (owner.hex().encode(), rc4(key, PADDING).hex().encode())
    pdf(path, [text], lock, b"/Encrypt %d 0 R /ID [<00> <00>]")
    data = path.read_bytes()
    begin, end = data.index(b"stream\n") + 7, data.index(b"\nendstream")
    own = md5(key + (5).to_bytes(3, "little") + b"\0\0").digest()[:10]
    path.write_bytes(data[:begin] + rc4(own, data[begin:end]) + data[end:])
    return path


def docx(path: Path, body: str, parts: dict[str, str] | None = None, head: str = "") -> Path:
    """Make a Word document with this XML in its body."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(
            "word/document.xml", f'{head}<w:document xmlns:w="{WORDS}"><w:body>{body}</w:body></w:document>'
        )
        for name, text in (parts or {}).items():
            archive.writestr(name, text)
    return path


def paragraph(text: str) -> str:
    """Return a paragraph of WordprocessingML."""
    return f"<w:p><w:r><w:t>{text}</w:t></w:r></w:p>"


def office(path: Path, parts: dict[str, str]) -> Path:
    """Make an archive of these parts."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in parts.items():
            archive.writestr(name, text)
    return path


def relations(**targets: tuple[str, str]) -> str:
    """Return the relations of an office part: ids with type and target."""
    kinds = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    rows = (f'<Relationship Id="{id}" Type="{kinds}/{kind}" Target="{to}"/>' for id, (kind, to) in targets.items())
    return f'<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">{"".join(rows)}' + (
        "</Relationships>"
    )


def xlsx(path: Path, sheets: dict[str, str], strings: str = "", styles: str = "", book: str = "") -> Path:
    """Make a workbook of sheets with this XML in their data."""
    space = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
    named = "".join(f'<sheet name="{name}" sheetId="{n}" r:id="r{n}"/>' for n, name in enumerate(sheets, 1))
    relate = f'xmlns:r="{"http://schemas.openxmlformats.org/officeDocument/2006/relationships"}"'
    targets = {f"r{n}": ("worksheet", f"worksheets/s{n}.xml") for n in range(1, len(sheets) + 1)}
    parts = {
        "xl/workbook.xml": f"<workbook {space} {relate}>{book}<sheets>{named}</sheets></workbook>",
        "xl/_rels/workbook.xml.rels": relations(**targets),
        "xl/sharedStrings.xml": f"<sst {space}>{strings}</sst>",
        "xl/styles.xml": f"<styleSheet {space}>{styles}</styleSheet>",
    }
    for n, data in enumerate(sheets.values(), 1):
        parts[f"xl/worksheets/s{n}.xml"] = f"<worksheet {space}><sheetData>{data}</sheetData></worksheet>"
    return office(path, parts)


DRAWING = (
    'xmlns:a="http://schemas.openxmlformats.org/drawingml/2006/main" '
    'xmlns:p="http://schemas.openxmlformats.org/presentationml/2006/main" '
    'xmlns:r="http://schemas.openxmlformats.org/officeDocument/2006/relationships"'
)


def pptx(path: Path, slides: list[str], notes: dict[int, str] | None = None) -> Path:
    """Make a presentation with this XML in its slides, and notes by slide number (from 1)."""
    # The order of the slides is that of the list, not of the files' names.
    names = [f"slide{len(slides) - n}.xml" for n in range(len(slides))]
    ids = "".join(f'<p:sldId id="{256 + n}" r:id="r{n}"/>' for n in range(len(slides)))
    parts = {
        "ppt/presentation.xml": f"<p:presentation {DRAWING}><p:sldIdLst>{ids}</p:sldIdLst></p:presentation>",
        "ppt/_rels/presentation.xml.rels": relations(
            **{f"r{n}": ("slide", f"slides/{x}") for n, x in enumerate(names)}
        ),
    }
    for name, body in zip(names, slides, strict=True):
        parts[f"ppt/slides/{name}"] = f"<p:sld {DRAWING}>{body}</p:sld>"
    for number, body in (notes or {}).items():
        parts[f"ppt/slides/_rels/{names[number - 1]}.rels"] = relations(n=("notesSlide", "../notesSlides/n.xml"))
        parts["ppt/notesSlides/n.xml"] = f"<p:notes {DRAWING}>{body}</p:notes>"
    return office(path, parts)


def shape(text: str, place: str = "body") -> str:
    """Return a shape of a slide with one paragraph."""
    return f'<p:sp><p:nvPr><p:ph type="{place}"/></p:nvPr><a:p><a:r><a:t>{text}</a:t></a:r></a:p></p:sp>'


def epub(path: Path, chapters: dict[str, str], parts: dict[str, str] | None = None) -> Path:
    """Make a book of these chapters, by their ids."""
    items = "".join(f'<item id="{id}" href="text/{id}%20x.xhtml"/>' for id in sorted(chapters))
    order = "".join(f'<itemref idref="{id}"/>' for id in chapters)
    made = {
        "mimetype": "application/epub+zip",
        "META-INF/container.xml": '<container><rootfiles><rootfile full-path="OEBPS/a.opf"/></rootfiles></container>',
        "OEBPS/a.opf": f"<package><manifest>{items}</manifest><spine>{order}</spine></package>",
        **{f"OEBPS/text/{id} x.xhtml": f"<html><body>{text}</body></html>" for id, text in chapters.items()},
    }
    return office(path, made | (parts or {}))
