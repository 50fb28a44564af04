import pytest

from app.maths import LONGEST, readable


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
        (r"e^{-\frac{x}{2}}", "e^(-x/2)"),
        (r"\text{speed} = 3", "speed = 3"),
        (r"\unknown{x}", r"\unknown{x}"),
    ],
)
def test_formulas_read_as_text(tex: str, text: str) -> None:
    assert readable(tex) == text


def test_nesting_and_length_end() -> None:
    assert readable("^{" * 500 + "x" + "}" * 500)
    long = r"\frac{1}{2}" * LONGEST
    assert readable(long) == long
