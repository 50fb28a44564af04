"""Watches a reply between tokens: re-plans when free memory changes, and when measured speed corrects the plan.

`calibration` and `planner` decide, `LoadedModel` moves the weights, and `Change` reports the outcome.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from core.accelerators.base import Accelerator
from core.errors import DeviceLost, HeteGenError, NotEnoughMemory
from core.events import Replanned
from core.model.placement import DevicePlacement
from core.planning.calibration import Keep, Shrink, Watch, learn, watch_memory, worth_changing
from core.planning.planner import place
from core.runtime.loaded_model import LoadedModel
from core.sentence import sentence
from core.spec import Budget, Plan, Profile, Times

LOOK_EVERY_S = 0.5
# Planning takes a moment, so a GPU that was left is checked less often.
RETURN_EVERY_S = 5.0
# Speed is compared with the prediction after this many consecutive tokens under one plan.
LEARN_TOKENS = 24
# After running out of memory, plan with this fraction of what was in use, repeatedly if necessary.
STEP_DOWN = 0.8
SMALLEST_VRAM = 16 << 20

Clock = Callable[[], float]


@dataclass(frozen=True)
class Change:
    """What was done between two tokens: `event` to show, if any. `reread`: the KV cache was lost, so the prompt and the
    reply so far have to be read again."""

    event: Replanned | None = None
    reread: bool = False


UNCHANGED = Change()


class Replanner:
    """Re-plans one loaded model. Call `after_token` between tokens, `after_failure` when a pass failed."""

    def __init__(self, loaded: LoadedModel, profile: Profile | None = None, clock: Clock = time.perf_counter) -> None:
        self._loaded = loaded
        self.profile = profile or Profile()
        self._clock = clock
        self._watch = Watch()
        self._looked_at = clock()
        self._counted_from = clock()
        self._cpu_s = 0.0
        self._tokens = 0

    def begin(self) -> None:
        """Start timing: from now on, tokens are decoded one after another."""
        placement = self._loaded.model.placement
        self._cpu_s = placement.cpu_s if isinstance(placement, DevicePlacement) else 0.0
        self._counted_from, self._tokens = self._clock(), 0

    def after_token(self) -> Change:
        """Check memory and speed from time to time. Raises NotEnoughMemory, DeviceLost."""
        self._tokens += 1
        placement, now = self._loaded.model.placement, self._clock()
        if not isinstance(placement, DevicePlacement):
            return self._look_for_device(now)
        if now - self._looked_at >= LOOK_EVERY_S:
            self._looked_at = now
            change = self._look_at_memory(placement.accelerator)
            if change.event:
                self.begin()
                return change
        if self._tokens >= LEARN_TOKENS:
            return self._learn(placement, now - self._counted_from)
        return UNCHANGED

    def after_failure(self, error: HeteGenError) -> Replanned | None:
        """Reduce the use of the device so that the reply can go on; None if the error is unrelated to a device."""
        if self._loaded.plan.gpu < 0 or not isinstance(error, NotEnoughMemory | DeviceLost):
            return None
        if isinstance(error, NotEnoughMemory):
            if error.device == "cpu":
                return None  # RAM is full: without the GPU there would be even less room
            if self._loaded.look_from_ram():
                what = sentence("The graphics memory was full; the processor looks at pictures now.")
                return Replanned(what, self._loaded.plan)
            if (change := self._step_down()) is not None:
                return change
        self._loaded.avoid_device()
        return Replanned(sentence("{} The reply goes on without it.", error.what), self._loaded.plan)

    def keep_to(self, vram: int | None, ram: int | None) -> Replanned:
        """Re-plan within a user's limits in bytes. Raises NotEnoughMemory, DeviceLost."""
        loaded = self._loaded
        loaded.look_for_device()
        loaded.drop_draft()
        plan = self._plan(replace(loaded.budget, vram=vram, ram=ram))
        if plan.fits == "no":
            raise NotEnoughMemory(plan.reason, "", "Allow it more memory, or load a smaller model.")
        loaded.limit(vram, ram)
        try:
            loaded.move_to(plan)
        except (NotEnoughMemory, DeviceLost) as error:
            if (change := self.after_failure(error)) is None:
                raise
            return change
        return Replanned(loaded.plan.reason, loaded.plan)

    def _step_down(self) -> Replanned | None:
        """Place fewer and fewer weights on the device until they fit; None if none do, or the device is lost."""
        self._loaded.drop_draft()
        vram = self._loaded.plan.memory[-1].used
        while (vram := int(vram * STEP_DOWN)) > SMALLEST_VRAM:
            try:
                plan = self._plan(replace(self._loaded.budget, vram=vram))
                change = self._change(plan, sentence("The graphics memory was full; fewer weights lie there now."))
            except NotEnoughMemory:
                continue
            except DeviceLost:
                return None
            if change.event is not None:
                return change.event
        return None

    def _look_for_device(self, now: float) -> Change:
        """Return to a GPU that was left, if it has room again."""
        if not self._loaded.can_use_device or now - self._looked_at < RETURN_EVERY_S:
            return UNCHANGED
        self._looked_at = now
        plan = self._plan(self._loaded.budget)
        if plan.gpu < 0:
            return UNCHANGED
        try:
            self._loaded.move_to(plan)
        except (NotEnoughMemory, DeviceLost):
            # Other programs took the memory first. Retrying would load weights in vain in the middle of a reply.
            self._loaded.avoid_device()
            return Change(reread=self._cache_lost)
        self.begin()
        return self._changed(sentence("The graphics card has room again."))

    def _look_at_memory(self, accelerator: Accelerator) -> Change:
        loaded = self._loaded
        free = accelerator.memory().free - loaded.sight_to_come
        decision, self._watch = watch_memory(loaded.plan, free, self._watch, loaded.budget.vram)
        if isinstance(decision, Keep):
            return UNCHANGED
        if isinstance(decision, Shrink):
            loaded.drop_draft()
        plan = self._plan(replace(loaded.budget, vram=decision.vram))
        if not isinstance(decision, Shrink) and not worth_changing(loaded.plan, plan):
            return UNCHANGED
        return self._change(plan, decision.reason)

    def _learn(self, placement: DevicePlacement, seconds: float) -> Change:
        tokens = self._tokens
        # The CPU's time for its heads includes attention, which is predicted apart.
        cpu_s = 0.0 if self._loaded.plan.divides_heads else (placement.cpu_s - self._cpu_s) / tokens
        measured = Times(cpu=cpu_s, total=seconds / tokens)
        self.begin()
        self.profile = learn(self.profile, self._loaded.plan, measured, tokens)
        plan = self._plan(self._loaded.budget)
        if not worth_changing(self._loaded.plan, plan):
            return UNCHANGED
        return self._change(plan, sentence("The measured speed corrected the division of the weights."))

    def _plan(self, budget: Budget) -> Plan:
        loaded = self._loaded
        return place(loaded.spec, loaded.machine.now(), budget, loaded.plan.strategy, self.profile)

    def _change(self, plan: Plan, reason: str) -> Change:
        now = self._loaded.plan
        if plan.gpu != now.gpu:
            self._loaded.to_host()
            return self._changed(reason)
        if _arrangement(plan) == _arrangement(now):
            return UNCHANGED
        self._loaded.move_to(plan)
        return self._changed(reason)

    def _changed(self, reason: str) -> Change:
        return Change(Replanned(reason, self._loaded.plan), self._cache_lost)

    @property
    def _cache_lost(self) -> bool:
        # Between the tokens of a reply, only a new cache is empty.
        return not self._loaded.cache.tokens


def _arrangement(plan: Plan) -> tuple[object, ...]:
    return plan.linears, plan.ring, plan.kv_devices, plan.host_layers, plan.sight_gpu
