"""What was read of conversations, kept on disk: the next start goes on where the last one ended, without reading again.

One file per conversation (see `kv_file`), written by a thread beside the work, and read by mapping it.
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
"""Bytes of all files together; those that were used least recently go first."""


class KeptReadings:
    """The files of one model's conversations. `key` stands for the model and the format of its weights and KV cache."""

    def __init__(self, key: str, room: int = ROOM) -> None:
        self.key, self._room = key, room
        self._stop = Flag()
        self._writer: Thread | None = None

    def recall(
        self, conversation: str, cache: KVCache, ids: Sequence[int], reply_start: int, device: torch.device
    ) -> int:
        """Make `cache` hold what the file has of `ids`, if that is more than it holds; the new reply start.

        `device`: where recurrent states lie. A file that is damaged, or of another model, is removed.
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
        """Begin to write what the cache holds now. Nothing may change what it holds before `settle`."""
        self.settle()
        if not conversation or not cache.can_return or len(cache.tokens) < WORTHWHILE:
            return
        states = [_on_host(layer) for layer in states_of(cache)]
        put = kv_file.append if grows_only(cache) else kv_file.replace
        write = partial(
            put, kept_reading(conversation), self.key, tuple(cache.tokens), reply_start, states, self._stop.is_set
        )
        self._stop.clear()
        self._writer = Thread(target=self._write, args=(kept_reading(conversation), write), name="kept readings")
        self._writer.start()

    def settle(self, *, finish: bool = False) -> None:
        """End the writing, with `finish` when it is complete: the cache is free to change."""
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
    """The states in RAM; only those that lie elsewhere are copied."""
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
        with suppress(FileNotFoundError):  # deleted meanwhile with its conversation
            found = path.stat()
            yield found.st_mtime_ns, found.st_size, path
