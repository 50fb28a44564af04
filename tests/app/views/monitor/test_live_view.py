from __future__ import annotations

import itertools
import threading
from dataclasses import replace

import pytest
from PySide6.QtCore import QPoint, QPointF, Qt
from PySide6.QtGui import QFontMetrics, QImage, QPainter
from PySide6.QtWidgets import QApplication, QComboBox, QLabel, QPushButton, QSlider, QWidget
from pytestqt.qtbot import QtBot

from app.engine.app_state import Phase
from app.monitor.bottleneck import Explanation
from app.monitor.live_records import DeviceMap, Outlook, Split, Wish
from app.monitor.telemetry import MachineProbe, Sample
from app.monitor.telemetry_nvml import GpuSample
from app.settings.theme import Theme
from app.views.monitor.gauges import Part, ShareBar, SpeedLine
from app.views.monitor.live_view import LiveView, Telemetry, machine_words
from core.events import ExpertShares, Stats
from core.spec import MIN_CONTEXT, BytesPerToken, Prediction, Times
from core.units import GIB
from tests.app.find import find

CARD = DeviceMap("Card", "gpu", 8 * GIB, int(4e9), int(5e8), int(2e8), int(1e8), GIB, 0)
RAM = DeviceMap("Memory (RAM)", "cpu", 32 * GIB, int(9e9), other=8 * GIB)
LOOK = Outlook(
    (CARD, RAM), Split(0.34, 0.21, 0.45), Split(0.34, 0.66, 0), Prediction(9, 11, 13), Prediction(80, 100, 120),
    "derived", "yes", "Most of it lies in RAM.", "int8", 8192, Times(cpu=0.05, total=0.1), BytesPerToken(1, 1, 1),
)  # fmt: skip


@pytest.fixture
def theme(qtbot: QtBot) -> Theme:
    return Theme("light")


@pytest.fixture
def view(theme: Theme, qtbot: QtBot) -> LiveView:
    made = LiveView(theme)
    qtbot.addWidget(made)
    made.resize(300, 1400)
    return made


def pixels(widget: QWidget) -> QImage:
    return widget.grab().toImage()


def test_without_a_model_or_a_card_everything_unknown_reads_na(view: LiveView) -> None:
    view.show_sample(Sample(0, ram_total=16 * GIB, ram_available=12 * GIB))
    view.show_stats(None)
    values = {key: figure.value for key, figure in (view.speeds | view.machine).items()}
    assert values.pop("ram") == "4.0 of 16.0 GB"
    assert set(values.values()) == {"n/a"}
    assert [bar.words for bar in view.memory.bars] == ["others 4.0 GB, free 12.0 GB"]
    assert view.decode.words == "n/a"
    assert not view.what_if.isEnabled()
    pixels(view)


def test_without_a_plan_it_tells_why(view: LiveView) -> None:
    assert view.reason.text() == "No model is loaded."
    reasons: dict[Phase, str] = {
        "loading": "The model is being loaded.",
        "replying": "The model runs on another computer.",
        "resting": "The model was unloaded, and comes back with the next question.",
    }
    for phase, words in reasons.items():
        view.show_phase(phase)
        assert view.reason.text() == words
    view.show_outlook(LOOK)
    assert view.reason.text() == LOOK.reason


def test_the_plan_is_told_in_words(view: LiveView) -> None:
    view.show_outlook(LOOK, 131_072)
    assert view.memory.bars[0].words == (
        "weights 3.7 GB, KV cache 477 MB, workspace 191 MB, staging 95 MB, others 1.0 GB, free 2.5 GB"
    )
    assert view.decode.words == "in VRAM 34 %, streamed 21 %, CPU 45 %"
    assert view.prefill.words == "in VRAM 34 %, streamed 66 %"
    assert view.reason.text() == "Most of it lies in RAM."
    assert view.speeds["predicted"].value == "9.0–13 tokens/s"


def test_other_programs_follow_the_machine(view: LiveView) -> None:
    view.show_outlook(LOOK, 8192)
    view.show_sample(Sample(0, gpus=(GpuSample(0, "Card", vram_total=8 * GIB, vram_used=7 * GIB, vram_own=5 * GIB),)))
    assert "others 2.0 GB" in view.memory.bars[0].words
    view.show_outlook(None)
    assert view.memory.bars[0].words == "others 7.0 GB, free 1.0 GB"


