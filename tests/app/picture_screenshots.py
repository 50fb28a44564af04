"""States of the window with pictures in a conversation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from PIL import Image, ImageDraw

from core.events import LoadOptions
from tests.app.screenshots import Stage, attach, planned
from tests.app.scripted_engine import answer
from tests.app.waiting import until


def draw_harbour(path: Path, size: tuple[int, int]) -> Path:
    """Draw the sea with the sun above it."""
    width, height = size
    image = Image.new("RGB", size, (176, 208, 232))
    draw = ImageDraw.Draw(image)
    draw.ellipse((width * 0.62, height * 0.12, width * 0.62 + height * 0.3, height * 0.42), fill=(250, 204, 96))
    draw.rectangle((0, height * 0.6, width, height), fill=(38, 92, 132))
    draw.polygon(
        [(width * 0.2, height * 0.6), (width * 0.32, height * 0.2), (width * 0.34, height * 0.6)], fill="white"
    )
    draw.polygon(
        [(width * 0.14, height * 0.62), (width * 0.46, height * 0.62), (width * 0.4, height * 0.72)], fill=(120, 60, 40)
    )
    image.save(path)
    return path


def picture(stage: Stage) -> None:
    """Two pictures with a question that was asked, and one with the next question."""
    stage.show()
    stage.engine.load_events = [replace(planned(), sees=True)]
    stage.app.session.load("Qwen/Qwen3-VL-4B-Instruct", LoadOptions())
    until(lambda: stage.app.session.state.model is not None and stage.app.session.state.model.sees)
    folder = Path(stage.home.name)
    wide, tall = draw_harbour(folder / "Harbour.png", (1600, 1000)), draw_harbour(folder / "Boat.png", (700, 1000))
    attach(stage, [wide, tall])
    stage.engine.replies = [
        answer("Both show a **sailing boat** under a low sun; the second is cut to the boat alone.")
    ]
    stage.ask("What do the two pictures have in common?")
    attach(stage, [wide])


def picture_narrow(stage: Stage) -> None:
    stage.app.window.resize(720, 520)
    picture(stage)


def picture_wordless(stage: Stage) -> None:
    """A picture sent without words."""
    stage.show()
    stage.engine.load_events = [replace(planned(), sees=True)]
    stage.app.session.load("Qwen/Qwen3-VL-4B-Instruct", LoadOptions())
    until(lambda: stage.app.session.state.model is not None and stage.app.session.state.model.sees)
    harbour = draw_harbour(Path(stage.home.name) / "Harbour.png", (1600, 1000))
    attach(stage, [harbour])
    stage.engine.replies = [answer("A **sailing boat** under a low sun.")]
    stage.ask("")
    attach(stage, [harbour])


def picture_opened(stage: Stage) -> None:
    picture(stage)
    stage.app.attachments.open(0)


def picture_unseen(stage: Stage) -> None:
    """A picture for a model that only reads."""
    stage.show()
    stage.app.attachments.add([draw_harbour(Path(stage.home.name) / "Harbour.png", (1600, 1000))])
    until(lambda: bool(stage.app.window.notices.notices))


PICTURE_SCENES: dict[str, Callable[[Stage], None]] = {
    scene.__name__: scene for scene in (picture, picture_narrow, picture_wordless, picture_opened, picture_unseen)
}
