"""Stores the KV caches of conversations on disk, so that the next start continues without reading them again.

One file per conversation (see `kv_file`), written by a background thread, and read by memory mapping.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from threading import Event as Flag
from threading import Thread

import torch

from core.layers import kv_file
from core.layers.kv_cache import KVCache
from core.layers.kv_parking import WORTHWHILE, held, usable
from core.layers.kv_states import LayerStates, grows_only, restore, states_of
from core.paths import kept_reading, kept_readings
from core.units import GIB

log = logging.getLogger(__name__)
ROOM = 8 * GIB
"""Maximum bytes of all files together; the least recently used are deleted first."""


class KeptReadings:
    """The files of one model's conversations. `key` identifies the model and the formats of its weights and KV
    cache."""

    def __init__(self, key: str, room: int = ROOM) -> None:
        self.key, self._room = key, room
        self._stop = Flag()
        self._writer: Thread | None = None

    def recall(
        self, conversation: str, cache: KVCache, ids: Sequence[int], reply_start: int, device: torch.device
    ) -> int:
        """Load the file's part of `ids` into `cache` if it is longer than what the cache holds; return the new reply
        start.

        `device`: of recurrent states. A file that is damaged, or of another model, is deleted.
        """
        if not conversation or not cache.can_return:
            return reply_start
        path = kept_reading(conversation)
        try:
            kept = kv_file.read(path, self.key)
        except FileNotFoundError:
            return reply_start
        except (OSError, ValueError):
            kept = None
        if kept is None:
            remove(path)
        elif len(kept.tokens) <= cache.capacity:
            gain = usable(cache, kept.tokens, ids, kept.reply_start) - held(cache, ids, reply_start)
            if gain >= WORTHWHILE:
                restore(cache, kept.tokens, kept.layers, device)
                return kept.reply_start
        return reply_start

    def keep(self, conversation: str, cache: KVCache, reply_start: int) -> None:
        """Start writing what the cache holds. The cache's contents must not change before `settle`."""
        self.settle()
        if not conversation or not cache.can_return or len(cache.tokens) < WORTHWHILE:
            return
        kept = kv_file.Kept(tuple(cache.tokens), reply_start, [_on_host(layer) for layer in states_of(cache)])
        put, path = kv_file.append if grows_only(cache) else kv_file.replace, kept_reading(conversation)
        write = partial(put, path, self.key, kept, self._stop.is_set)
        self._stop.clear()
        self._writer = Thread(target=self._write, args=(path, write), name="kept readings")
        self._writer.start()

    def settle(self, *, finish: bool = False) -> None:
        """Abort the writing, or wait for it with `finish`; afterwards the cache may change."""
        if self._writer is not None:
            if not finish:
                self._stop.set()
            self._writer.join()
            self._writer = None

    def _write(self, path: Path, write: partial[None]) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write()
            _make_room(path, self._room)
        except kv_file.Interrupted:
            pass
        except OSError as error:
            log.warning("What was read of a conversation is not kept: %s", error)
            remove(path)


def remove(path: Path) -> None:
    """Delete a file, if that is possible now."""
    with suppress(OSError):
        path.unlink(missing_ok=True)


def _on_host(layer: LayerStates) -> LayerStates:
    """Return the states in RAM; only those on a device are copied."""
    return layer if all(one.device.type == "cpu" for one in layer.tensors.values()) else layer.copied()


def _make_room(newest: Path, room: int) -> None:
    os.utime(newest)
    files = sorted(_ages_and_sizes(kept_readings()))
    total = sum(size for _, size, _ in files)
    for _, size, path in files:
        if total > room and path != newest:
            remove(path)
            total -= size


def _ages_and_sizes(folder: Path) -> Iterator[tuple[int, int, Path]]:
    for path in folder.glob("*.kv"):
        with suppress(FileNotFoundError):  # deleted with its conversation in the meantime
            found = path.stat()
            yield found.st_mtime_ns, found.st_size, path
