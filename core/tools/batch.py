"""Hands arguments to Windows' batch files (npx.cmd and the like) unchanged.

Windows runs them by cmd.exe, which takes & | < > ^ % in arguments as its own, and which writes quotes differently from
programs.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from core.errors import ToolFailed

SUFFIXES = (".cmd", ".bat")
PLAIN = re.compile(r"[\w#$*+\-./:?@\\]*[\w#$*+\-./:?@]")
"""Arguments that are neither cmd.exe's nor a batch file's concern."""
BEFORE_QUOTE = re.compile(r'(\\*)("|$)')
NOTHING = "%cd:~,%"
"""Expands to no characters of the current folder's name, and so divides a percent sign from what follows."""


def is_batch(program: str) -> bool:
    """Return whether a program is a batch file."""
    return program.rstrip(". ").lower().endswith(SUFFIXES)


def batch_line(program: str, args: Sequence[str]) -> str:
    """Return the line for cmd.exe that runs a batch file with these arguments. Raises ToolFailed for line breaks, which
    would end it."""
    if any(set(arg) & set("\r\n\0") for arg in args):
        raise ToolFailed(
            "An argument contains a line break.",
            "Windows' command files cannot be given one.",
            "Write the argument in one line.",
        )
    return " ".join([f'"{_literal(program)}"', *(_quoted(arg) for arg in args)])


def _quoted(arg: str) -> str:
    """Quote an argument, twice: for cmd.exe, and for the program that the batch file hands it to."""
    if PLAIN.fullmatch(arg):
        return arg
    # A quote is doubled, which both understand; programs also take a backslash before one for an escape.
    inside = BEFORE_QUOTE.sub(lambda found: found[1] * 2 + found[2] * 2, arg)
    return f'"{_literal(inside)}"'


def _literal(text: str) -> str:
    return text.replace("%", f"%{NOTHING}")
