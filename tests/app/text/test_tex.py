import pytest

from app.text.tex import LONGEST, Run, runs


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
        (r"\unknown{x}", r"\unknown{x}"),
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


def test_nesting_and_length_end() -> None:
    assert runs("^{" * 500 + "x" + "}" * 500)
    long = r"\frac{1}{2}" * LONGEST
    assert runs(long) == [Run(long)]
