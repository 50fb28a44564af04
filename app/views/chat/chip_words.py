"""The words of a document's chip."""

from __future__ import annotations

from collections.abc import Mapping

from app.conversations.attached import as_read, tokens_about
from app.i18n import formatting
from app.i18n.translator import said, tr
from app.views.chat.chips import ChipWords
from app.views.chat.pictures import pixels_of
from core.documents.document import Document


def words_while_reading(name: str, done: int, of: int) -> ChipWords:
    """Describe the progress of reading a file."""
    return ChipWords(name, tr("Reading… {} of {} pages").format(done, of) if of else tr("Reading…"))


def words_of(document: Document, tokens: int, *, counted: bool = False, in_parts: bool = False) -> ChipWords:
    """Describe a document by pages, tokens and whether it is read in parts; a picture by its size."""
    if document.picture:
        return _words_of_picture(document, tokens, counted=counted)
    known = formatting.tokens(tokens) if counted else tr("about {}").format(formatting.tokens(tokens))
    parts = [tr("{} pages").format(len(document.pages))] if len(document.pages) > 1 else []
    parts += [known, tr("read in parts")] if in_parts else [known]
    tip = (
        document.name,
        tr("Press to see the text as the model reads it."),
        tr("It is too long to be read whole: each question is given the parts that fit it.") if in_parts else "",
        said(document.note),
    )
    return ChipWords(document.name, " · ".join(parts), "\n".join(part for part in tip if part))


def _words_of_picture(document: Document, tokens: int, *, counted: bool) -> ChipWords:
    size = "{} × {}".format(*pixels_of(document.picture))
    figures = f"{size} · {formatting.tokens(tokens)}" if counted and tokens else size
    tip = f"{document.name}\n{tr('Press to see the picture.')}"
    return ChipWords(document.name, figures, tip, document.picture)


def words_in_turn(document: Document, counts: Mapping[str, int], *, in_parts: bool) -> ChipWords:
    """Describe a document of an asked question. Its tokens are estimated unless `counts` has them by digest."""
    counted = document.digest in counts
    tokens = counts[document.digest] if counted else tokens_about(as_read(document))
    return words_of(document, tokens, counted=counted, in_parts=in_parts)
