"""Files are written atomically, at their real location."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import pytest

from core import files
from core.files import move_over, write_whole


def test_replaces_what_was_there_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    file = tmp_path / "kept.json"
    for text in ("one\n", "another\r\n"):
        write_whole(file, text)
        assert file.read_bytes() == text.encode()
    assert list(tmp_path.iterdir()) == [file]


def test_two_threads_that_write_one_file_do_not_share_what_they_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, flush = tmp_path / "kept.json", os.fsync

    def second() -> None:
        write_whole(file, "second")

    def let_the_second_write(number: int) -> None:
        """Between the first's writing and its renaming."""
        monkeypatch.setattr(os, "fsync", flush)
        other = threading.Thread(target=second)
        other.start()
        other.join()
        assert file.read_text("utf-8") == "second"

    monkeypatch.setattr(os, "fsync", let_the_second_write)
    write_whole(file, "the first")
    assert file.read_text("utf-8") == "the first"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.skipif(sys.platform == "win32", reason="few may make links there")
def test_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    real, link = tmp_path / "far" / "real.json", tmp_path / "link.json"
    real.write_text("old", encoding="utf-8")
    link.symlink_to(real)
    write_whole(link, "new")
    assert link.is_symlink()
    assert real.read_text("utf-8") == "new"


class Scanner:
    """Holds new files during the first `looks` attempts to rename them, as Windows allows virus scanners to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, looks: int) -> None:
        self.left = looks
        self._replace = Path.replace
        monkeypatch.setattr(Path, "replace", lambda fresh, path: self.rename(fresh, path))
        monkeypatch.setattr(files, "WAITS_S", (0.0, 0.0, 0.0))

    def rename(self, fresh: Path, path: Path) -> Path:
        if self.left:
            self.left -= 1
            raise PermissionError(13, "The process cannot access the file because it is being used by another process")
        return self._replace(fresh, path)


def test_a_scanner_that_holds_the_new_file_for_a_moment_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "kept.json"
    file.write_text("old", encoding="utf-8")
    scanner = Scanner(monkeypatch, looks=3)
    write_whole(file, "new")
    assert file.read_text("utf-8") == "new"
    assert scanner.left == 0
    assert list(tmp_path.iterdir()) == [file]


def test_one_that_does_not_let_go_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "kept.json"
    file.write_text("old", encoding="utf-8")
    Scanner(monkeypatch, looks=4)
    with pytest.raises(PermissionError):
        write_whole(file, "new")
    assert file.read_text("utf-8") == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_folders_get_their_names_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "2.13.partial").mkdir()
    Scanner(monkeypatch, looks=1)
    move_over(tmp_path / "2.13.partial", tmp_path / "2.13")
    assert (tmp_path / "2.13").is_dir()
