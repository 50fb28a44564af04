"""The words of the model dialog: sizes, verdicts and downloads in the user's language. No widgets."""

from __future__ import annotations

import re

from PySide6.QtCore import QCoreApplication

from app.catalog.downloads import Transfer
from app.i18n import formatting
from app.i18n.formatting import format_bytes, format_memory, format_rate
from app.i18n.translator import number, said
from core.errors import BadRequest
from core.hub.fit import Fit, Kind
from core.hub.gguf_choices import Judged
from core.hub.installed import Installed, Verification
from core.hub.listing import ModelInfo
from core.hub.progress import duration

VERDICTS: dict[Kind, tuple[str, str, str]] = {
    "fits": ("Fits", "check", "ok"),
    "cpu_help": ("Runs with CPU help", "chip", "cpu"),
    "slow": ("Slow", "warning", "warn"),
    "no": ("Will not fit", "close", "danger"),
}
"""Word, icon and colour token of each verdict: colour is never the only sign."""
FORMATS = {"bf16": "as stored", "int8": "8-bit", "int4": "4-bit"}
HYPHEN = "\u2011"
"""Non-breaking hyphen."""
BILLION = 950_000_000
COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
HIDDEN = re.compile(r"<(script|style)\b.*?</\1\s*>", re.DOTALL | re.IGNORECASE)
BREAK = re.compile(r"<(?:br|/p|/div|/h\d|/li|/tr)\b[^>]*>", re.IGNORECASE)
TAG = re.compile(r"</?[a-zA-Z][^<>]*>")
IMAGE = re.compile(r"!\[[^\]]*\]\([^)]*\)")
EMPTY_LINK = re.compile(r"\[\s*\]\([^)]*\)")
BLANKS = re.compile(r"\n[ \t]*(?:\n[ \t]*){2,}")
FENCES = re.compile(r"(^```.*?^```[^\n]*$)", re.DOTALL | re.MULTILINE)


def tr(text: str) -> str:
    """Translate a text."""
    return QCoreApplication.translate("models", text)


def parameters(count: int) -> str:
    """Format a number of parameters: "8.0 billion parameters", "362 million parameters"."""
    if not count:
        return tr("{} parameters").format(formatting.unknown())
    if count >= BILLION:
        return tr("{} billion parameters").format(number(f"{count / 1e9:.1f}"))
    return tr("{} million parameters").format(f"{count / 1e6:.0f}")


def size(count: int) -> str:
    """Format a size in bytes; 0 means unknown."""
    return format_bytes(count) if count else tr("size {}").format(formatting.unknown())


def owner_and_name(id: str) -> tuple[str, str]:
    """Split a model's id into owner and name; for a GGUF file, into repository and file."""
    repository, colon, file = id.partition(":")
    if colon:
        return repository, file.rpartition("/")[2].removesuffix(".gguf")
    owner, _, name = id.rpartition("/")
    return owner, name


def choice(judged: Judged, *, is_best: bool) -> str:
    """Describe a file of a repository: kind, size, and whether it is recommended."""
    told = [judged.choice.label, format_bytes(judged.choice.nbytes)]
    return " · ".join([*told, tr("recommended")] if is_best else told)


def choice_with_verdict(judged: Judged, *, is_best: bool) -> str:
    """Describe a file together with its verdict."""
    fit = judged.fit
    verdict = tr(VERDICTS[fit.kind][0]) if fit else tr("cannot be used here")
    parts = [choice(judged, is_best=is_best), verdict]
    return " · ".join([*parts, speed(fit)] if fit and speed(fit) else parts)


def facts(count: int, nbytes: int, license: str, *, gated: bool, form: str = "") -> str:
    """Compose the second line of a row. `form`: shown instead of the size if there are several files to choose from."""
    short = (
        tr("{} B").format(number(f"{count / 1e9:.1f}")) if count >= BILLION else tr("{} M").format(f"{count / 1e6:.0f}")
    )
    licence = license or tr("licence {}").format(formatting.unknown())
    parts = [short if count else formatting.unknown(), form or size(nbytes), licence]
    return " · ".join([*parts, tr("gated")] if gated else parts)


def speed(fit: Fit) -> str:
    """Format the predicted speed: "about 18–24 tokens/s"; empty if the model does not fit."""
    if fit.kind == "no":
        return ""
    return tr("about {} tokens/s").format(formatting.expected(fit.tok_s))


def figures(fit: Fit) -> list[str]:
    """List the figures behind a verdict, one per line."""
    context = tr("Context: {} of {} tokens").format(formatting.count(fit.context), formatting.count(fit.context_limit))
    lines = [sizes(fit), *memory(fit), context]
    return [*lines, tr("The speed is {}.").format(formatting.confidence(fit.confidence))] if speed(fit) else lines


