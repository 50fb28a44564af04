"""Package indexes of wheels (PEP 503, with the checksums and metadata of PEP 658), and the choice of a wheel."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from email.parser import HeaderParser
from html.parser import HTMLParser
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

from packaging.requirements import Requirement
from packaging.tags import Tag, sys_tags
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import Version

from core.errors import AccessDenied, DownloadFailed, ModelNotFound
from core.events import Stop
from core.graphics.builds import NoRuntime
from core.hub.client import Client
from core.hub.retry import Retries, retry
from core.sentence import sentence

PAGE_BYTES = 32 << 20
METADATA_BYTES = 4 << 20
PAGES = ("https://download.pytorch.org/whl/{tag}", "https://pypi.org/simple")
"""Indexes to search, in this order: PyTorch's own for a build, then PyPI, which has Intel libraries that the former
lacks."""


@dataclass(frozen=True)
class Wheel:
    """A wheel that an index lists with its SHA-256."""

    name: str
    version: Version
    tags: frozenset[Tag]
    file: str
    url: str
    sha256: str


class _Page(HTMLParser):
    """Collects the links of a project's page that have a checksum and are not yanked."""

    def __init__(self, address: str) -> None:
        super().__init__()
        self._address = address
        self.wheels: list[Wheel] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        link = dict(attrs)
        href = link.get("href")
        if tag == "a" and href and "data-yanked" not in link:
            url, fragment = urldefrag(urljoin(self._address, href))
            kind, _, digest = fragment.partition("=")
            if kind == "sha256" and (wheel := _wheel(url, digest.lower())):
                self.wheels.append(wheel)


def _wheel(url: str, sha256: str) -> Wheel | None:
    file = unquote(urlsplit(url).path.rpartition("/")[2])
    try:
        name, version, _, tags = parse_wheel_filename(file)
    except InvalidWheelFilename:
        return None
    return Wheel(name, version, tags, file, url, sha256)


def parse_page(html: str, address: str) -> list[Wheel]:
    """Return the wheels on a project's page at `address`."""
    page = _Page(address)
    page.feed(html)
    return page.wheels


def best(wheels: Iterable[Wheel], wanted: Requirement, tags: Sequence[Tag]) -> Wheel | None:
    """Return the newest wheel that satisfies a requirement here; of one version, the one with the best platform tag."""
    ranks = {tag: rank for rank, tag in enumerate(tags)}
    fitting = [
        (wheel.version, -min(ranks[tag] for tag in wheel.tags & ranks.keys()), wheel)
        for wheel in wheels
        if wheel.tags & ranks.keys() and wanted.specifier.contains(wheel.version)
    ]
    return max(fitting, key=lambda found: found[:2], default=(None, None, None))[2]


class Indexes:
    """The indexes for one build of torch, read through a client without caching."""

    def __init__(self, client: Client, pages: Sequence[str], tag: str, retries: Retries | None = None) -> None:
        self._client = client
        self._pages = tuple(page.format(tag=tag) for page in pages)
        self._retries = retries or client.retries
        self._tags = tuple(sys_tags())

    def find(self, wanted: Requirement, stop: Stop) -> Wheel:
        """Return the best wheel of the first index that has one. Raises NoRuntime, NetworkError, Stopped."""
        name = canonicalize_name(wanted.name)
        for page in self._pages:
            address = f"{page}/{name}/"
            if wheel := best(parse_page(self._text(address, name, PAGE_BYTES, stop), address), wanted, self._tags):
                return wheel
        raise NoRuntime(sentence("{} is not offered for this computer.", wanted), "Its index lists no wheel that fits.")

    def requirements(self, wheel: Wheel, stop: Stop) -> list[Requirement]:
        """Return the requirements in a wheel's metadata. Raises DownloadFailed, NetworkError, Stopped."""
        text = self._text(f"{wheel.url}.metadata", wheel.name, METADATA_BYTES, stop)
        if not text:
            raise DownloadFailed(
                sentence("What {} needs was not told.", wheel.file), "Its index has no metadata for it."
            )
        return [Requirement(line) for line in HeaderParser().parsestr(text).get_all("Requires-Dist", [])]

    def size(self, wheel: Wheel, stop: Stop) -> int:
        """Return the size of a wheel in bytes without downloading it. Raises DownloadFailed, NetworkError."""

        def once() -> int:
            with self._client.open(wheel.url, wheel.name, {"Range": "bytes=0-0"}) as reply:
                total = reply.headers.get("Content-Range", "").rpartition("/")[2] or reply.headers["Content-Length"]
                return int(total or 0)

        if size := retry(once, self._retries, stop):
            return size
        raise DownloadFailed(sentence("The size of {} was not told.", wheel.file), "", "Try again later.")

    def _text(self, address: str, name: str, most: int, stop: Stop) -> str:
        """Fetch a small file; "" if it does not exist, which some servers report as 403."""

        def once() -> bytes:
            with self._client.open(address, name) as reply:
                return reply.read(most)

        try:
            return retry(once, self._retries, stop).decode("utf-8", "replace")
        except (ModelNotFound, AccessDenied):
            return ""
