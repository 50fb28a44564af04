"""Downloads a whole model: finds the missing files, fetches them in a few threads, and publishes it when complete."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from core.errors import DownloadFailed
from core.events import Stop, never
from core.hub.cache_layout import Cache
from core.hub.client import Client
from core.hub.downloader import Downloader, DownloadOptions
from core.hub.fetch_file import Changed
from core.hub.file_selection import needed_files, shown_files
from core.hub.gguf_choices import GgufChoice, wanted_gguf
from core.hub.listing import Listing, Reference, RemoteFile, file_address, list_files, model_info
from core.hub.partial_file import disk_error
from core.hub.progress import DownloadState, FileTrack, Pace, Report, silent
from core.hub.removal import drop_partials
from core.hub.retry import Stopped
from core.sentence import sentence
from core.weights.weight_files import INDEX

LISTINGS = 3


@dataclass(frozen=True)
class Downloaded:
    """The result of a download. `id` includes the file name for a GGUF model, and `path` is then that file's. `bytes`:
    of all needed files; `downloaded_bytes` were fetched in this run, `resumed_bytes` were here before. `complete` is
    False if it was stopped."""

    id: str
    revision: str
    path: Path
    bytes: int
    downloaded_bytes: int
    resumed_bytes: int
    verified: bool
    complete: bool = True


def download(
    client: Client,
    cache: Cache,
    reference: Reference,
    report: Report = silent,
    stop: Stop = never,
    manner: DownloadOptions | None = None,
) -> Downloaded:
    """Download a model, or the rest of it. `report` is called from this thread; `stop` pauses and keeps every byte.

    Raises NetworkError, AccessDenied, ModelNotFound, UnsupportedModel, DownloadFailed, DiskFull.
    """
    for _ in range(LISTINGS):
        try:
            return _Run(client, cache, reference, report, stop, manner or DownloadOptions(Pace())).result()
        except Changed:
            continue
    raise DownloadFailed(
        sentence("{} keeps changing on the server.", reference.id),
        "Its files are being replaced.",
        "Try again in a while.",
    )


class _Run:
    """A download with one listing of the repository."""

    def __init__(
        self, client: Client, cache: Cache, reference: Reference, report: Report, stop: Stop, manner: DownloadOptions
    ) -> None:
        self._client, self._cache, self._reference = client, cache, reference
        self._report, self._asked = report, stop
        self._choice: GgufChoice | None = None
        self._haul = Downloader(client, cache, self._address, stop, manner)
        self._board = DownloadState(reference.id, "", ())

    def result(self) -> Downloaded:
        self._report(self._board.progress())
        try:
            listing = self._list()
            if self._is_shut(listing):
                return self._outcome()
            self._fetch(DownloadState(listing.id, listing.revision, self._tracks(listing)), self._report)
            self._show(listing)
        except Stopped:
            pass
        except OSError as error:
            raise disk_error(error, self._cache.root) from error
        self._report(self._board.progress())
        return self._outcome()

    def _list(self) -> Listing:
        info = model_info(self._client, self._reference, self._asked)
        listing = list_files(self._client, self._reference.id, info.revision, self._asked)
        self._choice = wanted_gguf(listing, self._reference.file)
        self._board = DownloadState(listing.id, listing.revision, ())
        return listing

    def _is_shut(self, listing: Listing) -> bool:
        """Return whether the cache is read-only but holds the whole model. Raises OSError if it holds less."""
        try:
            self._cache.prepare(listing)
        except OSError:
            files = shown_files(self._cache, listing, self._file)
            if files is None:
                raise
            tracks = [FileTrack(file, file.size, state="done") for file in files]
            self._board = DownloadState(listing.id, listing.revision, tracks)
            return True
        return False

    def _tracks(self, listing: Listing) -> list[FileTrack]:
        index = None if self._choice else listing.file(INDEX)
        if index is None:
            return [FileTrack(file) for file in needed_files(listing, None, self._file)]
        # The index names the weight files. It is fetched like any other file, so that its bytes are fetched once.
        track = FileTrack(index)
        self._fetch(DownloadState(listing.id, listing.revision, (track,)), silent)
        files = needed_files(listing, self._cache.read(listing.id, listing.revision, index))
        return [track if file == index else FileTrack(file) for file in files]

    def _fetch(self, board: DownloadState, report: Report) -> None:
        self._board = board
        self._haul.bring(board, report)

    def _address(self, file: RemoteFile) -> str:
        return file_address(self._client, self._board.id, self._board.revision, file.path)

    def _show(self, listing: Listing) -> None:
        files = [track.file for track in self._board.tracks]
        self._cache.link(listing.id, listing.revision, files)
        self._cache.write_ref(listing.id, self._reference.revision, listing.revision)
        # Unfinished files of the repository's other GGUF models are kept, to be resumed.
        drop_partials(self._cache, listing.id, kept={file.etag for file in listing.files})

    @property
    def _file(self) -> str:
        return self._choice.path if self._choice else ""

    def _outcome(self) -> Downloaded:
        board = self._board
        name, path = Reference(board.id, file=self._file).name, self._cache.snapshot(board.id, board.revision)
        return Downloaded(
            name, board.revision, path / self._file, board.total, board.fetched,
            board.resumed, all(track.verified for track in board.tracks),
            complete=bool(board.tracks) and board.done == board.total,
        )  # fmt: skip