def sizes(fit: Fit) -> str:
    """Describe the weights' size as stored and in memory."""
    stored, used = format_bytes(fit.stored_bytes), format_bytes(fit.converted_bytes)
    if fit.kept:
        return tr("{} of weights, quantised already ({}) and kept so, {} in memory.").format(
            stored, fit.stored_as, used
        )
    if fit.stored_as:
        words = tr("{} of weights as {}, {} in memory after conversion to {}.")
        return words.format(stored, fit.stored_as, used, fit.format)
    if fit.converted_bytes >= fit.stored_bytes:
        return tr("{} of weights, used as stored ({}).").format(stored, fit.format)
    words = tr("{} of weights as stored, {} in memory after conversion to {}.")
    return words.format(stored, used, tr(FORMATS[fit.format]).replace("-", HYPHEN))


def memory(fit: Fit) -> list[str]:
    """List the memory needed on each device."""
    cards = sum(device.device != "cpu" for device in fit.memory)
    lines = []
    for device in fit.memory:
        card = tr("Graphics memory ({})").format(device.device) if cards > 1 else tr("Graphics memory")
        name = tr("Main memory") if device.device == "cpu" else card
        used, free = format_memory(device.used), format_memory(device.free_before)
        lines.append(tr("{}: {} needed, {} free").format(name, used, free))
    return lines


def transfer(state: Transfer) -> str:
    """Describe the state of a download."""
    progress = state.progress
    if state.phase == "queued":
        return tr("Waiting for its turn")
    if state.phase == "failed":
        return said(state.error.what) if state.error else tr("Stopped")
    if state.phase == "paused" and state.error:
        return tr("Paused: {}").format(said(state.error.what))
    if progress is None or not progress.total:
        return tr("Paused") if state.phase == "paused" else tr("Asking what there is")
    amount = tr("{} of {}").format(format_bytes(progress.done), format_bytes(progress.total))
    if state.phase == "paused":
        return tr("Paused at {}").format(amount)
    if progress.note:
        return f"{amount} · {said(progress.note)}"
    if progress.phase == "checking":
        return f"{amount} · {tr('checking what is here')}"
    parts = [amount]
    if progress.rate:
        parts.append(format_rate(progress.rate))
    if progress.eta_s is not None:
        parts.append(tr("{} left").format(duration(progress.eta_s)))
    return " · ".join(parts)


def unfinished(model: Installed) -> str:
    """Describe a download that an earlier run left unfinished."""
    amount = tr("{} of {}").format(format_bytes(model.bytes), format_bytes(model.total))
    return tr("Paused at {}").format(amount)


def info_line(info: ModelInfo) -> str:
    """Describe a model's downloads, likes and date."""
    day = info.updated[:10] or formatting.unknown()
    words = tr("{} downloads a month · {} likes · updated {}")
    return words.format(formatting.count(info.downloads), formatting.count(info.likes), day)


def plain_card(card: str) -> str:
    """Strip HTML and images from a model card."""
    pieces = FENCES.split(card)
    return "".join(piece if at % 2 else _plain(piece) for at, piece in enumerate(pieces)).strip()


def _plain(text: str) -> str:
    text = BREAK.sub("\n", HIDDEN.sub("", COMMENT.sub("", text)))
    text = EMPTY_LINK.sub("", IMAGE.sub("", TAG.sub("", text)))
    return BLANKS.sub("\n\n", "\n".join(line.rstrip() for line in text.split("\n")))


def removal(id: str, here: Installed | None) -> tuple[str, str, str]:
    """Return the question before removing a model, what happens to its files, and the button's word."""
    whole = here is not None and here.complete
    if here is not None and whole and not here.revision:
        return tr("Take {} off the list?").format(id), tr("Its folder and files stay where they are."), tr("Take off")
    question = tr("Delete {} from this computer?") if whole else tr("Give up the download of {}?")
    told = tr("{} become free. It can be downloaded again.").format(format_bytes(here.bytes if here else 0))
    return question.format(id), told, tr("Delete") if whole else tr("Give up")


def damage(found: Verification) -> BadRequest:
    """Describe what is wrong with a model's files."""
    names = ", ".join((*found.bad, *found.missing)[:3])
    count = len(found.bad) + len(found.missing)
    return BadRequest(
        tr("{} files are damaged or missing: {}.").format(count, names),
        next_step=tr("Press Repair to fetch only these again."),
    )