def test_a_device_that_goes_away_is_not_shown_any_more(view: LiveView, qtbot: QtBot) -> None:
    view.show_outlook(LOOK, 8192)
    view.show_outlook(replace(LOOK, devices=(RAM,)), 8192)
    assert [bar.isHidden() for bar in view.memory.bars] == [False, True]


def test_figures_of_a_reply(view: LiveView) -> None:
    view.show_stats(Stats(ttft_s=0.62, prompt_tok_s=241.3, tok_s=10.84, context_used=1204, context_limit=8192))
    values = {key: figure.value for key, figure in view.speeds.items() if not figure.isHidden()}
    assert values == {
        "tok_s": "10.8 tokens/s", "predicted": "n/a", "ttft": "0.62 s", "prompt": "241 tokens/s",
        "context": "1,204 of 8,192",
    }  # fmt: skip


def test_experts_of_a_mixture_beside_a_card(view: LiveView) -> None:
    figure = view.speeds["experts"]
    view.show_stats(Stats(experts=ExpertShares(0.712, 0.041, 0.247, 200)))
    assert (figure.isHidden(), figure.value) == (False, "71 % on the card, 4 % copied")
    view.show_stats(Stats(experts=ExpertShares(0.5, 0, 0.5, 200)))
    assert figure.value == "50 % on the card"
    view.show_stats(Stats())
    assert figure.isHidden()


def test_the_machines_words_keep_nothing_known_back_and_invent_nothing() -> None:
    card = GpuSample(0, "Card", "", 64, 8 * GIB, 4 * GIB, None, (), 71.2, 115, 63, 4.94e9, 2e7)
    full = machine_words(Sample(0, 78, 61, 50, 32 * GIB, 16 * GIB, 1, 1.25e6, gpus=(card,)), card)
    assert full == {
        "cpu": "78 %", "ram": "16.0 of 32.0 GB", "disk": "1 MB/s", "gpu": "64 %", "vram": "4.0 of 8.0 GB",
        "link": "4.9 / 0.0 GB/s", "power": "71 of 115 W", "heat": "63 °C",
    }  # fmt: skip
    assert set(machine_words(Sample(0), None).values()) == {"n/a"}
    assert machine_words(Sample(0, cpu_temperature_c=50), None)["heat"] == "50 °C"
    assert machine_words(Sample(0, cpu_percent=0.0), None)["cpu"] == "0 %", "a real nothing is a figure"


def test_why_it_is_slow_is_said_and_taken_back(view: LiveView) -> None:
    view.show_why(Explanation("link", "Bound by the link.", "Use int4."))
    assert view.why.text() == "Bound by the link. Use int4."
    assert not view.why.isHidden()
    view.show_why(None)
    assert view.why.isHidden()


@pytest.mark.parametrize("width", [40, 268, 1000])
def test_bar_segments_are_in_proportion_and_never_vanish(theme: Theme, qtbot: QtBot, width: int) -> None:
    bar = ShareBar(theme, "Memory")
    qtbot.addWidget(bar)
    bar.resize(width, 12)
    bar.show_parts([Part("cpu", 50, "half"), Part("ok", 0, "none"), Part("other", 1e-9, "a trace", True)], 100)
    (first, left), (second, right) = bar.segments()
    assert (first.words, second.words) == ("half", "a trace")
    assert left.width() == pytest.approx(width / 2)
    assert right.width() >= 1
    assert bar.accessibleName() == "Memory: half, a trace"


def test_parts_larger_than_the_whole_stay_inside(theme: Theme, qtbot: QtBot) -> None:
    bar = ShareBar(theme, "Memory")
    qtbot.addWidget(bar)
    bar.resize(200, 12)
    bar.show_parts([Part("cpu", 80, "a"), Part("other", 80, "b")], 100)
    assert [box.width() for _, box in bar.segments()] == [100, 100]


