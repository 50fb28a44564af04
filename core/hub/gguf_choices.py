"""The GGUF models of a repository, each in one or several files: matching a name, and recommending the best one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from core.errors import BadRequest, HeteGenError, ModelNotFound
from core.hub.fit import Fit
from core.hub.listing import Listing, Reference, RemoteFile
from core.sentence import joined, sentence
from core.spec import COMFORTABLE_TOK_S
from core.weights.gguf.header import TensorPlace
from core.weights.gguf.names import is_model, kind_of, split_names

FLOATS = ("BF16", "F16", "FP16", "F32", "FP32")
SAID = 6
"""Maximum number of choices that a message names."""


@dataclass(frozen=True)
class GgufChoice:
    """One GGUF model: its first file's `path`, its `kind` (Q4_K_M; "" = not stated), and all files that it needs."""

    path: str
    kind: str
    files: tuple[RemoteFile, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all its files together."""
        return sum(file.size for file in self.files)

    @property
    def label(self) -> str:
        """The label that distinguishes it from the others."""
        return self.kind or PurePosixPath(self.path).name

    def is_meant(self, file: str) -> bool:
        """Return whether `file` is its path, one of its parts, its file's name or its kind, ignoring case."""
        names = {name for part in self.files for name in (part.path, PurePosixPath(part.path).name)}
        return file.lower() in {self.kind.lower(), *(name.lower() for name in names)} - {""}


@dataclass(frozen=True)
class Judged:
    """A choice with its header's content, and how it would run here, or why that is not known."""

    choice: GgufChoice
    settings: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, TensorPlace] = field(default_factory=dict)
    fit: Fit | None = None
    error: HeteGenError | None = None


def gguf_choices(listing: Listing) -> tuple[GgufChoice, ...]:
    """Return the complete models of a repository, smallest first."""
    files = {file.path: file for file in listing.files if is_model(file.path)}
    found: list[GgufChoice] = []
    for path in files:
        try:
            names = split_names(path)
        except HeteGenError:  # an invalid part number: not a model
            continue
        if path == names[0] and files.keys() >= set(names):
            found.append(GgufChoice(path, kind_of(path), tuple(files[name] for name in names)))
    return tuple(sorted(found, key=lambda choice: (choice.nbytes, choice.path)))


def gguf_only(listing: Listing) -> bool:
    """Return whether a repository holds GGUF models and no safetensors weights."""
    return not any(file.path.endswith(".safetensors") for file in listing.files) and bool(gguf_choices(listing))


def wanted_gguf(listing: Listing, file: str) -> GgufChoice | None:
    """Return the choice that `file` names, or the only one; None if the repository's safetensors are meant.

    Raises ModelNotFound if no choice has this name, BadRequest if several match.
    """
    if not file and not gguf_only(listing):
        return None
    choices = gguf_choices(listing)
    meant = [choice for choice in choices if not file or choice.is_meant(file)]
    if len(meant) == 1:
        return meant[0]
    if not meant:
        raise ModelNotFound(
            sentence("{} has no GGUF file {}.", listing.id, file), _there_are(choices), "Check the name."
        )
    example = Reference(listing.id, file=meant[0].kind if not file and meant[0].kind else meant[0].path).name
    raise BadRequest(
        sentence("{} holds {} models in GGUF.", listing.id, len(meant)), _there_are(meant),
        sentence("Name one of them, such as {}.", example),
    )  # fmt: skip


def best_choice(judged: Sequence[Judged]) -> Judged | None:
    """Return the choice to recommend: the largest quantised one that runs well, else the fastest."""
    runs = [one for one in judged if one.fit is not None and one.fit.kind != "no"]
    exact = [one for one in runs if one.choice.kind not in FLOATS] or runs
    well = [one for one in exact if one.fit and one.fit.kind != "slow" and one.fit.tok_s.low >= COMFORTABLE_TOK_S]
    if well:
        return max(well, key=lambda one: one.choice.nbytes)
    return max(exact, key=lambda one: one.fit.tok_s.likely if one.fit else 0.0, default=None)


def _there_are(choices: Sequence[GgufChoice]) -> str:
    if not choices:
        return "It holds none."
    names = joined(", ", [choice.label for choice in choices[:SAID]])
    return sentence("There are {}.", names) if len(choices) <= SAID else sentence("There are {} and others.", names)
