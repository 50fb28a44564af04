"""Reads a saved e-mail: its main headers, and its body as plain text."""

from __future__ import annotations

from email import message_from_bytes, policy
from email.message import EmailMessage

from core.documents.html import markup_text

HEADINGS = ("From", "To", "Cc", "Date", "Subject")


def mail_text(data: bytes) -> tuple[str, tuple[str, ...]]:
    """Return the text, and the names of attached files, which are not read."""
    message = message_from_bytes(data, policy=policy.default)
    assert isinstance(message, EmailMessage)
    heading = [f"{name}: {message[name]}" for name in HEADINGS if message[name]]
    attached = tuple(part.get_filename() or part.get_content_type() for part in message.iter_attachments())
    return "\n".join(heading) + "\n\n" + _body(message), attached


def _body(message: EmailMessage) -> str:
    body = message.get_body(("plain", "html"))
    if body is None:
        return ""
    text = str(body.get_content())
    return markup_text(text) if body.get_content_type() == "text/html" else text.replace("\r\n", "\n").strip()
