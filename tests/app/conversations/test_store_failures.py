"""What must not lose a conversation: kill -9, a full disk, a damaged file, an older or newer version, two windows."""

from __future__ import annotations

import os
import random
import sqlite3
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from app.conversations.conversation import Conversation, Turn
from app.conversations.store import Store
from app.conversations.store_file import Report, StoreFile
from app.conversations.store_recovery import salvage
from app.conversations.store_schema import MIGRATIONS, TABLES, StoreFull, StoreUnusable
from tests.app.conversations.test_store import integrity, talk

KILLS = int(os.environ.get("HETEGEN_KILLS", "10"))
# The promise is a quarter of a second, as the printed figures show; other programs may delay a few writers, not most.
AT_MOST_LOST_S = 1.0

# Streams replies for ever, and prints for each piece when it was handed to the store.
WRITER = """
import sys, time
from pathlib import Path
from app.conversations.conversation import Conversation, Turn
from app.conversations.store import Store
store = Store(Path(sys.argv[1]))
conversation = Conversation(id="chat")
parent = None
for number in range(10**6):
    question = conversation.add(Turn("user", f"question {number}", parent=parent))
    store.add("chat", question)
    reply = conversation.add(Turn("assistant", parent=question.id))
    store.add("chat", reply)
    for piece in range(int(sys.argv[2])):
        reply.content += f"word{piece} "
        store.keep(reply)
        print(number, len(reply.content), time.monotonic(), flush=True)
        time.sleep(0.005)
    reply.end = "stop"
    store.keep(reply)
    parent = reply.id
"""


def test_kill_at_random_moments_loses_at_most_250_ms(tmp_path: Path) -> None:
    dice = random.Random(6)
    losses = []
    for round_ in range(KILLS):
        path = tmp_path / f"{round_}.db"
        handed = killed_after(path, b"question 0", dice.uniform(0.1, 0.8), pieces=dice.choice((5, 40, 10_000)))
        killed = handed.pop()[2]
        assert integrity(path) == "ok"
        store = Store(path)
        replies = [turn for turn in store.load("chat").path() if turn.role == "assistant"]
        store.close()
        assert all(reply.end in ("stop", "stopped") for reply in replies)
        kept = {number: len(reply.content) for number, reply in enumerate(replies)}
        lost = [moment for number, length, moment in handed if kept.get(int(number), 0) < length]
        losses.append(max((killed - moment for moment in lost), default=0.0))
    print(f"{KILLS} kills: at most {max(losses) * 1000:.0f} ms lost")
    assert statistics.median(losses) <= AT_MOST_LOST_S


def killed_after(path: Path, text: bytes, seconds: float, pieces: int) -> list[tuple[float, float, float]]:
    """Kill a writer `seconds` after `text` is in its file.

    Returns (reply, characters, time) of each piece handed over, and last (0, 0, time of the kill).
    """
    command = [sys.executable, "-c", WRITER, str(path), str(pieces)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout
        first = writer.stdout.readline()
        wait_for(lambda: any(text in file.read_bytes() for file in path.parent.glob(f"{path.name}*")))
        time.sleep(seconds)
        moment = time.monotonic()
        writer.kill()
        lines = [first, *writer.stdout.read().splitlines()]
    handed = [tuple(map(float, line.split())) for line in lines if len(line.split()) == 3]
    return [(number, length, at) for number, length, at in handed if at <= moment] + [(0, 0, moment)]


def test_an_interrupted_reply_is_a_stopped_one_and_is_reported(tmp_path: Path) -> None:
    killed_after(tmp_path / "chats.db", b"word1 ", 0.1, pieces=10_000)
    told: list[Report] = []
    store = Store(tmp_path / "chats.db", told.append)
    assert [report.kind for report in told] == ["interrupted"]
    assert store.search("word1")[0].turn == store.load("chat").path()[-1].id
    store.close()
    assert integrity(tmp_path / "chats.db") == "ok"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 1 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if not sys.platform.startswith("linux") or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system needs root on Linux")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(folder: Path) -> Path:
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"x" * 4096)
    return ballast


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def carry_on_while_full(store: Store, told: list[Report], make_room: Callable[[], object]) -> Conversation:
    """Chat over a full disk: everything stays readable, and is saved when there is room."""
    conversation = talk(store, "question", "answer")
    reply = conversation.add(Turn("assistant", parent=conversation.path()[0].id))
    store.add(conversation.id, reply)
    for _ in range(40):
        reply.content += "more words than the disk can hold " * 1000
        store.keep(reply)
        store.flush()
    assert store.unsaved
    assert [report.kind for report in told] == ["full"]
    assert store.load(conversation.id).path()[-1].content == reply.content
    store.rename(conversation.id, "Named while full")
    reply.content, reply.end = "short after all", "stop"
    store.keep(reply)
    assert store.entry(conversation.id).title == "Named while full"
    assert [hit.turn for hit in store.search("short after")] == [reply.id]
    make_room()
    wait_for(lambda: not store.unsaved)
    wait_for(lambda: len(told) == 2)
    assert [report.kind for report in told] == ["full", "saved"]
    return conversation


