"""Converts TeX to readable text: Greek letters, operators, fractions, roots, powers and indices in Unicode.

Not a typesetter: commands without a Unicode character stay as words, and nothing is lost. Powers and indices without
Unicode characters become raised or lowered runs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

_GREEK = {
    "alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ", "epsilon": "ϵ", "varepsilon": "ε", "zeta": "ζ", "eta": "η",
    "theta": "θ", "vartheta": "ϑ", "iota": "ι", "kappa": "κ", "lambda": "λ", "mu": "μ", "nu": "ν", "xi": "ξ",
    "pi": "π", "rho": "ρ", "sigma": "σ", "tau": "τ", "upsilon": "υ", "phi": "ϕ", "varphi": "φ", "chi": "χ",
    "psi": "ψ", "omega": "ω", "Gamma": "Γ", "Delta": "Δ", "Theta": "Θ", "Lambda": "Λ", "Xi": "Ξ", "Pi": "Π",
    "Sigma": "Σ", "Upsilon": "Υ", "Phi": "Φ", "Psi": "Ψ", "Omega": "Ω",
}  # fmt: skip
_SIGNS = {
    "times": "×", "cdot": "·", "div": "÷", "pm": "±", "mp": "∓", "le": "≤", "leq": "≤", "ge": "≥", "geq": "≥",
    "ne": "≠", "neq": "≠", "approx": "≈", "equiv": "≡", "sim": "∼", "propto": "∝", "infty": "∞", "partial": "∂",
    "nabla": "∇", "sum": "∑", "prod": "∏", "int": "∫", "oint": "∮", "in": "∈", "notin": "∉", "subset": "⊂",
    "subseteq": "⊆", "supset": "⊃", "cup": "∪", "cap": "∩", "emptyset": "∅", "forall": "∀", "exists": "∃",
    "neg": "¬", "land": "∧", "lor": "∨", "to": "→", "rightarrow": "→", "leftarrow": "←", "Rightarrow": "⇒",
    "Leftarrow": "⇐", "Leftrightarrow": "⇔", "iff": "⇔", "implies": "⇒", "mapsto": "↦", "ldots": "…", "cdots": "⋯",
    "dots": "…", "angle": "∠", "degree": "°", "circ": "∘", "star": "⋆", "ast": "∗", "perp": "⊥", "parallel": "∥",
    "mid": "|", "langle": "⟨", "rangle": "⟩", "lfloor": "⌊", "rfloor": "⌋", "lceil": "⌈", "rceil": "⌉", "hbar": "ℏ",
    "ell": "ℓ", "Re": "ℜ", "Im": "ℑ", "aleph": "ℵ", "oplus": "⊕", "otimes": "⊗", "ll": "≪", "gg": "≫", "quad": "  ",
    "qquad": "    ", "prime": "′", "therefore": "∴", "because": "∵", "setminus": "∖", "top": "⊤",
    "wedge": "∧", "vee": "∨", "simeq": "≃", "cong": "≅", "gets": "←", "leftrightarrow": "↔", "uparrow": "↑",
    "downarrow": "↓", "longrightarrow": "⟶", "rightleftharpoons": "⇌", "varnothing": "∅", "supseteq": "⊇",
    "bullet": "•", "triangle": "△", "lvert": "|", "rvert": "|", "vert": "|", "lVert": "‖", "rVert": "‖", "Vert": "‖",
}  # fmt: skip
_BLACKBOARD = dict(zip("CHNPQRZ", "ℂℍℕℙℚℝℤ", strict=True))
_UP = dict(zip("0123456789+-=()niTabcdefghjklmoprstuvwxyz", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿⁱᵀᵃᵇᶜᵈᵉᶠᵍʰʲᵏˡᵐᵒᵖʳˢᵗᵘᵛʷˣʸᶻ", strict=True))
_DOWN = dict(zip("0123456789+-=()aeijkmnoprstuvx", "₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎ₐₑᵢⱼₖₘₙₒₚᵣₛₜᵤᵥₓ", strict=True))
_GROUP = r"\{([^{}]*)\}"
_FRACTION = re.compile(rf"\\[cdt]?frac\s*{_GROUP}\s*{_GROUP}")
_ROOT = re.compile(rf"\\sqrt\s*(?:\[([^\[\]]*)\])?\s*{_GROUP}")
_STYLE = re.compile(
    rf"\\(?:text|textbf|textit|mathrm|mathbf|mathit|mathcal|operatorname|boxed|mathsf|boldsymbol|bm)\s*{_GROUP}"
)
_ACCENTS = {"vec": "\u20d7", "hat": "\u0302", "bar": "\u0304", "tilde": "\u0303", "dot": "\u0307", "ddot": "\u0308"}
"""Accents over one character, as combining characters."""
_ACCENT = re.compile(rf"\\({'|'.join(_ACCENTS)})\s*\{{(\w)\}}")
_MATRIX = re.compile(r"\\begin\{([pbBvV])(?:small)?matrix\}(.*?)\\end\{\1(?:small)?matrix\}", re.DOTALL)
_ROW = re.compile(r"\\\\(?:\[-?[\d.]+[a-z]{2}\])?")
_FENCES = {"p": ("(", ")"), "b": ("[", "]"), "B": (r"\{", r"\}"), "v": ("|", "|"), "V": ("‖", "‖")}
_BOARD = re.compile(r"\\mathbb\s*\{([A-Z])\}")
_SCRIPT = re.compile(rf"(?<!\\)([\^_])(?:{_GROUP}|(\\?[A-Za-z0-9+\-*′]|[^\x00-\x7f\ue000-\ue002]))")
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
    text = re.sub(r"\\(?:left|right|displaystyle|limits|big|Big|bigg|Bigg)(?![A-Za-z])\s?", "", tex.strip())
    text = _MATRIX.sub(_fenced, text)
    text = re.sub(r"\\begin\{array\}\s*\{[clr|]*\}|\\begin\{[a-zA-Z*]+\}|\\end\{[a-zA-Z*]+\}", "", text)
    text = _BOARD.sub(lambda found: _BLACKBOARD.get(found[1], found[1]), text)
    text = _COMMAND.sub(_sign, text)
    for _ in range(ROUNDS):
        before = text
        text = _STYLE.sub(r"\1", text)
        text = _ACCENT.sub(lambda found: found[2] + _ACCENTS[found[1]], text)
        text = _SCRIPT.sub(_script, text)
        text = _ROOT.sub(_root, text)
        text = _FRACTION.sub(lambda found: f"{_wrapped(found[1])}/{_wrapped(found[2])}", text)
        if text == before:
            break
    # One pass from the left: in `\\ x`, the second backslash does not begin an escaped space.
    text = _ESCAPE.sub(_escaped, re.sub(r"(?<!\\)&", " ", text))
    return re.sub(r"[ \t]*\n[ \t]*", "\n", re.sub(r"[ \t]{2,}", " ", text)).strip()


def _escaped(found: re.Match[str]) -> str:
    """Return the character that an escape stands for: a new row, a space, or a character with a meaning in TeX."""
    return "\n" if found[1] else " " if found[2] else found[3].replace("|", "‖")


def _fenced(found: re.Match[str]) -> str:
    """Return a matrix on one line, its rows separated by semicolons."""
    left, right = _FENCES[found[1]]
    rows = [row.strip() for row in _ROW.split(found[2])]
    return f"{left}{'; '.join(filter(None, rows))}{right}"


def _sign(found: re.Match[str]) -> str:
    name = found[1]
    return _GREEK.get(name) or _SIGNS.get(name) or _word(name, found[0])


def _word(name: str, whole: str) -> str:
    functions = {"sin", "cos", "tan", "log", "ln", "exp", "lim", "max", "min", "det", "gcd", "arg", "mod", "softmax"}
    return name if name in functions else whole


def _script(found: re.Match[str]) -> str:
    inner = found[2] if found[2] is not None else found[3]
    table = _UP if found[1] == "^" else _DOWN
    if inner and all(character in table for character in inner):
        return "".join(table[character] for character in inner)
    # Resolve commands inside first; the remaining braces mark the script for the next round.
    if "\\" in inner:
        return found[0]
    return f"{_HIGHER if found[1] == '^' else _LOWER}{inner}{_END}"


def _root(found: re.Match[str]) -> str:
    degree = {"3": "∛", "4": "∜"}.get(found[1] or "", "√")
    return degree + _wrapped(found[2])


def _wrapped(text: str) -> str:
    bare = text.strip()
    return bare if re.fullmatch(r"[√∛∜]?[\w.′⁰-⁹₀-₉\ue000-\ue002]+", bare) else f"({bare})"
