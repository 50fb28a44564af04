import inspect

import pytest

from app.notices import notices
from core import errors

KINDS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.HeteGenError)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_has_words_and_a_next_step(kind: type[errors.HeteGenError]) -> None:
    notice = notices.for_error(kind("It broke.", "The disk is full.", "Make room."))
    assert notice.title
    assert notice.sentence == "It broke. The disk is full. Make room."
    assert notice.action
    assert notice.button


def test_every_kind_of_error_has_words_of_its_own() -> None:
    assert set(notices.WORDS) == set(KINDS) - {errors.HeteGenError}


def test_what_could_not_be_imported_is_named() -> None:
    notice = notices.imported(2, ["Sky", "#7"])
    assert (notice.tone, notice.sentence) == ("warning", "2 conversations. Not readable: “Sky”, “#7”.")
    assert notices.imported(1, [str(n) for n in range(99)]).sentence.endswith("“4”….")
    assert notices.imported(1).tone == "info"


def test_kinds_have_titles_of_their_own() -> None:
    named = [kind for kind in KINDS if kind is not errors.HeteGenError]
    assert len({notices.for_error(kind("x")).title for kind in named}) == len(named)


def test_a_kind_made_elsewhere_takes_the_words_of_its_parent() -> None:
    class StoreFull(errors.DiskFull):
        pass

    assert notices.for_error(StoreFull("x")).title == notices.for_error(errors.DiskFull("x")).title


def test_one_and_many_turns_left_out() -> None:
    assert notices.left_out(1).startswith("The oldest message was")
    assert notices.left_out(3).startswith("The 3 oldest messages were")
