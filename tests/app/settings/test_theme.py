import pytest
from PySide6.QtGui import QColor, QPalette
from pytestqt.qtbot import QtBot

from app.settings.theme import DARK, LIGHT, TEXT_ON, Colours, Theme, contrast
from app.system import resources


@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
def test_text_on_its_background_is_readable(colours: Colours) -> None:
    poor = [
        (text, back, round(contrast(getattr(colours, text), getattr(colours, back)), 2))
        for text, backs in TEXT_ON
        for back in backs
        if contrast(getattr(colours, text), getattr(colours, back)) < 4.5
    ]
    assert not poor


def test_contrast_is_the_wcag_ratio() -> None:
    assert contrast("#000000", "#FFFFFF") == pytest.approx(21)
    assert contrast("#777777", "#FFFFFF") == pytest.approx(4.48, abs=0.01)


def test_devices_differ_in_more_than_hue() -> None:
    for colours in (LIGHT, DARK):
        names = ("resident", "streamed", "cpu")
        assert len({getattr(colours, name) for name in names}) == len(names)


def test_choosing_a_scheme_changes_palette_and_says_so(qtbot: QtBot, qapp: object) -> None:
    theme = Theme("light")
    with qtbot.waitSignal(theme.changed):
        theme.choose("dark", 100)
    assert theme.dark
    assert qapp.palette().color(QPalette.ColorRole.Window) == QColor(DARK.window)  # type: ignore[attr-defined]
    theme.choose("light", 100)


def test_type_scales_with_the_setting(qapp: object) -> None:
    theme = Theme("light")
    small = theme.font("message").pointSizeF()
    theme.choose("light", 160)
    assert theme.font("message").pointSizeF() == pytest.approx(small * 1.6)
    theme.choose("light", 999)
    assert theme.font("message").pointSizeF() == pytest.approx(small * 1.6)
    theme.choose("light", 100)


@pytest.mark.parametrize("name", resources.ICONS)
def test_every_icon_draws(name: str, qapp: object) -> None:
    image = Theme("light").pixmap(name, "text", 20, 1.0).toImage()
    assert any(image.pixelColor(x, y).alpha() for x in range(20) for y in range(20))
    assert 'viewBox="0 0 20 20"' in resources.icon_source(name)
    assert 'stroke-width="1.5"' in resources.icon_source(name)


def test_every_icon_file_is_named() -> None:
    files = {path.stem for path in (resources.assets() / "icons").glob("*.svg")}
    assert files == set(resources.ICONS)
