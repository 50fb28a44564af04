"""Every setting, declared once: type, default, bounds and words. Dialog, file and validation are built from it.

A stored value that is not valid falls back to its default and is reported. Unknown keys are kept, so that an older and
a newer version can share one file.
"""

from __future__ import annotations

import json
import types
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints
from urllib.parse import urlsplit

from core.events import AUTO, LOOKUP, NO_DRAFT, SELF, Sampling
from core.files import write_whole
from core.sentence import sentence
from core.spec import MIN_CONTEXT

Kind = Literal["bool", "int", "float", "text", "choice", "folder", "url"]


@dataclass(frozen=True)
class Declared:
    """Declaration of one setting, for the dialog and the validation.

    `choices`: (value, label) pairs. `low`, `high`, `step` are in `unit`. `unset`: the word for None, if None is
    allowed. `example`: shown in a text field while it is empty. `lines`: its height. `reload`: takes effect when a
    model is loaded again.
    """

    section: str
    label: str
    help: str = ""
    kind: Kind = "text"
    choices: tuple[tuple[str, str], ...] = ()
    low: float | None = None
    high: float | None = None
    step: float = 1
    unit: str = ""
    unset: str = ""
    example: str = ""
    lines: int = 1
    reload: bool = False


def setting(default: Any, section: str, label: str, help: str = "", **more: Any) -> Any:
    """Return a dataclass field with its declaration."""
    return field(default=default, metadata={"declared": Declared(section, label, help, **more)})


APPEARANCE, CHAT, SAMPLING, MODEL, NETWORK = "Appearance", "Chat", "Sampling", "Model", "Models and network"
AUTOMATIC = "Automatic"
OTHER_MODEL = "model"
"""The value of `Settings.draft` for the model that `Settings.draft_model` names."""
MODELS_OWN = "The model's own"

PRESETS: Mapping[str, Sampling] = {
    "model": Sampling(),
    "precise": Sampling(temperature=0.2, top_p=0.9),
    "balanced": Sampling(temperature=0.7, top_p=0.95),
    "creative": Sampling(temperature=1.1, top_p=0.98, min_p=0.02),
}