def test_a_full_disk_loses_nothing(small_disk: Path) -> None:
    told: list[Report] = []
    store = Store(small_disk / "chats.db", told.append)
    store.flush()
    ballast = fill(small_disk)
    conversation = carry_on_while_full(store, told, ballast.unlink)
    store.close()
    again = Store(small_disk / "chats.db")
    assert again.load(conversation.id).turns() == conversation.turns()
    assert again.entry(conversation.id).title == "Named while full"
    again.close()
    assert integrity(small_disk / "chats.db") == "ok"


def test_a_size_limit_loses_nothing(tmp_path: Path, disks: list[sqlite3.Connection]) -> None:
    told: list[Report] = []
    store = Store(tmp_path / "chats.db", told.append)
    disk = disks[-1]
    disk.execute("PRAGMA max_page_count = 60")
    conversation = carry_on_while_full(store, told, lambda: disk.execute("PRAGMA max_page_count = 1000000"))
    store.close()
    again = Store(tmp_path / "chats.db")
    assert again.load(conversation.id).turns() == conversation.turns()
    again.close()
    assert integrity(tmp_path / "chats.db") == "ok"


def test_no_room_to_begin_with_is_said(small_disk: Path) -> None:
    fill(small_disk)
    with pytest.raises(StoreFull) as caught:
        Store(small_disk / "chats.db")
    assert caught.value.next_step


