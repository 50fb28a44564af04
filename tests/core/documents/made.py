"""Small files of each kind, made here so that their text is known."""

from __future__ import annotations

import zipfile
from pathlib import Path

WORDS = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"


def pdf(path: Path, pages: list[str], extra: bytes = b"", trailer: bytes = b"") -> Path:
    """A PDF with one line of text on each page (none for "")."""
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
    """A PDF whose password is not known to anybody."""
    lock = b"<< /Filter /Standard /V 1 /R 2 /P -44 /O <%s> /U <%s> >>" % (b"5a" * 32, b"c3" * 32)
    return pdf(path, ["secret"], lock, b"/Encrypt %d 0 R /ID [<00> <00>]")


def docx(path: Path, body: str, parts: dict[str, str] | None = None, head: str = "") -> Path:
    """A Word document with this XML in its body."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(
            "word/document.xml", f'{head}<w:document xmlns:w="{WORDS}"><w:body>{body}</w:body></w:document>'
        )
        for name, text in (parts or {}).items():
            archive.writestr(name, text)
    return path


def paragraph(text: str) -> str:
    """A paragraph of WordprocessingML."""
    return f"<w:p><w:r><w:t>{text}</w:t></w:r></w:p>"