def test_the_speed_line_keeps_a_minute_and_shows_pauses_as_gaps(theme: Theme, qtbot: QtBot) -> None:
    now = [0.0]
    line = SpeedLine(theme, clock=lambda: now[0])
    qtbot.addWidget(line)
    line.resize(240, 64)
    empty = pixels(line)
    for second in range(100):
        now[0] = float(second)
        line.add(None if 70 <= second < 80 else 10.0)
    runs = line.runs()
    assert len(runs) == 2
    assert runs[-1][-1].x() == pytest.approx(240)
    assert min(point.x() for run in runs for point in run) >= 0
    assert pixels(line) != empty
    assert line.top() == pytest.approx(14.0)
    line.set_predicted(Prediction(10, 20, 40))
    assert line.top() == pytest.approx(56)
    assert "10.0" in line.accessibleName()
    assert "predicted 20.0" in line.accessibleName()


@pytest.mark.parametrize("predicted", [Prediction(10, 20, 30), Prediction(19, 20, 21), Prediction(1, 20, 40)])
def test_the_word_beside_the_prediction_is_whole(
    theme: Theme, qtbot: QtBot, monkeypatch: pytest.MonkeyPatch, predicted: Prediction
) -> None:
    line = SpeedLine(theme)
    qtbot.addWidget(line)
    line.resize(240, 64)
    written: list[QPointF] = []
    monkeypatch.setattr(QPainter, "drawText", lambda painter, at, words: written.append(at))
    line.set_predicted(predicted)
    line.grab()
    metrics = QFontMetrics(theme.font("small"))
    assert all(metrics.ascent() <= at.y() <= line.height() - metrics.descent() for at in written)
    assert written


def test_a_long_silence_is_a_gap_too(theme: Theme, qtbot: QtBot) -> None:
    now = [0.0]
    line = SpeedLine(theme, clock=lambda: now[0])
    qtbot.addWidget(line)
    for moment in (1, 2, 3, 30, 31):
        now[0] = float(moment)
        line.add(5.0)
    assert [len(run) for run in line.runs()] == [3, 2]


def test_memory_of_the_speed_line_is_bounded(theme: Theme, qtbot: QtBot) -> None:
    line = SpeedLine(theme)
    qtbot.addWidget(line)
    for _ in range(5000):
        line.add(1.0)
        line.add(None)
    assert sum(len(run) for run in line.runs()) <= 1200


def test_what_if_asks_once_shows_the_answer_and_applies(view: LiveView, qtbot: QtBot) -> None:
    view.show_outlook(LOOK, 131_072)
    sliders = view.what_if
    assert sliders.wish() == Wish(8192, "int8", 1.0)
    wishes: list[Wish] = []
    sliders.wished.connect(wishes.append)
    with qtbot.waitSignal(view.wished) as signal:
        for _ in range(4):
            qtbot.keyClick(find(sliders, QSlider, "Context"), Qt.Key.Key_Right)
        find(sliders, QComboBox, "Weight format").setCurrentIndex(3)
    assert wishes == [Wish(32768, "int4", 1.0)] == signal.args
    assert not find(sliders, QPushButton, "Apply").isEnabled()
    sliders.show_answer(replace(LOOK, context=32768, format="int4"))
    assert (
        find(sliders, QLabel, "verdict").text()
        == "Fits: about 9.0–13 tokens/s with int4, worked out from what was measured here."
    )
    with qtbot.waitSignal(view.applied) as applied:
        find(sliders, QPushButton, "Apply").click()
    assert applied.args == [Wish(32768, "int4", 1.0)]


def test_a_kv_cache_of_8_bits_can_be_asked_for(view: LiveView, qtbot: QtBot) -> None:
    view.show_outlook(LOOK, 131_072)
    with qtbot.waitSignal(view.wished) as signal:
        find(view.what_if, QComboBox, "KV cache").setCurrentIndex(1)
    assert signal.args == [Wish(8192, "int8", 1.0, "int8")]
    view.what_if.show_answer(replace(LOOK, kv="int8"))
    assert find(view.what_if, QLabel, "manner").text() == "The model is loaded again, for its other KV cache."
    view.show_outlook(replace(LOOK, kv="int8"), 131_072)
    assert view.what_if.wish() == Wish(8192, "int8", 1.0, "int8")


