import pytest

from app.settings.theme import LIGHT
from app.text.highlight import Highlighter

PYTHON = '''def f(x: int) -> str:
    """A text
    over lines."""
    return f"{x!r}"  # done
'''


def colours(language: str, code: str) -> list[tuple[str, str]]:
    highlighter = Highlighter(language)
    return [run for line in code.splitlines(keepends=True) for run in highlighter.line(line)]


def test_keywords_strings_and_comments_have_their_colours() -> None:
    runs = dict(colours("python", PYTHON))
    assert runs["def"] == "cpu"
    assert runs["# done"] == "muted"


def test_a_string_over_lines_stays_a_string() -> None:
    assert ('    over lines."""', "ok") in colours("python", PYTHON)


@pytest.mark.parametrize(
    "language", ["python", "c", "html", "json", "bash", "rust", "sql", "yaml", "diff", "", "no-such"]
)
def test_nothing_is_lost_or_added(language: str) -> None:
    code = (
        PYTHON
        + '<b a="1">&amp;</b>\n{"k": [1, 2.5e3, null]} $(x) /* open\n\t\u00e4\u4e16\U0001f600 \\ \n'
        + "x" * 900
        + "\n"
    )
    runs = colours(language, code)
    assert "".join(text for text, _ in runs) == code
    assert all(hasattr(LIGHT, colour) for _, colour in runs)
