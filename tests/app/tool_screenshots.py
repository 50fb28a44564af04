"""States of the pages of tools and remote models, and of a tool call in the transcript."""

from __future__ import annotations

import time
from collections.abc import Callable

from app.engine.remote_state import RemoteState
from app.system.paths import places
from app.tools.state import ToolsState
from app.views.models.remote_dialog import RemoteDialog
from app.views.tools.tools_dialog import ToolsDialog
from core.errors import HeteGenError, ToolFailed
from core.remote.check import Outcome, Step
from core.remote.connection import Connection
from core.remote.saved import SavedEndpoint, write_saved
from core.sentence import sentence
from core.tools.book import Book
from core.tools.server import ServerStatus, ServerTool, ToolResult, ToolServer
from tests.app.screenshots import Stage
from tests.app.scripted_engine import answer
from tests.app.tools_stage import asks_for
from tests.app.waiting import until

READ = ("read_file", '{"path": "~/notes/garden.md", "first_line": 1, "last_line": 40}')
SEARCH = ("search_notes", '{"words": "tomatoes"}')
FOUND = (
    "# Garden\n\n- Tomatoes went in on 12 May.\n- The beans need a new frame.\n- Water every second evening in July."
)
FILES = ToolServer("notes", "npx", ("-y", "@modelcontextprotocol/server-filesystem", "~/notes"))
WEB = ToolServer("search", url="http://127.0.0.1:8931/mcp", headers={"Authorization": "Bearer 1234"})
OFF = ToolServer("calendar", "uvx", ("mcp-calendar",), on=False)
TOOLS = (
    ServerTool("read_file", "Read a file of the folder, whole or from one line to another."),
    ServerTool("write_file", "Write a file of the folder. What was there before is replaced."),
    ServerTool("search_notes", "Find the files that hold every one of some words."),
)
LOG = (
    "2026-11-29 11:04:10  …",
    "2026-11-29 11:04:12  Secure MCP Filesystem Server running on stdio",
    "2026-11-29 11:04:12  ✓ read_file, write_file, search_notes",
    "2026-11-29 11:04:40  → read_file",
    "2026-11-29 11:04:40  ✓ read_file: 112",
)
GONE = ToolFailed(sentence("{} failed.", "search"), sentence("It says: {}.", "All connection attempts failed"),
                  "Look at its log.")  # fmt: skip
BOOK = Book((FILES, WEB, OFF), {("notes", "read_file"): "always", ("notes", "write_file"): "never"})
STATE = ToolsState(BOOK, (ServerStatus("notes", "on", TOOLS, None, LOG),
                          ServerStatus("search", "failed", (), GONE, (LOG[0], f"2026-11-29 11:04:10  ✕ {GONE}")),
                          ServerStatus("calendar")))  # fmt: skip


def tools_page(stage: Stage, row: int = 0, state: ToolsState = STATE) -> ToolsDialog:
    stage.show()
    stage.app.commands.act("tools")
    dialog = stage.app.window.findChild(ToolsDialog)
    assert isinstance(dialog, ToolsDialog)
    dialog.show_state(state)
    dialog.list.setCurrentRow(row)
    return dialog


def tools(stage: Stage) -> None:
    tools_page(stage)


def tools_none(stage: Stage) -> None:
    tools_page(stage, -1, ToolsState())


def tools_failed(stage: Stage) -> None:
    tools_page(stage, 1)


def tools_form(stage: Stage) -> None:
    dialog = tools_page(stage, 1)
    dialog.page.edited.emit()


def tools_paste(stage: Stage) -> None:
    dialog = tools_page(stage)
    dialog.paste.click()


def called(stage: Stage, decisions: int) -> None:
    """A reply that calls two tools, of which `decisions` are allowed and have answered."""
    stage.engine.replies = [asks_for(SEARCH, READ, text="I look into your notes."), answer("On 12 May.")]
    stage.show()
    box = stage.app.toolbox
    box.state = ToolsState(BOOK.permit("notes", "read_file", "ask"), STATE.statuses)
    box.call = lambda call, longest=0: None  # type: ignore[method-assign]
    stage.app.window.composer.submitted.emit("When did I plant the tomatoes?")
    until(lambda: stage.app.session.state.phase == "calling")
    for turn in [turn for turn in stage.app.chat.conversation.path() if turn.call is not None][:decisions]:
        stage.app.session.replies.tools.decide(turn.id, "once")
        assert turn.call is not None
        box.answered.emit(turn.call.id, ToolResult(FOUND))
    stage.settle()


def tool_asking(stage: Stage) -> None:
    called(stage, 1)


def tool_done(stage: Stage) -> None:
    called(stage, 2)
    until(lambda: not stage.app.session.state.busy)
    card = stage.app.window.transcript.view_of(stage.app.chat.conversation.path()[3].id)
    assert card is not None
    card.head.click()  # type: ignore[attr-defined]
    end = time.monotonic() + 0.3
    until(lambda: time.monotonic() > end)


SAVED = (
    SavedEndpoint("Rack, vLLM", "https://box.lan:8000/v1", "big/model"),
    SavedEndpoint("Ollama here", "http://127.0.0.1:11434/v1"),
    SavedEndpoint("Anna's computer", "http://192.168.1.31:9931/v1"),
)
STEPS: tuple[Step, ...] = ("address", "name", "connection", "certificate", "key", "path", "models")


def remote_failing(step: Step, error: HeteGenError | None) -> Callable[[Stage], None]:
    def scene(stage: Stage) -> None:
        stage.show()
        write_saved(places().config / "servers.json", SAVED)
        stage.app.commands.act("remote")
        dialog = stage.app.window.findChild(RemoteDialog)
        assert isinstance(dialog, RemoteDialog)
        dialog.list.setCurrentRow(0)
        before = [Outcome(one) for one in STEPS[: STEPS.index(step)]]
        last = Outcome(step, error, () if error else ("big/model", "small/model"))
        stage.app.remote.changed.emit(RemoteState("https://box.lan:8000/v1", outcomes=(*before, last), saved=SAVED))

    return scene


def _failures() -> dict[Step, HeteGenError | None]:
    import socket
    import ssl

    from core.remote.endpoint import base_url

    line = Connection("https://box.lan:8000/v1")
    try:
        base_url("box lan")
    except HeteGenError as error:
        typed = error
    return {
        "address": typed,
        "name": line.lost(socket.gaierror()),
        "connection": line.lost(ConnectionRefusedError()),
        "certificate": line.lost(ssl.SSLError()),
        "key": line.refusal(401, b""),
        "path": line.refusal(404, b""),
        "models": None,
    }


TOOL_SCENES: dict[str, Callable[[Stage], None]] = {
    scene.__name__: scene
    for scene in (tools, tools_none, tools_failed, tools_form, tools_paste, tool_asking, tool_done)
} | {f"remote_{step}": remote_failing(step, error) for step, error in _failures().items()}
