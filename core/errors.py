"""The errors a user can act on: each says what happened, why, and the next step.

Any other exception is a bug and propagates. Texts that name buttons or menus belong to `app.notices.notices`.
"""

from __future__ import annotations


class HeteGenError(Exception):
    """What happened, why, and what to do next, each one sentence (`why` and `next_step` may be empty)."""

    def __init__(self, what: str, why: str = "", next_step: str = "") -> None:
        super().__init__(what, why, next_step)
        self.what = what
        self.why = why
        self.next_step = next_step

    def __str__(self) -> str:
        return " ".join(part for part in (self.what, self.why, self.next_step) if part)


class ModelNotFound(HeteGenError):
    """There is no model at the given path or under the given name on this disk."""


class ModelUnreadable(HeteGenError):
    """The model's files are missing, truncated, corrupt or may not be read."""


class UnsupportedModel(HeteGenError):
    """The files are sound, but models of this kind are not supported."""


class NoChatTemplate(HeteGenError):
    """The tokenizer has no chat template, so turns cannot be told apart."""


class NotEnoughMemory(HeteGenError):
    """There is too little free memory for the request; `device` says where."""

    def __init__(self, what: str, why: str = "", next_step: str = "", device: str = "cpu") -> None:
        super().__init__(what, why, next_step)
        self.device = device


class DeviceLost(HeteGenError):
    """The graphics card stopped answering (driver reset, sleep, unplugged)."""


class PromptTooLong(HeteGenError):
    """The system prompt and the last message alone are longer than the context."""


class BadRequest(HeteGenError):
    """A request or setting is out of range; `what` names it."""


class ModelFailed(HeteGenError):
    """The model's own code raised an error while computing. The conversation is not affected."""


class BrokenOutput(HeteGenError):
    """The model computed NaN or infinity instead of probabilities."""


class NetworkError(HeteGenError):
    """The Hub or a mirror could not be reached or answered wrongly."""


class AccessDenied(HeteGenError):
    """The repository is gated, private, or the token is wrong."""


class KeyRefused(AccessDenied):
    """The server of a remote model requires a different key."""


class DownloadFailed(HeteGenError):
    """A download ended without the file: checksum, length, changed on the server."""


class DiskFull(HeteGenError):
    """There is too little disk space for what is to be written."""


class DocumentUnreadable(HeteGenError):
    """An attached file has no text that can be extracted, or is too large, locked or damaged."""


class DocumentLocked(DocumentUnreadable):
    """An attached file needs a password, or a different one than was given."""


class ToolFailed(HeteGenError):
    """A tool or its server could not be started, does not answer, or answered with an error."""
