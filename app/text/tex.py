"""Converts TeX to readable text: Greek letters, operators, fractions, roots, powers and indices in Unicode.

Not a typesetter: commands without a Unicode character stay as words, and nothing is lost. Powers and indices without
Unicode characters become raised or lowered runs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from app.text.tex_signs import ACCENTS, BLACKBOARD, DOWN, FUNCTIONS, GREEK, NEGATED, SIGNS, UP

_GROUP = r"\{([^{}]*)\}"
_FIRST = r"(\s*\{[^{}]*\}|\s*[\d\u0080-\udfff]|\s+[A-Za-z])"
"""The first argument of a command: in braces, or one character, which must not go on with the command's name."""
_NEXT = r"(\s*\{[^{}]*\}|\s*[A-Za-z\d=<>\u0080-\udfff])"
_FRACTION = re.compile(rf"\\[cdt]?frac{_FIRST}{_NEXT}")
_BINOMIAL = re.compile(rf"\\[dt]?binom{_FIRST}{_NEXT}")
_ROOT = re.compile(rf"\\sqrt\s*(?:\[([^\[\]]*)\])?{_FIRST}")
_OVER = re.compile(rf"\\(overset|stackrel|underset){_FIRST}{_NEXT}")
_LONG_ARROW = re.compile(rf"\\x(left|right)arrow\s*(?:\[[^\[\]]*\])?\s*{_GROUP}")
_MODULO = re.compile(rf"\\pmod{_FIRST}")
_TAG = re.compile(rf"\\tag\*?\s*{_GROUP}")
_STYLE = re.compile(
    r"\\(?:text(?:bf|it|rm|tt|sf|normal)?|math(?:rm|bf|it|cal|scr|frak|sf|tt|op|rel|bin|ord)|operatorname|boxed|fbox|"
    rf"boldsymbol|bm|pmb|[mh]box|underbrace|overbrace)\*?\s*{_GROUP}"
)
_ACCENT = re.compile(rf"\\({'|'.join(ACCENTS)})(\s*\{{[^{{}}\\]*\}}|\s*[\d\u0080-\udfff]|\s+[A-Za-z])")
_MATRIX = re.compile(r"\\begin\{([pbBvV])(?:small)?matrix\}(.*?)\\end\{\1(?:small)?matrix\}", re.DOTALL)
_ROW = re.compile(r"\\\\(?:\[-?[\d.]+[a-z]{2}\])?")
_FENCES = {"p": ("(", ")"), "b": ("[", "]"), "B": (r"\{", r"\}"), "v": ("|", "|"), "V": ("‖", "‖")}
_BOARD = re.compile(r"\\mathbb\s*\{([A-Z1])\}")
_SCRIPT = re.compile(rf"(?<!\\)([\^_])(?:{_GROUP}|(\\?[A-Za-z0-9+\-*′]|[^\x00-\x7f\ue000-\ue002]))")
_CHEMISTRY = re.compile(r"\\ce\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
_DEGREES = re.compile(r"\^\s*(?:\\circ(?![A-Za-z])|\{\s*\\circ\s*\})")
_PRIMES = re.compile(r"\^(?:(′)|\{(′+)\})")
_NOT = re.compile(r"\\not\s*(\S)")
_SIZE = re.compile(
    r"\\(?:left|right)\s*\.|\\(?:left|right|middle|[bB]igg?[lrm]?|(?:display|text|script)style|(?:no)?limits|rm|bf|it|cal|"
    r"nonumber|notag|allowbreak|hfill|hline|centering)(?![A-Za-z])\s?"
)
"""Commands about sizes and places, which have no meaning here."""
_UNSEEN = re.compile(r"\\(?:[hv]space|[hv]?phantom|label|(?:text)?color|colorbox)\*?\s*\{[^{}]*\}")
_ENVIRONMENT = re.compile(r"\\begin\{array\}\s*\{[clr|]*\}|\\begin\{[a-zA-Z*]+\}|\\end\{[a-zA-Z*]+\}")
_BRACES = re.compile(r"(?<![\\A-Za-z}\]^_*])\{([^{}]*)\}")
"""Braces that only group: those of an unknown command stay with it."""
_SPACE = re.compile(r"(?<!\\)\\[,;:! ]")
_ESCAPE = re.compile(r"\\(?:(\\)(?:\[-?[\d.]+[a-z]{2}\])?|([,;:! ])|([{}%$&#_|]))")
_COMMAND = re.compile(r"\\([A-Za-z]+)")
LONGEST, ROUNDS = 2000, 12
_LOWER, _HIGHER, _END = "\ue000", "\ue001", "\ue002"
"""Marks around raised and lowered text: private-use characters, which no text uses with a meaning."""
_MARKS = re.compile(f"([{_LOWER}{_HIGHER}{_END}])")

Level = Literal["line", "lower", "higher"]


@dataclass(frozen=True)
class Run:
    """A piece of a formula and its vertical position."""

    text: str
    level: Level = "line"


def runs(tex: str) -> list[Run]:
    """Convert a formula to runs. Formulas longer than LONGEST stay as they are."""
    if len(tex) > LONGEST:
        return [Run(tex)]
    pieces, levels = [], list[Level](["line"])
    for part in _MARKS.split(_marked(_MARKS.sub("", tex))):
        match part:
            case "":
                pass
            case "\ue000" | "\ue001":
                levels.append("lower" if part == _LOWER else "higher")
            case "\ue002":
                levels.pop()
            case _:
                pieces.append(Run(part, levels[-1]))
    return pieces


def _marked(tex: str) -> str:
    text = _CHEMISTRY.sub(_chemistry, tex.strip())
    text = _UNSEEN.sub("", _SIZE.sub("", text))
    text = _ENVIRONMENT.sub("", _MATRIX.sub(_fenced, text).replace(r"\begin{cases}", r"\{ "))
    text = _BOARD.sub(lambda found: BLACKBOARD.get(found[1], found[1]), text)
    text = _COMMAND.sub(_sign, _DEGREES.sub("°", text))
    text = _PRIMES.sub(lambda found: found[1] or found[2], _NOT.sub(_negated, text))
    for _ in range(ROUNDS):
        before = text
        text = _inside_out(text)
        if text == before:
            break
    # One pass from the left: in `\\ x`, the second backslash does not begin an escaped space.
    text = _ESCAPE.sub(_escaped, re.sub(r"(?<!\\)&", " ", text))
    return re.sub(r"[ \t]*\n[ \t]*", "\n", re.sub(r"[ \t]{2,}", " ", text)).strip()


def _inside_out(text: str) -> str:
    """Convert the commands whose arguments are converted already."""
    text = _STYLE.sub(r"\1", text)
    text = _ACCENT.sub(_accented, text)
    text = _SCRIPT.sub(_script, text)
    text = _ROOT.sub(_root, text)
    text = _FRACTION.sub(lambda found: f"{_wrapped(found[1])}/{_wrapped(found[2])}", text)
    text = _BINOMIAL.sub(lambda found: f"C({_bare(found[1])}, {_bare(found[2])})", text)
    text = _OVER.sub(_over, text)
    text = _LONG_ARROW.sub(_long_arrow, text)
    text = _MODULO.sub(lambda found: f"(mod {_bare(found[1])})", text)
    text = _TAG.sub("\u2003(\\1)", text)
    return _BRACES.sub(r"\1", text)


def _chemistry(found: re.Match[str]) -> str:
    """Return a formula of chemistry as TeX: its numbers behind letters are indices."""
    text = found[1].replace("<=>", r"\rightleftharpoons ").replace("->", r"\to ")
    return r"\text{" + re.sub(r"(?<=[A-Za-z)])(\d+)", r"_{\1}", text) + "}"


def _negated(found: re.Match[str]) -> str:
    return NEGATED.get(found[1], found[1] + "\u0338")


def _accented(found: re.Match[str]) -> str:
    mark = ACCENTS[found[1]]
    return "".join(each if each in f" {_LOWER}{_HIGHER}{_END}" else each + mark for each in _bare(found[2]))


def _over(found: re.Match[str]) -> str:
    """Return a sign with what stands above or below it, raised or lowered behind it."""
    return f"{_bare(found[3])}{_LOWER if found[1] == 'underset' else _HIGHER}{_bare(found[2])}{_END}"


def _long_arrow(found: re.Match[str]) -> str:
    above, left = found[2].strip(), found[1] == "left"
    if not above:
        return "←" if left else "→"
    return f"←{above}—" if left else f"—{above}→"


def _escaped(found: re.Match[str]) -> str:
    """Return the character that an escape stands for: a new row, a space, or a character with a meaning in TeX."""
    return "\n" if found[1] else " " if found[2] else found[3].replace("|", "‖")


def _fenced(found: re.Match[str]) -> str:
    """Return a matrix on one line, its rows separated by semicolons."""
    left, right = _FENCES[found[1]]
    rows = [row.strip() for row in _ROW.split(found[2])]
    return f"{left}{'; '.join(filter(None, rows))}{right}"


def _sign(found: re.Match[str]) -> str:
    name, whole = found[1], found[0]
    return GREEK.get(name) or SIGNS.get(name) or (name if name in FUNCTIONS else whole)


def _script(found: re.Match[str]) -> str:
    inner = _SPACE.sub(" ", found[2] if found[2] is not None else found[3])
    table = UP if found[1] == "^" else DOWN
    if inner and all(character in table for character in inner):
        return "".join(table[character] for character in inner)
    # Resolve commands inside first; the remaining braces mark the script for the next round.
    if "\\" in inner:
        return found[0]
    return f"{_HIGHER if found[1] == '^' else _LOWER}{inner}{_END}"


def _root(found: re.Match[str]) -> str:
    degree = (found[1] or "").strip()
    sign = {"": "√", "2": "√", "3": "∛", "4": "∜"}.get(degree)
    raised = "".join(UP[each] for each in degree) if all(each in UP for each in degree) else f"{_HIGHER}{degree}{_END}"
    return (sign or f"{raised}√") + _wrapped(found[2])


def _bare(argument: str) -> str:
    """Return an argument without its braces."""
    return argument.strip().removeprefix("{").removesuffix("}").strip()


def _wrapped(argument: str) -> str:
    bare = _bare(argument)
    return bare if re.fullmatch(r"[√∛∜]?[\w.′⁰-⁹₀-₉\u0300-\u036f\ue000-\ue002]+", bare) else f"({bare})"