def many(path: Path) -> dict[str, Turn]:
    """Create a database of 60 conversations with long and short turns, close it, and return its turns by id."""
    store, dice = Store(path), random.Random(3)
    turns = {}
    for number in range(60):
        sizes = [dice.choice((0, 40, 400, 3900, 4050, 4061, 4062, 9000, 70_000)) for _ in range(6)]
        texts = [
            f"chat {number} turn {index} " + "é" * (size // 2) + "z" * (size % 2) for index, size in enumerate(sizes)
        ]
        turns |= {turn.id: turn for turn in talk(store, *texts).turns()}
    store.close()
    return turns


def test_salvaging_a_sound_file_reads_what_sqlite_reads(tmp_path: Path) -> None:
    many(tmp_path / "chats.db")
    rows = salvage(tmp_path / "chats.db")
    with closing(sqlite3.connect(tmp_path / "chats.db")) as database:
        assert list(rows.conversations) == database.execute("SELECT * FROM conversations ORDER BY number").fetchall()
        assert list(rows.messages) == database.execute("SELECT * FROM messages ORDER BY number").fetchall()


def overwrite(path: Path, share: float) -> None:
    """Overwrite a share of the pages with random bytes, except the first page."""
    dice = random.Random(4)
    pages = path.stat().st_size // 4096
    with path.open("r+b") as file:
        for page in dice.sample(range(1, pages), max(1, int(pages * share))):
            file.seek(page * 4096)
            file.write(dice.randbytes(4096))


def lose_the_header(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"\0" * 4096)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size * 7 // 10)


@pytest.mark.parametrize(
    ("damage", "least"),
    [
        (lambda path: overwrite(path, 0.02), 0.8),
        (lambda path: overwrite(path, 0.1), 0.3),
        (lose_the_header, 1.0),
        (cut, 0.5),
    ],
    ids=["2 % of pages", "10 % of pages", "header", "cut off"],
)
def test_a_damaged_file_is_kept_aside_and_what_can_be_read_is_recovered(
    damage: Callable[[Path], None], least: float, tmp_path: Path
) -> None:
    path = tmp_path / "chats.db"
    turns = many(path)
    damage(path)
    damaged = path.read_bytes()
    told: list[Report] = []
    store = Store(path, told.append)
    (report,) = told
    assert report.kind == "recovered"
    (aside,) = tmp_path.glob("chats.damaged-*.db")
    assert aside.name in report.next_step
    assert aside.read_bytes() == damaged
    recovered = {turn.id: turn for entry in store.entries() for turn in store.load(entry.id).turns()}
    whole = [name for name, turn in recovered.items() if turn.content == turns[name].content]
    print(f"{len(whole)} of {len(turns)} whole, {len(recovered) - len(whole)} in part; {report.what}")
    assert len(whole) >= least * len(turns)
    assert store.search("chat turn")
    talk(store, "life goes on")
    store.close()
    assert integrity(path) == "ok"


def test_a_file_that_is_no_database_is_kept_aside(tmp_path: Path) -> None:
    path = tmp_path / "chats.db"
    path.write_text("A letter to my aunt. " * 500, "utf-8")
    told: list[Report] = []
    store = Store(path, told.append)
    assert store.entries() == []
    store.close()
    assert [report.kind for report in told] == ["recovered"]
    (aside,) = tmp_path.glob("chats.damaged-*.db")
    assert aside.read_text("utf-8").startswith("A letter")


def test_a_recovery_that_the_system_refuses_leaves_the_file_and_the_window_begins(tmp_path: Path) -> None:
    path, told = tmp_path / "chats.db", list[Report]()
    path.write_text("A letter to my aunt. " * 500, "utf-8")
    (tmp_path / "chats.recovered.db").mkdir()
    store = Store(path, told.append, waits=True)
    talk(store, "kept in memory")
    assert [report.kind for report in told] == ["not_kept"]
    assert path.read_text("utf-8").startswith("A letter")
    store.close()


def test_damage_found_while_in_use_is_recovered_too(tmp_path: Path, disks: list[sqlite3.Connection]) -> None:
    path = tmp_path / "chats.db"
    turns = many(path)
    told: list[Report] = []
    store = Store(path, told.append)
    disks[-1].execute("PRAGMA cache_size = 1")
    overwrite(path, 0.05)
    entries = store.entries()
    found = [store.load(entry.id) for entry in entries]
    assert [report.kind for report in told] == ["recovered"]
    assert sum(len(conversation.turns()) for conversation in found) > len(turns) // 3
    talk(store, "life goes on")
    store.close()
    assert integrity(path) == "ok"


def test_text_that_is_damaged_is_shown_as_far_as_it_can_be_read(tmp_path: Path) -> None:
    """Bytes inside of a long text belong to no structure that SQLite checks."""
    path = tmp_path / "chats.db"
    store = Store(path)
    talk(store, "a question", "an answer of some words")
    store.close()
    with closing(sqlite3.connect(path)) as damaged, damaged:
        damaged.execute("UPDATE messages SET content = CAST(x'616EFF' AS TEXT) WHERE content LIKE 'an answer%'")
    told: list[Report] = []
    store = Store(path, told.append)
    [conversation] = [store.load(entry.id) for entry in store.entries()]
    assert [turn.content for turn in conversation.turns()] == ["a question", "an\ufffd"]
    assert [report.kind for report in told] == ["recovered"]
    store.close()


def test_an_older_file_is_backed_up_and_brought_up_to_date(tmp_path: Path) -> None:
    path = tmp_path / "chats.db"
    with closing(sqlite3.connect(path)) as old:
        old.executescript(TABLES + "PRAGMA user_version = 1")
        old.execute("INSERT INTO conversations VALUES(1, 'c', 'Old chat', 0, 5.0, 6.0, NULL, '{}', 'Be kind.', 'q')")
        message = "INSERT INTO messages VALUES(?, ?, 'c', ?, NULL, ?, ?, 5.0, NULL, 0, '{}', '', ?)"
        old.execute(message, (1, "q", None, "user", "", "an old question"))
        old.execute(message, (2, "r", "q", "assistant", "streaming", "half an ans"))
        old.commit()
    before = path.read_bytes()
    store = Store(path)
    assert [turn.content for turn in store.load("c").path()] == ["an old question", "half an ans"]
    assert [hit.turn for hit in store.search("half")] == ["r"]
    assert store.search("old chat")
    store.close()
    assert integrity(path) == "ok"
    with closing(sqlite3.connect(tmp_path / "chats.format1.db")) as backup:
        assert backup.execute("PRAGMA user_version").fetchone() == (1,)
        assert backup.execute("SELECT count(*) FROM messages").fetchone() == (2,)
    assert len(before) == (tmp_path / "chats.format1.db").stat().st_size


def test_a_migration_that_fails_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "chats.db"
    with closing(sqlite3.connect(path)) as old:
        # A table in the way of the one that the migration creates.
        old.executescript(TABLES + "CREATE TABLE title_words(x); PRAGMA user_version = 1")
    with pytest.raises(StoreUnusable):
        Store(path)
    with closing(sqlite3.connect(path)) as old:
        assert old.execute("PRAGMA user_version").fetchone() == (1,)
        assert not old.execute("SELECT 1 FROM sqlite_master WHERE name = 'message_words'").fetchall()


def test_a_newer_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "chats.db"
    with closing(sqlite3.connect(path)) as new:
        new.executescript(f"CREATE TABLE future(x); PRAGMA user_version = {len(MIGRATIONS) + 1}")
    with pytest.raises(StoreUnusable, match="newer version"):
        Store(path)
    with closing(sqlite3.connect(path)) as new:
        assert new.execute("SELECT name FROM sqlite_master").fetchall() == [("future",)]


def test_a_second_window_is_told_so(tmp_path: Path) -> None:
    store = Store(tmp_path / "chats.db")
    with pytest.raises(StoreUnusable, match="in use"):
        Store(tmp_path / "chats.db")
    talk(store, "the first one goes on")
    assert len(store.entries()) == 1
    store.close()


def test_what_is_said_beside_another_window_is_kept_when_that_one_closes(tmp_path: Path) -> None:
    path, told = tmp_path / "chats.db", list[Report]()
    first = Store(path)
    second = Store(path, told.append, waits=True)
    assert [(report.kind, report.next_step) for report in told] == [("not_kept", "Use or close that window.")]
    one, other = talk(first, "in the first"), talk(second, "in the second", "its answer")
    assert second.load(other.id).turns() == other.turns()
    assert second.unsaved
    assert second.late, "what the file holds is not known, and nothing of it may be tidied away"
    first.close()
    wait_for(lambda: not second.unsaved)
    assert {entry.id for entry in second.entries()} == {one.id, other.id}
    assert not second.late
    second.close()
    again = Store(path)
    assert again.load(other.id).turns() == other.turns()
    assert again.load(one.id).turns() == one.turns()
    again.close()


def test_a_recovery_that_was_cut_off_is_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "chats.db"
    turns = many(path)
    path.replace(tmp_path / "chats.recovered.db")  # which was about to take the free name
    store = Store(path)
    assert {turn.id for entry in store.entries() for turn in store.load(entry.id).turns()} == turns.keys()
    store.close()


def test_without_room_to_recover_the_damaged_file_stays_where_it_is(small_disk: Path, tmp_path: Path) -> None:
    path = tmp_path / "chats.db"
    many(path)
    lose_the_header(path)
    crowded = small_disk / "chats.db"
    crowded.write_bytes(path.read_bytes()[: 700 << 10])
    damaged = crowded.read_bytes()
    with pytest.raises(StoreFull):
        Store(crowded)
    assert crowded.read_bytes() == damaged
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    store = Store(crowded)
    assert len([turn for entry in store.entries() for turn in store.load(entry.id).turns()]) > 50
    store.close()


def test_what_was_deleted_is_removed_also_when_the_clock_was_set_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "chats.db")
    conversation = talk(store, "a secret that was deleted", "its answer")
    kept = talk(store, "what stays")
    store.delete(conversation.id)
    store.flush()
    monkeypatch.setattr(time, "time", lambda: 1_000_000.0)
    talk(store, "said in 1970")
    store.purge()
    store.close()
    assert b"secret" not in (tmp_path / "chats.db").read_bytes()
    again = Store(tmp_path / "chats.db")
    assert [turn.content for turn in again.load(kept.id).turns()] == ["what stays"]
    assert len(again.entries()) == 2
    again.close()


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreUnusable, match="cannot be opened"):
        Store(tmp_path / "file" / "chats.db")