def test_what_does_not_fit_cannot_be_applied(view: LiveView) -> None:
    view.show_outlook(LOOK, 131_072)
    find(view.what_if, QSlider, "Context").setValue(find(view.what_if, QSlider, "Context").maximum())
    view.what_if.show_answer(replace(LOOK, fits="no"))
    assert "Does not fit" in find(view.what_if, QLabel, "verdict").text()
    assert not find(view.what_if, QPushButton, "Apply").isEnabled()
    view.what_if.show_answer(None)
    assert find(view.what_if, QLabel, "verdict").text() == "n/a"


@pytest.mark.parametrize("limit", [300, 512, 2048, 40_960, 131_072, 1_048_576])
def test_the_context_slider_reaches_exactly_the_models_limit(view: LiveView, limit: int) -> None:
    view.show_outlook(replace(LOOK, context=2048), limit)
    slider = find(view.what_if, QSlider, "Context")
    slider.setValue(slider.maximum())
    assert view.what_if.wish().context == max(MIN_CONTEXT, limit)
    values = []
    for step in range(slider.maximum() + 1):
        slider.setValue(step)
        values.append(view.what_if.wish().context)
    assert values == sorted(set(values))


def test_without_a_card_its_share_cannot_be_chosen(view: LiveView) -> None:
    view.show_outlook(replace(LOOK, devices=(RAM,)), 8192)
    assert not find(view.what_if, QSlider, "Share of the graphics memory").isEnabled()
    assert find(view.what_if, QLabel, "vram").text() == "n/a"


def test_telemetry_arrives_in_the_views_thread(view: LiveView, qtbot: QtBot) -> None:
    telemetry = Telemetry(0.5)
    telemetry.sampled.connect(view.show_sample)
    with qtbot.waitSignal(telemetry.sampled):
        telemetry.start()
    qtbot.waitUntil(lambda: view.machine["cpu"].value != "n/a")
    telemetry.stop()


def test_no_sample_arrives_once_telemetry_has_stopped(qapp: QApplication, monkeypatch: pytest.MonkeyPatch) -> None:
    """Views may be gone by then: the sampler's thread has taken a sample that this thread has not processed."""
    readings, heard = itertools.count(1), list[Sample]()
    taken, read = threading.Event(), MachineProbe.read

    def counted(probe: MachineProbe) -> Sample:
        if next(readings) == 2:  # the first is for the rates of the second
            taken.set()
        return read(probe)

    monkeypatch.setattr(MachineProbe, "read", counted)
    telemetry = Telemetry(0.5)
    telemetry.sampled.connect(heard.append)
    telemetry.start()
    assert taken.wait(60)
    telemetry.stop()
    qapp.processEvents()
    assert heard == []


def test_words_appear_over_the_part_that_is_pointed_at(theme: Theme, qtbot: QtBot) -> None:
    bar = ShareBar(theme, "Memory")
    qtbot.addWidget(bar)
    bar.resize(200, 12)
    bar.show_parts([Part("cpu", 50, "left half"), Part("other", 50, "right half")], 100)
    boxes = {part.words: box for part, box in bar.segments()}
    assert boxes["left half"].contains(QPoint(50, 6))
    assert boxes["right half"].contains(QPoint(150, 6))


@pytest.mark.parametrize("percent", [80, 160])
@pytest.mark.parametrize("mode", ["light", "dark"])
def test_no_text_is_cut_at_any_size(qtbot: QtBot, mode: str, percent: int) -> None:
    theme = Theme(mode, percent)  # type: ignore[arg-type]
    view = LiveView(theme)
    qtbot.addWidget(view)
    view.resize(300, 2400)
    view.show_outlook(LOOK, 8192)
    view.show_why(Explanation("link", "Bound by the link to the graphics card.", "Use a smaller format."))
    view.show_stats(Stats(0, 0, 0, 80.5, 1241.3, 110.8, 99.9, 100_204, 131_072))
    card = GpuSample(0, "Card", "", 100, 24 * GIB, 20 * GIB, None, (), 371.2, 450, 100, 24.94e9, 12e9)
    view.show_sample(Sample(0, 100, 61, 50, 128 * GIB, 16 * GIB, 1, 1.25e9, gpus=(card,)))
    pixels(view)
    metrics = QFontMetrics(theme.font())
    for figure in (*view.speeds.values(), *view.machine.values()):
        assert metrics.horizontalAdvance(figure.value) + 40 <= figure.width(), figure.accessibleName()
    for label in view.findChildren(QLabel):
        assert label.width() <= 300
