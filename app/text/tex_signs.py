"""TeX's commands that stand for a character or for a word."""

from __future__ import annotations

GREEK = {
    "alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ", "epsilon": "ϵ", "varepsilon": "ε", "zeta": "ζ", "eta": "η",
    "theta": "θ", "vartheta": "ϑ", "iota": "ι", "kappa": "κ", "lambda": "λ", "mu": "μ", "nu": "ν", "xi": "ξ",
    "pi": "π", "rho": "ρ", "sigma": "σ", "tau": "τ", "upsilon": "υ", "phi": "ϕ", "varphi": "φ", "chi": "χ",
    "psi": "ψ", "omega": "ω", "Gamma": "Γ", "Delta": "Δ", "Theta": "Θ", "Lambda": "Λ", "Xi": "Ξ", "Pi": "Π",
    "Sigma": "Σ", "Upsilon": "Υ", "Phi": "Φ", "Psi": "Ψ", "Omega": "Ω",
}  # fmt: skip
SIGNS = {
    "times": "×", "cdot": "·", "div": "÷", "pm": "±", "mp": "∓", "le": "≤", "leq": "≤", "ge": "≥", "geq": "≥",
    "ne": "≠", "neq": "≠", "approx": "≈", "equiv": "≡", "sim": "∼", "propto": "∝", "infty": "∞", "partial": "∂",
    "nabla": "∇", "sum": "∑", "prod": "∏", "int": "∫", "oint": "∮", "in": "∈", "notin": "∉", "subset": "⊂",
    "subseteq": "⊆", "supset": "⊃", "cup": "∪", "cap": "∩", "emptyset": "∅", "forall": "∀", "exists": "∃",
    "neg": "¬", "land": "∧", "lor": "∨", "to": "→", "rightarrow": "→", "leftarrow": "←", "Rightarrow": "⇒",
    "Leftarrow": "⇐", "Leftrightarrow": "⇔", "iff": "⇔", "implies": "⇒", "mapsto": "↦", "ldots": "…", "cdots": "⋯",
    "dots": "…", "angle": "∠", "degree": "°", "circ": "∘", "star": "⋆", "ast": "∗", "perp": "⊥", "parallel": "∥",
    "mid": "|", "langle": "⟨", "rangle": "⟩", "lfloor": "⌊", "rfloor": "⌋", "lceil": "⌈", "rceil": "⌉", "hbar": "ℏ",
    "ell": "ℓ", "Re": "ℜ", "Im": "ℑ", "aleph": "ℵ", "oplus": "⊕", "otimes": "⊗", "ll": "≪", "gg": "≫", "quad": "\u2003",
    "qquad": "\u2003\u2003", "prime": "′", "therefore": "∴", "because": "∵", "setminus": "∖", "top": "⊤",
    "wedge": "∧", "vee": "∨", "simeq": "≃", "cong": "≅", "gets": "←", "leftrightarrow": "↔", "uparrow": "↑",
    "downarrow": "↓", "longrightarrow": "⟶", "rightleftharpoons": "⇌", "varnothing": "∅", "supseteq": "⊇",
    "leqslant": "⩽", "geqslant": "⩾", "lesssim": "≲", "gtrsim": "≳", "prec": "≺", "succ": "≻", "preceq": "⪯",
    "succeq": "⪰", "doteq": "≐", "triangleq": "≜", "coloneqq": "≔", "asymp": "≍", "nexists": "∄", "ni": "∋",
    "subsetneq": "⊊", "nsubseteq": "⊈", "nmid": "∤", "lnot": "¬", "models": "⊨", "vdash": "⊢", "bot": "⊥",
    "longleftarrow": "⟵", "Longrightarrow": "⟹", "Longleftarrow": "⟸", "Longleftrightarrow": "⟺", "longmapsto": "⟼",
    "longleftrightarrow": "⟷", "hookrightarrow": "↪", "nearrow": "↗", "searrow": "↘", "Uparrow": "⇑", "Downarrow": "⇓",
    "iint": "∬", "iiint": "∭", "coprod": "∐", "bigcup": "⋃", "bigcap": "⋂", "bigoplus": "⨁", "bigotimes": "⨂",
    "vdots": "⋮", "ddots": "⋱", "square": "□", "Box": "□", "blacksquare": "■", "qed": "■", "checkmark": "✓",
    "dagger": "†", "colon": ":", "lbrace": r"\{", "rbrace": r"\}", "bmod": "mod",
    "odot": "⊙", "ominus": "⊖", "diamond": "⋄",
    "triangleright": "▷", "imath": "ı", "jmath": "ȷ", "wp": "℘", "complement": "∁", "varpi": "ϖ", "varrho": "ϱ",
    "bullet": "•", "triangle": "△", "lvert": "|", "rvert": "|", "vert": "|", "lVert": "‖", "rVert": "‖", "Vert": "‖",
}  # fmt: skip
FUNCTIONS = {
    "sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "coth", "log", "ln",
    "lg", "exp", "lim", "limsup", "liminf", "max", "min", "sup", "inf", "arg", "argmax", "argmin", "det", "dim", "ker",
    "deg", "gcd", "lcm", "hom", "mod", "sgn", "sign", "rank", "tr", "diag", "softmax", "Pr",
}  # fmt: skip
"""Names of functions, which stand as words."""
NEGATED = {
    "∈": "∉",
    "=": "≠",
    "⊂": "⊄",
    "⊆": "⊈",
    "≡": "≢",
    "∃": "∄",
    "∣": "∤",
    "|": "∤",
    "∼": "≁",
    "≈": "≉",
    "<": "≮",
    ">": "≯",
}
"""Signs behind `\\not`."""
BLACKBOARD = dict(zip("CHNPQRZEFKSTW1", "ℂℍℕℙℚℝℤ𝔼𝔽𝕂𝕊𝕋𝕎𝟙", strict=True))
UP = dict(zip("0123456789+-=()niTabcdefghjklmoprstuvwxyz", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿⁱᵀᵃᵇᶜᵈᵉᶠᵍʰʲᵏˡᵐᵒᵖʳˢᵗᵘᵛʷˣʸᶻ", strict=True))
DOWN = dict(zip("0123456789+-=()aeijkmnoprstuvx", "₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎ₐₑᵢⱼₖₘₙₒₚᵣₛₜᵤᵥₓ", strict=True))
ACCENTS = {
    "vec": "\u20d7", "hat": "\u0302", "bar": "\u0304", "tilde": "\u0303", "dot": "\u0307", "ddot": "\u0308",
    "overline": "\u0305", "underline": "\u0332", "widehat": "\u0302", "widetilde": "\u0303", "overrightarrow": "\u20d7",
    "cancel": "\u0336",
}  # fmt: skip
"""Accents, as combining characters."""