def test_a_change_that_no_file_would_take_is_left_out_and_the_others_are_saved(tmp_path: Path) -> None:
    told: list[Report] = []
    begun, all_queued = threading.Event(), threading.Event()

    def first(database: sqlite3.Connection) -> None:
        begun.set()
        assert all_queued.wait(60)
        named(database, "first")

    file = StoreFile(tmp_path / "chats.db", told.append)
    file.change(first)
    assert begun.wait(60)  # the others are queued meanwhile, and written together
    file.change(lambda db: named(db, "before"))
    file.change(lambda db: db.execute("INSERT INTO nowhere VALUES(1)"))
    file.change_latest("x", lambda db: db.execute("UPDATE messages SET content = ?", ("\ud800",)))
    file.change(lambda db: named(db, "after"))
    all_queued.set()
    wait_for(lambda: bool(told))
    assert [report.kind for report in told] == ["left_out"]
    file.change(lambda db: named(db, "and later"))
    wait_for(lambda: any(b"and later" in each.read_bytes() for each in tmp_path.glob("chats.db*")))
    file.close()
    again = Store(tmp_path / "chats.db")
    assert {entry.title for entry in again.entries()} == {"first", "before", "after", "and later"}
    again.close()
    assert integrity(tmp_path / "chats.db") == "ok"


