"""Reads the headers of GGUF models on the Hub by range requests, without their weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from core.errors import HeteGenError, ModelUnreadable, NetworkError
from core.events import Stop, never
from core.hub.client import Client
from core.hub.fit import FitCheck, Wishes
from core.hub.gguf_choices import GgufChoice, Judged, gguf_choices
from core.hub.listing import Listing, RemoteFile, file_address
from core.hub.retry import Stopped
from core.sentence import sentence
from core.weights.gguf.header import Header, NeedsMore, TensorPlace, parse
from core.weights.gguf.parts import merged

FIRST_BYTES, GROWTH, MOST_BYTES = 1 << 20, 4, 256 << 20
BEFORE_VOCABULARY, SHARED, MARGIN = 64 << 10, 4096, 16 << 10
"""Bytes to request of a model's further files: the part before the vocabulary, the overlap that must match at its end,
and the allowance for a longer rest."""
VOCABULARY, ANY_TOKENIZER = b"tokenizer.ggml.tokens", b"tokenizer."


@dataclass(frozen=True)
class GgufDescription:
    """A model's settings without its vocabulary, and its tensors by name."""

    settings: Mapping[str, Any]
    tensors: Mapping[str, TensorPlace]


class HeaderReader:
    """Reads the headers of one repository's files. The vocabulary, most of a header, is fetched once: the other files
    of a model have the same one, which is verified at its end."""

    def __init__(self, client: Client, listing: Listing, stop: Stop = never) -> None:
        self._client, self._listing, self._stop = client, listing, stop
        self._like = b""

    def read(self, choice: GgufChoice) -> GgufDescription:
        """Return the description of one choice, its parts merged. Raises Stopped, HeteGenError."""
        headers = [self._header(file) for file in choice.files]
        where = merged(headers, [file.path for file in choice.files])
        return GgufDescription(
            without_vocabulary(headers[0].settings), {name: place for name, (_, place) in where.items()}
        )

    def _header(self, file: RemoteFile) -> Header:
        begin = self._after_shared_vocabulary(file) if self._like else b""
        while True:
            if self._stop():
                raise Stopped
            try:
                header = parse(begin, file.path, file.size)
            except NeedsMore:
                begin += self._bytes(file, len(begin), max(FIRST_BYTES, (GROWTH - 1) * len(begin)))
                continue
            if VOCABULARY in begin:
                self._like = begin[: min((place.start for place in header.tensors.values()), default=len(begin))]
            return header

    def _after_shared_vocabulary(self, file: RemoteFile) -> bytes:
        """Return the beginning of a file with the previous file's vocabulary filled in; what was read if they
        differ."""
        like, begin = self._like, self._bytes(file, 0, BEFORE_VOCABULARY)
        here, there, end = begin.find(VOCABULARY), like.find(VOCABULARY), like.rfind(ANY_TOKENIZER)
        if here < 0 or end - there < len(begin):
            return begin
        seam = end - SHARED
        rest = self._bytes(file, seam + here - there, len(like) - seam + MARGIN)
        return begin[:here] + like[there:seam] + rest if rest[:SHARED] == like[seam:end] else begin

    def _bytes(self, file: RemoteFile, start: int, size: int) -> bytes:
        if start >= MOST_BYTES:
            raise ModelUnreadable(sentence("The model file {} cannot be read.", file.path), "Its header does not end.")
        address = file_address(self._client, self._listing.id, self._listing.revision, file.path)
        found = self._client.get_bytes(address, self._listing.id, start=start, size=size)
        if not found:
            raise NetworkError(sentence("{} was cut off.", file.path), "", "Try again later.")
        return found


def judge(
    client: Client, listing: Listing, check_fit: FitCheck, wishes: Wishes, stop: Stop = never
) -> Iterator[Judged]:
    """Yield every choice of a repository with its verdict, smallest first. Raises Stopped, NetworkError."""
    reader = HeaderReader(client, listing, stop)
    for choice in gguf_choices(listing):
        try:
            found = reader.read(choice)
        except NetworkError:
            raise
        except HeteGenError as error:
            yield Judged(choice, error=error)
            continue
        yield with_verdict(Judged(choice, found.settings, found.tensors), check_fit, wishes)


def with_verdict(judged: Judged, check_fit: FitCheck, wishes: Wishes) -> Judged:
    """Return the choice judged with these wishes."""
    if not judged.settings:
        return judged
    try:
        return replace(judged, fit=check_fit(judged.settings, judged.tensors, wishes), error=None)
    except HeteGenError as error:
        return replace(judged, fit=None, error=error)


def without_vocabulary(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return a file's settings without the lists of its tokenizer."""
    return {
        name: value for name, value in settings.items()
        if not (name.startswith("tokenizer.") and isinstance(value, list))
    }  # fmt: skip
