"""Watches a reply from between its tokens: moves weights when free memory changes, and lets measured speed correct the
plan. What to do is decided by `tuning` and `planner`; here it is carried out.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from core.accelerators.base import Accelerator
from core.errors import DeviceLost, HeteGenError, NotEnoughMemory
from core.events import Replanned
from core.model.placement import DevicePlacement
from core.planning.calibration import Keep, Shrink, Watch, decide, learn, worth_changing
from core.planning.planner import place
from core.runtime.loader import LoadedModel
from core.spec import Budget, Plan, Profile, Times

LOOK_EVERY_S = 0.5
# Planning takes a moment, so a card that was left is looked at less often.
RETURN_EVERY_S = 5.0
# The speed is compared with the prediction after this many tokens in a row under one plan.
LEARN_TOKENS = 24
# After running out of memory: plan with this part of what was in use, and less again if that is too much too.
STEP_DOWN = 0.8
SMALLEST_VRAM = 16 << 20

Clock = Callable[[], float]


class Replanner:
    """Of one loaded model. Call `after_token` between tokens, `after_failure` when a pass failed."""

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
        """The next tokens are decoded one after the other from now on."""
        placement = self._loaded.model.placement
        self._cpu_s = placement.cpu_s if isinstance(placement, DevicePlacement) else 0.0
        self._counted_from, self._tokens = self._clock(), 0

    def after_token(self) -> Replanned | None:
        """Look at memory and speed now and then; the change that was made, if any. Raises DeviceLost."""
        self._tokens += 1
        placement, now = self._loaded.model.placement, self._clock()
        if not isinstance(placement, DevicePlacement):
            return self._look_for_device(now)
        if now - self._looked_at >= LOOK_EVERY_S:
            self._looked_at = now
            if (change := self._look_at_memory(placement.accelerator)) is not None:
                self.begin()
                return change
        if self._tokens >= LEARN_TOKENS:
            return self._learn(placement, now - self._counted_from)
        return None

    def after_failure(self, error: HeteGenError) -> Replanned | None:
        """Step down so that the reply can go on; None where this error has nothing to do with a device."""
        if self._loaded.plan.gpu < 0 or not isinstance(error, NotEnoughMemory | DeviceLost):
            return None
        if isinstance(error, NotEnoughMemory):
            if error.device == "cpu":
                return None  # without the card there would be even less room
            if (change := self._step_down()) is not None:
                return change
        self._loaded.can_use_device = False
        self._loaded.to_host()
        return Replanned(f"{error.what} The reply goes on without it.", self._loaded.plan)

    def _step_down(self) -> Replanned | None:
        """Let fewer and fewer weights lie on the device until they fit; None where none do, or it is lost."""
        vram = self._loaded.plan.memory[-1].used
        while (vram := int(vram * STEP_DOWN)) > SMALLEST_VRAM:
            try:
                change = self._change(self._plan(vram), "The graphics memory was full; fewer weights lie there now.")
            except NotEnoughMemory:
                continue
            except DeviceLost:
                return None
            if change is not None:
                return change
        return None

    def keep_to(self, vram: int | None, ram: int | None) -> Replanned:
        """Plan anew within a person's limits in bytes. Raises NotEnoughMemory, DeviceLost."""
        loaded = self._loaded
        loaded.look_for_device()
        before = loaded.vram_cap, loaded.ram_cap
        loaded.vram_cap, loaded.ram_cap = vram, ram
        plan = self._plan(vram)
        if plan.fits == "no":
            loaded.vram_cap, loaded.ram_cap = before
            raise NotEnoughMemory(plan.reason, "", "Allow it more memory, or load a smaller model.")
        try:
            loaded.move_to(plan)
        except (NotEnoughMemory, DeviceLost) as error:
            if (change := self.after_failure(error)) is None:
                raise
            return change
        return Replanned(loaded.plan.reason, loaded.plan)

    def _look_for_device(self, now: float) -> Replanned | None:
        """Whether a card that was left has room again."""
        if not self._loaded.can_use_device or now - self._looked_at < RETURN_EVERY_S:
            return None
        self._looked_at = now
        plan = self._plan(self._loaded.vram_cap)
        if plan.gpu < 0:
            return None
        try:
            self._loaded.to_device(plan)
        except (NotEnoughMemory, DeviceLost):
            # Others were faster. Trying again and again would load weights in vain in the middle of a reply.
            self._loaded.can_use_device = False
            return None
        self.begin()
        return Replanned("The graphics card has room again.", self._loaded.plan)

    def _look_at_memory(self, accelerator: Accelerator) -> Replanned | None:
        wish = self._loaded.vram_cap
        decision, self._watch = decide(self._loaded.plan, accelerator.memory().free, self._watch, wish)
        if isinstance(decision, Keep):
            return None
        plan = self._plan(decision.vram)
        if not isinstance(decision, Shrink) and not worth_changing(self._loaded.plan, plan):
            return None
        return self._change(plan, decision.reason)

    def _learn(self, placement: DevicePlacement, seconds: float) -> Replanned | None:
        tokens = self._tokens
        measured = Times(cpu=(placement.cpu_s - self._cpu_s) / tokens, total=seconds / tokens)
        self.begin()
        self.profile = learn(self.profile, self._loaded.plan, measured, tokens)
        plan = self._plan(self._loaded.vram_cap)
        if not worth_changing(self._loaded.plan, plan):
            return None
        return self._change(plan, "The measured speed corrected the division of the weights.")

    def _plan(self, vram: int | None) -> Plan:
        """A plan for the same format and context as now."""
        now = self._loaded.plan
        budget = Budget(vram, self._loaded.ram_cap, now.threads, now.context, now.format)
        return place(self._loaded.spec, self._loaded.machine.now(), budget, now.strategy, self.profile)

    def _change(self, plan: Plan, reason: str) -> Replanned | None:
        if plan.gpu != self._loaded.plan.gpu:
            self._loaded.to_host()
            return Replanned(reason, self._loaded.plan)
        now = self._loaded.plan
        if _arrangement(plan) == _arrangement(now):
            return None
        self._loaded.apply(plan)
        return Replanned(reason, self._loaded.plan)


def _arrangement(plan: Plan) -> tuple[object, ...]:
    return plan.linears, plan.ring, plan.kv_devices, plan.host_layers