def test_what_waits_for_a_full_disk_is_saved_without_what_only_memory_takes(
    tmp_path: Path, disks: list[sqlite3.Connection]
) -> None:
    told: list[Report] = []
    file = StoreFile(tmp_path / "chats.db", told.append)
    disks[-1].execute("PRAGMA query_only = ON")
    file.change(lambda database: named(database, "question"))
    file.change(only_in_memory)
    file.flush()
    disks[-1].execute("PRAGMA query_only = OFF")
    wait_for(lambda: [report.kind for report in told] == ["held", "left_out", "saved"])
    assert file.read("SELECT title FROM conversations") == [("question",)]
    file.close()


def named(database: sqlite3.Connection, title: str) -> None:
    columns = "id, title, pinned, created, updated, options, system"
    database.execute(f"INSERT INTO conversations({columns}) VALUES(?, ?, 0, 0, 0, '{{}}', '')", (title, title))


def only_in_memory(database: sqlite3.Connection) -> None:
    if database.execute("PRAGMA database_list").fetchone()[2]:
        raise ValueError("a file")


def test_a_disk_that_refuses_for_a_while_loses_nothing(tmp_path: Path, disks: list[sqlite3.Connection]) -> None:
    told: list[Report] = []
    store = Store(tmp_path / "chats.db", told.append)
    disk = disks[-1]
    first = talk(store, "while it works")
    store.flush()
    disk.execute("PRAGMA query_only = ON")
    second = talk(store, "while it does not")
    wait_for(lambda: store.unsaved)
    assert [report.kind for report in told] == ["held"]
    assert {entry.id for entry in store.entries()} == {first.id, second.id}
    disk.execute("PRAGMA query_only = OFF")
    wait_for(lambda: not store.unsaved and len(told) == 2)
    assert told[1].kind == "saved"
    store.close()
    again = Store(tmp_path / "chats.db")
    assert again.load(second.id).turns() == second.turns()
    again.close()


def test_a_failure_that_nobody_thought_of_keeps_the_changes_and_the_thread(
    tmp_path: Path, disks: list[sqlite3.Connection]
) -> None:
    told: list[Report] = []
    store = Store(tmp_path / "chats.db", told.append)
    disks[-1].set_authorizer(lambda *_: sqlite3.SQLITE_DENY)
    conversation = talk(store, "question", "answer")
    wait_for(lambda: bool(told))
    assert store.unsaved
    assert [report.kind for report in told] == ["held"]
    disks[-1].set_authorizer(None)
    wait_for(lambda: not store.unsaved and len(told) == 2)
    assert told[1].kind == "saved"
    assert store.load(conversation.id).turns() == conversation.turns()
    store.close()


def test_a_turn_that_could_not_be_saved_hides_nothing_after_it(tmp_path: Path) -> None:
    store = Store(tmp_path / "chats.db")
    conversation = Conversation()
    first = conversation.add(Turn("user", "first"))
    lost = conversation.add(Turn("assistant", "lost", end="stop", left_out=1 << 80, parent=first.id))
    last = conversation.add(Turn("user", "last", parent=lost.id))
    for turn in (first, lost, last):
        store.add(conversation.id, turn)
    assert [turn.content for turn in store.load(conversation.id).path()] == ["first", "last"]
    store.close()


def test_half_a_surrogate_pair_is_stored_as_a_sign_for_it(tmp_path: Path) -> None:
    store = Store(tmp_path / "chats.db")
    conversation = talk(store, "half \ud800 a sign", "\ud83d\ude42")
    store.put(Conversation(conversation.id, "\udfff", "\udfff"))
    loaded = store.load(conversation.id)
    assert [turn.content for turn in loaded.path()] == ["half \ufffd a sign", "🙂"]
    assert (loaded.title, loaded.system) == ("\ufffd", "\ufffd")
    assert store.search("half \ud800")
    store.close()
