import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.text.tex import LONGEST, Run, runs

PIECES = (
    *"{}[]^_&|,. x12A=\\\n", r"\frac", r"\sqrt", r"\binom", r"\overset", r"\hat", r"\overline", r"\text", r"\not",
    r"\left", r"\right", r"\pi", r"\ce", r"\begin{cases}", r"\begin{pmatrix}", r"\end{pmatrix}", r"\tag", r"\pmod",
    r"\xrightarrow", r"\circ", r"\prime", "\ue000", "\ue002",
)  # fmt: skip


@pytest.mark.parametrize(
    ("tex", "text"),
    [
        (r"E = mc^2", "E = mc²"),
        (r"\frac{a+b}{2}", "(a+b)/2"),
        (r"\sqrt{x^2 + y_1}", "√(x² + y₁)"),
        (r"\sum_{i=1}^{n} x_i", "∑ᵢ₌₁ⁿ xᵢ"),
        (r"\alpha \le \beta", "α ≤ β"),
        (r"x \in \mathbb{R}", "x ∈ ℝ"),
        (r"\left( \frac{1}{\sqrt{2}} \right)", "( 1/√2 )"),
        (r"e^{-\frac{x}{2}}", "e-x/2"),
        (r"\text{speed} = 3", "speed = 3"),
        (r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", "(1 2; 3 4)"),
        (r"\begin{matrix} 1 & 2 \\ 3 & 4 \end{matrix}", "1 2\n3 4"),
        (r"\begin{Bmatrix} a \end{Bmatrix} \le \|v\|", "{a} ≤ ‖v‖"),
        (r"\begin{array}{c|c} a & b \\[4pt] c & d \end{array}", "a b\nc d"),
        (r"50\% of \$5 \& a\_b \#1", "50% of $5 & a_b #1"),
        (r"\hat{\theta} = \vec{v}", "θ\u0302 = v\u20d7"),
        (r"\unknown{x}{y}", r"\unknown{x}{y}"),
        (r"\frac12 + \frac\pi 2 + \sqrt2", "1/2 + π/2 + √2"),
        (r"\sqrt[n]{x} + \sqrt[10]{2} + \sqrt[3]{8}", "ⁿ√x + ¹⁰√2 + ∛8"),
        (r"\binom{n}{k} \equiv 1 \pmod{p}", "C(n, k) ≡ 1 (mod p)"),
        (r"\overline{AB} \perp \overrightarrow{CD}", "A\u0305B\u0305 ⊥ C\u20d7D\u20d7"),
        (r"\underbrace{1 + \cdots + n}_{n \text{ terms}}", "1 + ⋯ + nn terms"),
        (r"\operatorname*{arg\,max}_{i,\,j}", "arg maxi, j"),
        (r"\bigl( x \bigr) \Bigg| \middle| \left. y \right|_0", "( x ) | | y |₀"),
        (r"x \not\in A \not= B", "x ∉ A ≠ B"),
        (r"90^\circ, 45^{\circ}, f^{\prime\prime}", "90°, 45°, f′′"),
        (r"|x| = \begin{cases} x & \text{if } x \ge 0 \\ -x \end{cases}", "|x| = { x if x ≥ 0\n-x"),
        (r"\ce{2H2 + O2 -> 2H2O}", "2H₂ + O₂ → 2H₂O"),
        (r"A \xrightarrow{f} B \xleftarrow{} C", "A —f→ B ← C"),
        (r"\stackrel{!}{=} \underset{x}{\min}", "=! minx"),
        (r"1{,}000 \textcolor{red}{x}\hspace{1cm}\tag{2}", "1,000 x\u2003(2)"),
        (r"\mathbb{E}[\mathbb{1}_{x}]", "𝔼[𝟙ₓ]"),
    ],
)
def test_formulas_read_as_text(tex: str, text: str) -> None:
    assert "".join(run.text for run in runs(tex)) == text


def test_indices_without_characters_of_their_own_are_set_lower_or_higher() -> None:
    lower, higher = Run("gpu", "lower"), Run("-x/2", "higher")
    assert runs(r"V_{gpu} + e^{-\frac{x}{2}}") == [Run("V"), lower, Run(" + e"), higher]
    assert runs(r"\int_0^\infty x") == [Run("∫₀"), Run("∞", "higher"), Run(" x")]
    assert runs(r"\frac{V_{gpu}}{2}") == [Run("V"), lower, Run("/2")]
    assert runs("x\ue002y\ue000z") == [Run("xyz")], "a model cannot write the marks itself"


@given(st.lists(st.sampled_from(PIECES), max_size=40).map("".join))
def test_no_formula_is_too_wild(tex: str) -> None:
    assert all(run.text and not {"\ue000", "\ue001", "\ue002"} & {*run.text} for run in runs(tex))


def test_nesting_and_length_end() -> None:
    assert runs("^{" * 500 + "x" + "}" * 500)
    long = r"\frac{1}{2}" * LONGEST
    assert runs(long) == [Run(long)]