@dataclass(frozen=True)
class Settings:
    """All settings. None means automatic."""

    theme: str = setting(
        "system", APPEARANCE, "Theme", kind="choice",
        choices=(("system", "As the system"), ("light", "Light"), ("dark", "Dark")),
    )  # fmt: skip
    font_percent: int = setting(100, APPEARANCE, "Font size", kind="int", low=80, high=160, step=10, unit="%")
    language: str = setting(
        "system", APPEARANCE, "Language", "Takes effect with the next start.", kind="choice",
        choices=(("system", "As the system"), ("en", "English"), ("de", "Deutsch")),
    )  # fmt: skip

    enter_sends: bool = setting(
        True, CHAT, "Send with Enter", "Shift+Enter starts a new line. When off, Ctrl+Enter sends.", kind="bool"
    )
    system_prompt: str = setting(
        "", CHAT, "System prompt", "What every new conversation tells the model first.", lines=5
    )
    keep_readings: bool = setting(
        False, CHAT, "Keep what was read",
        "A long conversation goes on at once after a restart instead of being read again. Takes up to 8 GB of disk.",
        kind="bool",
    )  # fmt: skip

    sampling_preset: str = setting(
        "model", SAMPLING, "Preset", "Custom uses the values below; empty ones stay the model's own.", kind="choice",
        choices=(
            ("model", "As the model recommends"), ("precise", "Precise"), ("balanced", "Balanced"),
            ("creative", "Creative"), ("custom", "Custom"),
        ),
    )  # fmt: skip
    temperature: float | None = setting(
        None, SAMPLING, "Temperature", "0 always takes the most likely token.",
        kind="float", low=0, high=2, step=0.05, unset=MODELS_OWN,
    )  # fmt: skip
    top_p: float | None = setting(
        None, SAMPLING, "Top P", "Keep the likeliest tokens that together reach this share.",
        kind="float", low=0.01, high=1, step=0.01, unset=MODELS_OWN,
    )  # fmt: skip
    top_k: int | None = setting(
        None, SAMPLING, "Top K", "Keep this many of the likeliest tokens; 0 keeps all.",
        kind="int", low=0, high=1000, unset=MODELS_OWN,
    )  # fmt: skip
    min_p: float | None = setting(
        None, SAMPLING, "Min P", "Drop tokens less likely than this share of the likeliest one.",
        kind="float", low=0, high=1, step=0.01, unset=MODELS_OWN,
    )  # fmt: skip
    repetition_penalty: float | None = setting(
        None, SAMPLING, "Repetition penalty", "1 is off; more makes repeating itself less likely.",
        kind="float", low=0.5, high=2, step=0.05, unset=MODELS_OWN,
    )  # fmt: skip

    format: str = setting(
        "auto", MODEL, "Weight format", "Automatic takes the most exact one that fits.", kind="choice", reload=True,
        choices=(("auto", AUTOMATIC), ("bf16", "bf16, exact"), ("int8", "int8"), ("int4", "int4, smallest")),
    )  # fmt: skip
    context: int | None = setting(
        None, MODEL, "Context", "How much of the conversation the model can see; more needs more memory.",
        kind="int", low=MIN_CONTEXT, high=1_048_576, step=1024, unit="tokens", unset=AUTOMATIC, reload=True,
    )  # fmt: skip
    kv: str = setting(
        "bf16", MODEL, "KV cache",
        "The memory of the conversation. With 8 bits nearly twice the context fits; answers hardly change.",
        kind="choice", choices=(("bf16", "Exact"), ("int8", "8 bits")), reload=True,
    )  # fmt: skip
    vram_limit_gib: float | None = setting(
        None, MODEL, "Graphics memory limit", "Leave room for other programs.",
        kind="float", low=0, high=1024, step=0.5, unit="GiB", unset=AUTOMATIC,
    )  # fmt: skip
    ram_limit_gib: float | None = setting(
        None, MODEL, "Memory limit", "The most that weights and KV cache may take of this computer's RAM.",
        kind="float", low=0.5, high=4096, step=0.5, unit="GiB", unset=AUTOMATIC,
    )  # fmt: skip
    threads: int | None = setting(None, MODEL, "CPU threads", kind="int", low=1, high=512, unset=AUTOMATIC, reload=True)
    draft: str = setting(
        LOOKUP, MODEL, "Guess ahead",
        "Guessed words are checked several at once: the answers stay the same and often come sooner.",
        kind="choice", reload=True,
        choices=(
            (LOOKUP, "From what was said before"), (AUTO, "Also MTP or a copy, if it pays"),
            (SELF, "Always with a small copy"), (OTHER_MODEL, "With the draft model below"), (NO_DRAFT, "Off"),
        ),
    )  # fmt: skip
    draft_model: str = setting(
        "", MODEL, "Draft model",
        "The folder or Hub name of a small model with the same tokens, or of the assistant made for a Gemma 4 model. "
        "While it is chosen, models that it does not fit do not load.",
        kind="folder", example="e.g. Qwen/Qwen3-0.6B", reload=True,
    )  # fmt: skip
    keep_loaded_minutes: int | None = setting(
        None, MODEL, "Keep the model loaded", "Memory is given back after this time without a question.",
        kind="int", low=1, high=1440, step=5, unit="minutes", unset="Until the window closes",
    )  # fmt: skip

    models_folder: str = setting(
        "", NETWORK, "Models folder", "Empty: the Hugging Face cache, shared with other programs.", kind="folder"
    )
    hf_endpoint: str = setting(
        "", NETWORK, "Hub address", "Empty: huggingface.co. A mirror never receives your token.", kind="url"
    )
    download_limit_mb_s: float | None = setting(
        None, NETWORK, "Download rate limit", kind="float", low=0.1, high=10_000, step=1, unit="MB/s", unset="No limit"
    )
    update_check: bool = setting(
        False, NETWORK, "Look for updates", "Asks at each start whether a newer version exists.", kind="bool"
    )

    def sampling(self) -> Sampling:
        """Return the chosen preset, or the custom values."""
        if self.sampling_preset == "custom":
            return Sampling(self.temperature, self.top_k, self.top_p, self.min_p, self.repetition_penalty)
        return PRESETS[self.sampling_preset]

    @property
    def drafts(self) -> str:
        """Who drafts, as `LoadOptions.draft`."""
        return self.draft if self.draft != OTHER_MODEL else self.draft_model.strip() or LOOKUP


@dataclass(frozen=True)
class Problem:
    """A stored value that was not used, and why. `key` is empty if the whole file is meant."""

    key: str
    sentence: str


@dataclass(frozen=True)
class Reading:
    """The validated contents of a settings file. `unknown`: entries of other versions, to be written back."""

    settings: Settings
    problems: tuple[Problem, ...] = ()
    unknown: Mapping[str, Any] = field(default_factory=dict)


