"""What is found in files of each kind, through the process that reads them for the window."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.documents.document import Document
from core.documents.plain import NotText, decode
from core.documents.reader import read_document
from core.sentence import Sentence
from tests.core.documents.made import docx, paragraph, pdf

MAIL = """From: Ada <ada@example.org>
To: charles@example.org
Subject: =?utf-8?q?Die_Rechnung_f=C3=BCr_Mai?=
MIME-Version: 1.0
Content-Type: multipart/mixed; boundary="X"

--X
Content-Type: text/html; charset=utf-8

<p>Forty&nbsp;two <b>pounds</b></p><script>alert(1)</script>
--X
Content-Type: application/pdf; name="invoice.pdf"
Content-Disposition: attachment; filename="invoice.pdf"

AAAA
--X--
"""


def read(path: Path) -> Document:
    document = read_document(path)
    assert document is not None
    return document


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"])
def test_the_encoding_of_text_is_found(encoding: str) -> None:
    text = "Fünf Äpfel kosten 3 Euro.\nUnd süß sind sie."
    assert decode(text.replace("\n", "\r\n").encode(encoding)) == text


def test_bytes_that_are_no_text_are_told_from_text() -> None:
    with pytest.raises(NotText):
        decode(bytes(range(256)) * 4)


def test_source_code_is_read_as_it_stands(tmp_path: Path) -> None:
    code = "def f(x: int) -> int:\n\treturn x  # ünïcode\n"
    (tmp_path / "f.py").write_text(code, encoding="utf-8", newline="\n")
    assert read(tmp_path / "f.py") == Document("f.py", (code,))


def test_a_pdf_is_read_page_by_page(tmp_path: Path) -> None:
    document = read(pdf(tmp_path / "three.pdf", ["The first page", "", "Naïve café"]))
    assert document.pages == ("The first page", "", "Naïve café")
    assert isinstance(document.note, Sentence)
    assert document.note == "1 of 3 pages hold no text, as of a scan."


def test_three_hundred_pages_are_read_whole(tmp_path: Path) -> None:
    document = read(pdf(tmp_path / "long.pdf", [f"Page {n} knows {n * n}" for n in range(300)]))
    assert document.pages == tuple(f"Page {n} knows {n * n}" for n in range(300))
    assert document.note == ""


def test_a_word_document_keeps_headings_tables_breaks_and_notes(tmp_path: Path) -> None:
    row = f"<w:tr><w:tc>{paragraph('Tea')}</w:tc><w:tc>{paragraph('3 &amp; 4')}</w:tc></w:tr>"
    body = (
        '<w:p><w:pPr><w:pStyle w:val="Heading2"/></w:pPr><w:r><w:t>Prices</w:t></w:r></w:p>'
        f"<w:tbl>{row}</w:tbl>"
        '<w:p><w:r><w:br w:type="page"/></w:r><w:r><w:lastRenderedPageBreak/><w:t xml:space="preserve">Second </w:t>'
        "<w:delText>gone</w:delText></w:r><w:r><w:t>page</w:t></w:r></w:p>"
    )
    notes = f'<w:footnotes xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main">{paragraph("A note")}'
    document = read(docx(tmp_path / "a.docx", body, {"word/footnotes.xml": notes + "</w:footnotes>"}))
    assert document.pages == ("## Prices\nTea\t3 & 4\t", "Second page\n\nA note")


def test_a_web_page_gives_its_words_without_its_scripts(tmp_path: Path) -> None:
    page = "<title>T</title><style>p{}</style><p>One\n  two<br>three</p><script>x()</script><ul><li>four</ul>"
    (tmp_path / "p.html").write_text(page)
    assert read(tmp_path / "p.html").text == "T\n\nOne two\nthree\n\n- four"


def test_a_mail_gives_heading_and_words_and_names_what_was_not_read(tmp_path: Path) -> None:
    (tmp_path / "m.eml").write_text(MAIL)
    document = read(tmp_path / "m.eml")
    assert document.text.splitlines() == [
        "From: Ada <ada@example.org>", "To: charles@example.org", "Subject: Die Rechnung für Mai", "",
        "Forty two pounds",
    ]  # fmt: skip
    assert document.note == "Files attached to the e-mail were not read: invoice.pdf."


def test_reading_ends_when_it_is_no_longer_wanted(tmp_path: Path) -> None:
    assert read_document(pdf(tmp_path / "a.pdf", ["a"]), stop=lambda: True) is None
