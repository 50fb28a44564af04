"""The words for failures: each kind of error has a title, a sentence, a next step and a button.

The only module with such words. Knows the error types of `core.errors` and the ids of the window's actions; no widgets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from app import VERSION
from app.i18n import formatting
from app.i18n.translator import said, said_error, tr
from app.notices.updates import UpdateAnswer
from core import errors

ActionId = Literal[
    "",
    "open_model",
    "builtin",
    "retry",
    "reload",
    "former",
    "answered",
    "new_chat",
    "settings",
    "copy_details",
    "log",
    "token",
    "export",
    "about",
    "gpu",
    "attach",
    "tools",
    "remote",
    "enlarge",
]
Tone = Literal["info", "warning", "error"]


@dataclass(frozen=True)
class Notice:
    """Contents of a notice bar. `action`: id of the window's action behind the button labelled `button`."""

    title: str
    sentence: str
    tone: Tone = "error"
    action: ActionId = ""
    button: str = ""
    details: str = ""


@dataclass(frozen=True)
class _Words:
    title: str
    action: ActionId
    button: str


@dataclass(frozen=True)
class LargerContext:
    """The cost of a larger context: additional bytes of memory, and tokens per second then and now."""

    context: int
    more_bytes: int
    tok_s: float
    tok_s_now: float


NAMED = 5
"""At most this many conversations that could not be imported are named."""
_OPEN: tuple[ActionId, str] = ("open_model", "Open another model…")
WORDS: dict[type[errors.HeteGenError], _Words] = {
    errors.ModelNotFound: _Words("The model was not found", *_OPEN),
    errors.ModelUnreadable: _Words("The model could not be read", *_OPEN),
    errors.UnsupportedModel: _Words("This model cannot be run", *_OPEN),
    errors.NoChatTemplate: _Words("This model does not know how to chat", *_OPEN),
    errors.NotEnoughMemory: _Words("Not enough memory", *_OPEN),
    errors.DeviceLost: _Words("The graphics card stopped answering", "retry", "Try again"),
    errors.PromptTooLong: _Words("The message is too long", "new_chat", "New conversation"),
    errors.BadRequest: _Words("That setting cannot be used", "settings", "Open settings"),
    errors.ModelFailed: _Words("The model failed", "retry", "Try again"),
    errors.BrokenOutput: _Words("The model's numbers went wrong", "retry", "Try again"),
    errors.NetworkError: _Words("The network did not answer", "retry", "Try again"),
    errors.AccessDenied: _Words("Access was refused", "token", "Enter a token"),
    errors.KeyRefused: _Words("The server refused the key", "remote", "Remote model…"),
    errors.DownloadFailed: _Words("The download did not finish", "retry", "Try again"),
    errors.DiskFull: _Words("The disk is full", "retry", "Try again"),
    errors.ToolFailed: _Words("The tool did not answer", "tools", "Open the tools"),
    errors.DocumentUnreadable: _Words("The file could not be attached", "attach", "Attach another file…"),
    errors.DocumentLocked: _Words("The file needs a password", "attach", "Attach another file…"),
}
_ANY = _Words("That did not work", "retry", "Try again")
REPORTS: dict[str, tuple[str, Tone]] = {
    "full": ("The disk is full", "warning"),
    "held": ("Not saved at the moment", "warning"),
    "left_out": ("Not everything was saved", "warning"),
    "saved": ("Saved", "info"),
    "recovered": ("The conversations were damaged", "warning"),
    "interrupted": ("Welcome back", "info"),
    "not_kept": ("Conversations are not kept", "warning"),
}
"""Title and tone of the store's reports."""


def for_error(error: errors.HeteGenError) -> Notice:
    """Return the notice for an error that a user can act on."""
    words = next((WORDS[kind] for kind in type(error).__mro__ if kind in WORDS), _ANY)
    return Notice(tr(words.title), said_error(error), "error", words.action, tr(words.button))


def for_load(error: errors.HeteGenError) -> Notice:
    """Return the notice for a model that could not be loaded."""
    notice = for_error(error)
    return replace(notice, action="reload") if notice.action == "retry" else notice


def with_model(notice: Notice, name: str) -> Notice:
    """Add to the notice for a load that the model before it answers again."""
    return replace(notice, sentence=f"{notice.sentence} {tr('{} stays loaded.').format(name)}")


def without_model(notice: Notice, name: str) -> Notice:
    """Add to the notice for a load that the model before it was given up, and offer that one."""
    words = f"{notice.sentence} {tr('{} is no longer loaded.').format(name)}"
    return replace(notice, sentence=words, action="former", button=tr("Load it again"))


def for_defect(details: str) -> Notice:
    """Return the notice for a bug: nothing the user did was wrong."""
    return Notice(
        tr("Something went wrong inside"),
        tr("This is a defect of the program; the log has the details. The window goes on working."),
        "error",
        "copy_details",
        tr("Copy details"),
        details,
    )


def load_cancelled(name: str) -> Notice:
    """Report that the user cancelled a load."""
    return Notice(tr("Loading was cancelled"), tr("{} is not loaded.").format(name), "info", *_open())


def no_model() -> Notice:
    """Report a question without a loaded model."""
    return Notice(tr("No model is loaded"), tr("Load one to get an answer."), "info", *_open())


def reply_awaited() -> Notice:
    """Report that an edited question was sent during a reply, or while a question waits for the model."""
    return Notice(
        tr("A reply is still awaited"),
        tr("Your text stays where it is: send it when the reply has ended, or stop the reply."),
        "info",
    )