@cache
def declared() -> Mapping[str, Declared]:
    """Return the declarations by field name, in the dialog's order."""
    return {entry.name: entry.metadata["declared"] for entry in fields(Settings)}


@cache
def accepted_types() -> Mapping[str, tuple[type, ...]]:
    """Return the accepted types of each field, including NoneType if None is allowed."""
    hints = get_type_hints(Settings)
    unions = (Union, types.UnionType)
    return {name: get_args(hint) if get_origin(hint) in unions else (hint,) for name, hint in hints.items()}


def objection(name: str, value: object) -> str | None:
    """Explain in one sentence why `value` is not valid for the setting `name`; None if it is."""
    entry, accepted = declared()[name], accepted_types()[name]
    if not _has_type(value, accepted):
        return sentence("{} cannot be {}.", entry.label, json.dumps(value, default=str)[:80])
    if entry.choices and value not in {choice for choice, _ in entry.choices}:
        return sentence("{} cannot be {}.", entry.label, repr(str(value)[:80]))
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _bounds_objection(entry, value)
    if entry.kind == "url" and value:
        return _url_objection(entry, str(value))
    return None


def _has_type(value: object, accepted: tuple[type, ...]) -> bool:
    if isinstance(value, bool):  # bool is an int for Python, but not for a user
        return bool in accepted
    if isinstance(value, int) and float in accepted:
        return True
    return isinstance(value, accepted)


def _bounds_objection(entry: Declared, value: float) -> str | None:
    low, high = entry.low, entry.high
    if (low is None or value >= low) and (high is None or value <= high):
        return None
    most = sentence("{} {}", _plain(high), entry.unit) if entry.unit else _plain(high)
    return sentence("{} must be between {} and {}.", entry.label, _plain(low), most)


def _plain(bound: float | None) -> str:
    if bound is None:
        return sentence("any number")
    return f"{bound:,.0f}" if bound == int(bound) else f"{bound:g}"


def _url_objection(entry: Declared, value: str) -> str | None:
    try:
        parts = urlsplit(value)
    except ValueError:
        return sentence("{} is not a web address.", entry.label)
    if parts.scheme in ("http", "https") and parts.hostname and not parts.username:
        return None
    return sentence("{} must be a web address that begins with https:// or http://.", entry.label)


def with_value(settings: Settings, name: str, value: object) -> Settings:
    """Return a copy with one value changed. Raises ValueError with the sentence to show."""
    if words := objection(name, value):
        raise ValueError(words)
    if isinstance(value, int) and not isinstance(value, bool) and float in accepted_types()[name]:
        value = float(value)
    changed: dict[str, Any] = {name: value}
    return replace(settings, **changed)


def read(path: Path) -> Reading:
    """Read the settings, with defaults for missing or invalid values. Never raises because of the contents."""
    try:
        stored = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return Reading(Settings())
    except (ValueError, OSError) as error:
        return _unreadable(path, error)
    if not isinstance(stored, dict):
        return _unreadable(path, ValueError("it is not a table of values"))
    return _validated(stored)


def _validated(stored: dict[str, Any]) -> Reading:
    settings, problems = Settings(), []
    for name in declared():
        if name not in stored:
            continue
        try:
            settings = with_value(settings, name, stored[name])
        except ValueError as error:
            problems.append(Problem(name, sentence("{} The default is used.", error.args[0])))
    unknown = {key: value for key, value in stored.items() if key not in declared()}
    return Reading(settings, tuple(problems), unknown)


def _unreadable(path: Path, error: Exception) -> Reading:
    aside = path.with_name(path.name + ".unreadable")
    words = sentence("The settings file could not be read, so the defaults are used.")
    if isinstance(error, ValueError) and _moved(path, aside):
        words = sentence("{} It was kept as {}.", words, aside.name)
    return Reading(Settings(), (Problem("", words),))


def _moved(path: Path, aside: Path) -> bool:
    try:
        path.replace(aside)
    except OSError:
        return False
    return True


def write(path: Path, settings: Settings, unknown: Mapping[str, Any] | None = None) -> None:
    """Write the settings atomically: a reader sees the old file or the new one. Raises OSError."""
    values = {entry.name: getattr(settings, entry.name) for entry in fields(settings)}
    text = json.dumps({**(unknown or {}), **values}, indent=2, ensure_ascii=False, allow_nan=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, text + "\n")
