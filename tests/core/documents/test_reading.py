"""The text of files of each kind, through the process that reads them for the window."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.documents.document import Document
from core.documents.plain import NotText, decode
from core.documents.reader import read_document
from core.errors import DocumentLocked
from core.sentence import Sentence
from tests.core.documents.made import docx, epub, paragraph, pdf, pdf_with_password, pptx, shape, xlsx

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


def test_a_workbook_gives_its_sheets_with_dates_texts_and_results(tmp_path: Path) -> None:
    strings = "<si><t>Tea</t><rPh><t>unsaid</t></rPh></si><si><r><t>Two </t></r><r><t>parts</t></r></si>"
    styles = (
        '<numFmts><numFmt numFmtId="170" formatCode="yyyy\\-mm"/>'
        '<numFmt numFmtId="171" formatCode="0 &quot;days&quot;"/>'
        "</numFmts>"
        '<cellXfs><xf numFmtId="0"/><xf numFmtId="14"/><xf numFmtId="170"/><xf numFmtId="171"/></cellXfs>'
    )
    first = (
        '<row><c r="B2" t="s"><v>0</v></c><c r="D2" t="s"><v>1</v></c></row><row/>'
        '<row><c r="B4" s="1"><v>45292</v></c>'
        '<c r="C4" s="2"><v>45292.5</v></c><c r="D4" s="3"><f>1+2</f><v>3</v></c></row>'
    )
    second = (
        '<row><c t="b"><v>1</v></c><c><v>0.10000000000000001</v></c><c t="inlineStr"><is><t>in\nline</t></is></c></row>'
    )
    document = read(xlsx(tmp_path / "a.xlsx", {"Prices": first, "More": second}, strings, styles))
    assert document.pages == (
        "# Prices\nTea\t\tTwo parts\n2024-01-01\t2024-01-01 12:00:00\t3",
        "# More\nTRUE\t0.1\tin line",
    )


def test_a_presentation_gives_titles_tables_and_notes_in_the_order_shown(tmp_path: Path) -> None:
    cell = "<a:tc><a:txBody><a:p><a:r><a:t>{}</a:t></a:r></a:p></a:txBody><a:tcPr/></a:tc>"
    table = f"<a:tbl><a:tr>{cell.format('Tea')}{cell.format(3)}</a:tr></a:tbl>"
    number = '<a:p><a:fld type="slidenum"><a:t>7</a:t></a:fld></a:p>'
    made = pptx(tmp_path / "a.pptx", [shape("Welcome", "title") + shape("to all"), table], {1: shape("Smile") + number})
    assert read(made).pages == ("# Welcome\nto all\n\nNotes: Smile", "Tea\t3")


def test_a_book_gives_its_chapters_in_the_order_of_reading(tmp_path: Path) -> None:
    chapters = {"z": "<h1>One</h1><p>It began.</p>", "a": "<h1>Two</h1><p>It &eacute;nded.</p>"}
    head = '<?xml version="1.0"?><!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.1//EN" "http://www.w3.org/a.dtd">'
    document = read(epub(tmp_path / "a.epub", {id: head + text for id, text in chapters.items()}))
    assert document.pages == ("One\n\nIt began.", "Two\n\nIt énded.")


def test_a_locked_pdf_opens_with_its_password_and_no_other(tmp_path: Path) -> None:
    made = pdf_with_password(tmp_path / "a.pdf", "A secret", "grün")
    with pytest.raises(DocumentLocked, match="It is locked with a password"):
        read_document(made)
    with pytest.raises(DocumentLocked, match="The password is wrong"):
        read_document(made, password="blau")
    document = read_document(made, password="grün")
    assert document is not None
    assert document.text == "A secret"


def test_a_long_pdf_says_how_far_it_is(tmp_path: Path) -> None:
    made = pdf(tmp_path / "a.pdf", ["word " * 40] * 3000)
    heard: list[tuple[int, int]] = []
    document = read_document(made, progress=lambda done, of: heard.append((done, of)))
    assert document is not None
    assert heard == sorted(heard)
    assert {of for _, of in heard} == {3000}