def answers_elsewhere() -> Notice:
    """Report that something cannot be done during the reply of another conversation: stopping it, or continuing one."""
    return Notice(
        tr("Another conversation is being answered"), tr("Its reply can be stopped there."), "info", *_there()
    )


def tool_asks_elsewhere() -> Notice:
    """Report that a tool call waits for the user in a conversation that is not shown."""
    words = tr("Its reply wants to use a tool and needs your permission.")
    return Notice(tr("Another conversation waits for you"), words, "info", *_there())


def cannot_chat(name: str) -> Notice:
    """Report a model without a chat template."""
    words = tr("{} has no chat template, so it cannot tell the turns apart.").format(name)
    return for_error(errors.NoChatTemplate(words))


def cannot_see(name: str) -> Notice:
    """Report a picture attached for a model that reads text only."""
    words = tr("{} only reads text. Open a model that sees, or take the picture away.").format(name)
    return Notice(tr("This model cannot see pictures"), words, "warning", *_open())


def still_reading() -> Notice:
    """Report a question whose files are still being read."""
    return Notice(tr("The files are still being read"), tr("Send the message when they are there."), "info")


def files_too_long(tokens: int, room: int, larger: LargerContext | None) -> Notice:
    """Report attached files with more tokens than fit. `larger`: the context that would hold them."""
    words = tr("About {} tokens, and room for about {}: each question is given the parts that fit it.")
    words = words.format(formatting.count(tokens), formatting.count(room))
    title = tr("The attached files are too long to be read whole")
    if larger is None:
        return Notice(title, words, "warning")
    cost = tr("A context of {} holds them whole, for {} more memory and about {} instead of {} tokens/s.").format(
        formatting.count(larger.context),
        formatting.format_bytes(larger.more_bytes),
        formatting.rate(larger.tok_s),
        formatting.rate(larger.tok_s_now),
    )
    return Notice(title, f"{words} {cost}", "warning", "enlarge", tr("Raise the context"))


def left_out(turns: int) -> str:
    """Return the line above a reply whose prompt was shortened."""
    if turns == 1:
        return tr("The oldest message was left out to fit the context.")
    return tr("The {} oldest messages were left out to fit the context.").format(turns)


def _open() -> tuple[ActionId, str]:
    action, words = _OPEN
    return action, tr(words)


def _there() -> tuple[ActionId, str]:
    return "answered", tr("Go there")


def not_written(path: Path, error: OSError) -> Notice:
    """Report a file that could not be written."""
    return Notice(
        tr("The file could not be written"),
        f"{path.name}: {error.strerror or error}.",
        "error",
        "export",
        tr("Try again"),
    )


def exported(path: Path) -> Notice:
    """Report a finished export."""
    return Notice(tr("Exported"), tr("It lies in {}.").format(path), "info")


def importing(path: Path) -> Notice:
    """Report that a file of conversations is being read."""
    return Notice(tr("Importing"), tr("{} is being read.").format(path.name), "info")


def imported(count: int, unreadable: Sequence[str] = ()) -> Notice:
    """Report an import of all conversations except the `unreadable` ones."""
    words = tr("One conversation.") if count == 1 else tr("{} conversations.").format(count)
    if not unreadable:
        return Notice(tr("Imported"), words, "info")
    named = ", ".join(tr("“{}”").format(name) for name in unreadable[:NAMED]) + ("…" if len(unreadable) > NAMED else "")
    return Notice(tr("Imported"), f"{words} {tr('Not readable: {}.').format(named)}", "warning")


def for_report(kind: str, what: str, why: str, next_step: str) -> Notice:
    """Return the notice for a report of the store."""
    title, tone = REPORTS.get(kind, ("Conversations", "info"))
    return Notice(tr(title), " ".join(said(part) for part in (what, why, next_step) if part), tone)


def for_update(answer: UpdateAnswer) -> Notice:
    """Return the notice for the outcome of an update check."""
    if answer.error is not None:
        words = tr("It could not be found out whether there is a newer version. {}").format(said_error(answer.error))
        return Notice(tr("Updates"), words, "warning")
    if answer.kind == "newest":
        return Notice(tr("Updates"), tr("This is the newest version."), "info")
    words = tr("Version {} is there; this is {}.").format(answer.version, VERSION)
    return Notice(tr("A newer version"), words, "info", "about", tr("Show it…"))


def setting_ignored(sentence: str) -> Notice:
    """Report a stored setting that was not valid."""
    return Notice(tr("A setting was not used"), said(sentence), "warning", "settings", tr("Open settings"))


def replanned(reason: str) -> Notice:
    """Report that weights moved between the devices."""
    return Notice(tr("The split has changed"), said(reason), "info")


def gpu_offered(card: str) -> Notice:
    """Report a card that this program's torch cannot use yet."""
    return Notice(
        tr("{} is not used yet").format(card),
        tr("What it takes can be fetched; you are told the size before."),
        "info",
        "gpu",
        tr("See how…"),
    )


def gpu_ready() -> Notice:
    """Report that the runtime works with a new driver, tried while the window was open."""
    return Notice(
        tr("The card can be used again"),
        tr("The GPU runtime works with the new driver, from the next start of the program on."),
        "info",
        "gpu",
        tr("Details…"),
    )


def gpu_unused(why: str) -> Notice:
    """Report that an installed runtime is not used."""
    return Notice(tr("The processor is used, not the card"), said(why), "warning", "gpu", tr("Details…"))
