"""Words of the graphics card page: the situation, the cost, and the buttons."""

from __future__ import annotations

from dataclasses import dataclass

from app.gpu.state import GpuState
from app.i18n.formatting import format_bytes
from app.i18n.translator import number, said, said_error, tr
from core.hardware.untried import UNTRIED
from core.hub.progress import duration

LINE_BYTES_S = 100e6 / 8
"""A 100 Mbit/s line, for estimates before anything is measured."""


@dataclass(frozen=True)
class Page:
    """The page. `buttons`: (wish, words), the default first. `share`: progress 0-1, -1 = unknown, None = no bar."""

    headline: str
    sentence: str
    details: str = ""
    buttons: tuple[tuple[str, str], ...] = ()
    share: float | None = None


def page(state: GpuState, place: str) -> Page:
    """Compose the page for a state. `place`: the folder of the runtime."""
    described = _PAGES[state.stage](state, place)
    if state.error is None:
        return described
    return Page(described.headline, said_error(state.error), described.sentence, described.buttons, described.share)


def _card(state: GpuState) -> str:
    return state.card.name if state.card else tr("The graphics card")


def _unknown(state: GpuState, place: str) -> Page:
    return Page(tr("Looking for graphics cards…"), "")


def _none(state: GpuState, place: str) -> Page:
    return Page(
        tr("No graphics card was found"),
        tr("The processor does all the work."),
        tr("If there is one in this computer, install its driver and start again."),
    )


def _built_in(state: GpuState, place: str) -> Page:
    return Page(
        tr("{} is used").format(_card(state)),
        tr("This program's own PyTorch can compute on it."),
        "\n".join(_untried()),
    )


def _hindered(state: GpuState, place: str) -> Page:
    return Page(tr("{} cannot be used").format(_card(state)), tr("The processor does all the work."))


def _offer(state: GpuState, place: str) -> Page:
    words = tr("This program came with the PyTorch for processors. The one for {} cards is fetched only if you wish.")
    return Page(
        tr("{} is not used yet").format(_card(state)),
        words.format(state.card.maker if state.card else ""),
        _looking(state),
        (("look", tr("See what is needed")),),
    )


def _looking(state: GpuState) -> str:
    if state.card and state.card.maker == "Intel":
        return tr("Looking asks download.pytorch.org and pypi.org how large it is; nothing is downloaded yet.")
    return tr("Looking asks download.pytorch.org how large it is; nothing is downloaded yet.")


def _asking(state: GpuState, place: str) -> Page:
    return Page(tr("Looking up what is needed…"), tr("PyTorch's index is asked."), "", (("pause", tr("Stop")),), -1)


def _found(state: GpuState, place: str) -> Page:
    needed = state.needed
    assert needed is not None
    sentence = tr("{} to download, about {} at 100 Mbit/s. It takes {} on the disk.").format(
        format_bytes(needed.download_bytes),
        duration(needed.download_bytes / LINE_BYTES_S),
        format_bytes(needed.disk_bytes),
    )
    details = tr("PyTorch {} for {}, in {} files, each checked by its SHA-256. Kept in {}").format(
        needed.version, needed.build.title, len(needed.wheels), place
    )
    return Page(tr("Use {}").format(_card(state)), sentence, details, (("fetch", tr("Download")),))


def _fetching(state: GpuState, place: str) -> Page:
    advance = state.advance
    if advance is None:
        return Page(tr("Downloading…"), "", "", (("pause", tr("Pause")),), -1)
    done, total = format_bytes(advance.done), format_bytes(advance.total)
    share = advance.done / advance.total if advance.total else -1
    if advance.step == "unpacking":
        return Page(tr("Unpacking…"), tr("{} of {}").format(done, total), "", (("pause", tr("Pause")),), share)
    parts = [tr("{} of {}").format(done, total)]
    if advance.rate:
        parts.append(number(f"{advance.rate / 1e6:.1f} MB/s"))
    if advance.eta_s:
        parts.append(tr("{} left").format(duration(advance.eta_s)))
    return Page(tr("Downloading…"), ", ".join(parts), advance.note, (("pause", tr("Pause")),), share)


def _paused(state: GpuState, place: str) -> Page:
    buttons = (("fetch", tr("Go on")), ("remove", tr("Discard")))
    return Page(tr("The download waits"), tr("What came so far is kept."), "", buttons)


def _trying(state: GpuState, place: str) -> Page:
    return Page(tr("Trying it on the card…"), tr("A first calculation, in a process of its own."), "", (), -1)


def _ready(state: GpuState, place: str) -> Page:
    return Page(
        tr("It works on {}").format(state.device),
        tr("The program starts again to use it; conversations stay as they are."),
        _kept(state, place),
        (("restart", tr("Restart now")), ("remove", tr("Remove"))),
    )


def _used(state: GpuState, place: str) -> Page:
    return Page(
        tr("{} is used").format(state.device),
        tr("PyTorch {} computed on it at this start.").format(state.version),
        "\n".join((_kept(state, place), "", *_untried())),
        (("remove", tr("Remove")),),
    )


def _untried() -> tuple[str, ...]:
    return tr("What the makers of this program could not test:"), *(f"– {said(text)}" for text in UNTRIED)


def _unused(state: GpuState, place: str) -> Page:
    return Page(
        tr("The processor is used, not the card"),
        said(state.why),
        _kept(state, place),
        (("try", tr("Try again")), ("remove", tr("Remove"))),
    )


def _removing(state: GpuState, place: str) -> Page:
    return Page(tr("Removing…"), tr("Its room on the disk becomes free."), "", (), -1)


def _leaving(state: GpuState, place: str) -> Page:
    return Page(
        tr("It is removed at the next start"),
        tr("It is in use until then. After that the processor does all the work."),
        "",
        (("restart", tr("Restart now")),),
    )


def _kept(state: GpuState, place: str) -> str:
    return tr("{} in {}").format(format_bytes(state.size), place)


_PAGES = {
    "unknown": _unknown, "none": _none, "built_in": _built_in, "hindered": _hindered, "offer": _offer,
    "asking": _asking, "found": _found,
    "fetching": _fetching, "paused": _paused, "trying": _trying, "ready": _ready, "used": _used, "unused": _unused,
    "removing": _removing, "leaving": _leaving,
}  # fmt: skip
