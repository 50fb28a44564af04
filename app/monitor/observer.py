"""Feeds the live view and the status line: the plan in force, machine samples, and what limits the speed.

Answers the what-if sliders by planning again, which takes milliseconds and loads nothing.
"""

from __future__ import annotations

from dataclasses import replace

from PySide6.QtCore import QObject, Signal, Slot

from app.engine.app_state import State
from app.monitor.bottleneck import Explanation, Situation, explain
from app.monitor.live_records import Outlook, Wish, outlook
from app.monitor.telemetry import Sample
from core.events import Loaded, LoadOptions, Stats
from core.planning import planner
from core.spec import Hardware, Plan


class Observer(QObject):
    """Derives the live figures from the session's state and the machine samples.

    Signals: `outlooked(Outlook | None, context limit, vram share)`; `figured(Stats | None)`; `split(tuple)` for the
    strip; `explained(Explanation | None)`; `answered(Outlook)` to a wish; `replan_wished(LoadOptions)` if moving
    weights is enough, otherwise `reload_wished(LoadOptions)`.
    """

    outlooked = Signal(object, int, float)
    figured = Signal(object)
    explained = Signal(object)
    split = Signal(object)
    answered = Signal(object)
    replan_wished = Signal(object)
    reload_wished = Signal(object)

    def __init__(self) -> None:
        super().__init__()
        self._options = LoadOptions()
        self._model: Loaded | None = None
        self._outlook: Outlook | None = None
        self._stats: Stats | None = None
        self._replying = False

    @Slot(object)
    def on_state(self, state: State) -> None:
        """Show the plan and figures of the new state."""
        if state.model is not self._model or state.options != self._options:
            self._model, self._options = state.model, state.options
            self._show_plan(state.model)
        if state.figures != self._stats:
            self._stats = state.figures
            self.figured.emit(self._stats)
        if self._replying and state.phase != "replying":
            self.explained.emit(None)
        self._replying = state.phase == "replying"

    @Slot(object)
    def on_sample(self, sample: Sample) -> None:
        """During a reply, explain what limits its speed."""
        if self._replying and self._outlook is not None:
            speed = self._stats.tok_s if self._stats else None
            reason: Explanation = explain(Situation(sample, self._outlook, speed))
            self.explained.emit(reason)

    @Slot(object)
    def on_wish(self, wish: Wish) -> None:
        """Plan for a wish and show the outcome."""
        model = self._model
        if model is None or model.plan is None or model.spec is None or model.hardware is None:
            return
        hardware = emptied(model.hardware, model.plan)
        options = self._options_for(wish, hardware)
        plan = planner.place(model.spec, hardware, options, profile=model.plan.profile)
        self.answered.emit(outlook(plan, model.spec, hardware))

    @Slot(object)
    def on_apply(self, wish: Wish) -> None:
        """Apply a wish: re-plan if only the split changes, otherwise reload."""
        model = self._model
        if model is None or model.hardware is None:
            return
        options = self._options_for(wish, model.hardware)
        kept = model.plan.kv if model.plan else "bf16"
        if (wish.context, wish.format, wish.kv) == (model.context, model.format, kept):
            self.replan_wished.emit(options)
        else:
            self.reload_wished.emit(options)

    def _options_for(self, wish: Wish, hardware: Hardware) -> LoadOptions:
        vram = self._options.vram
        if hardware.gpus:
            vram = None if wish.vram_share >= 1 else round(wish.vram_share * hardware.gpus[0].vram_total)
        return replace(self._options, context=wish.context, format=wish.format, kv=wish.kv, vram=vram)

    def _show_plan(self, model: Loaded | None) -> None:
        if model is None or model.plan is None or model.spec is None or model.hardware is None:
            self._outlook = None
            self.outlooked.emit(None, 0, 1.0)
            self.split.emit(())
            return
        hardware = emptied(model.hardware, model.plan)
        self._outlook = outlook(model.plan, model.spec, hardware)
        share = 1.0
        if hardware.gpus and self._options.vram:
            share = min(1.0, self._options.vram / hardware.gpus[0].vram_total)
        self.outlooked.emit(self._outlook, model.spec.context_limit, share)
        decode = self._outlook.decode
        self.split.emit((("resident", decode.resident), ("streamed", decode.streamed), ("cpu", decode.cpu)))


def emptied(hardware: Hardware, plan: Plan) -> Hardware:
    """Return the machine as it was before this model was loaded: its memory counts as free for another plan."""
    before = {memory.device: memory.free_before for memory in plan.memory}
    cpu = replace(hardware.cpu, ram_free=before.get("cpu", hardware.cpu.ram_free))
    gpus = tuple(replace(gpu, vram_free=before.get(f"{gpu.kind}:{gpu.index}", gpu.vram_free)) for gpu in hardware.gpus)
    return replace(hardware, cpu=cpu, gpus=gpus)
