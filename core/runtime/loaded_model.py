"""A loaded model, and the only code that changes its placement: to another plan, to a GPU, back to the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from core.errors import BadRequest, DeviceLost, NotEnoughMemory
from core.events import ExpertShares, Message, Sampling
from core.generation.grammar import Grammars
from core.generation.prompt_lookup import PromptLookup
from core.generation.speculation import Speculation
from core.generation.tokenizer import Tokenizer
from core.hardware.machine import Machine
from core.layers.kv_cache import KVCache
from core.layers.kv_parking import ParkedPrefixes
from core.model.host_weights import HostWeights
from core.model.language_model import LanguageModel
from core.model.model_source import Source
from core.model.placement import DevicePlacement, HostPlacement
from core.paths import cache_folder
from core.planning.drafting import prices
from core.planning.expert_cache import popularity
from core.planning.planner import place
from core.planning.profile_store import model_key, remember
from core.planning.sight import without_sight
from core.runtime.drafting import DraftModel
from core.runtime.expert_uses import keep_uses, recall_uses
from core.runtime.kept_readings import KeptReadings
from core.runtime.rehearsal import rehearse
from core.sentence import sentence
from core.spec import Budget, ModelSpec, Plan, Profile
from core.vision.processor import load_processor
from core.vision.tower import Tower, has_tower, placeholder_id
from core.vision.vision import ModelVision
from core.weights.packed_cache import cache_key

UNLOCKED = sentence("The system lets too little memory be locked for fast copies, so streaming to the card is slower.")
GRAPHS_FULL = sentence(
    "What the graphics card recorded to replay it takes the memory that was set aside; no more is recorded."
)


@dataclass(frozen=True)
class SaidReply:
    """The last reply as token ids, for continuing it: `prompt` then `drawn`, and the messages and text they stand
    for."""

    asked: tuple[Message, ...]
    prompt: list[int]
    drawn: list[int]
    content: str
    reasoning: str

    def is_last_of(self, messages: Sequence[Message]) -> bool:
        """Return whether these messages end with this reply, unchanged."""
        last = messages[-1]
        said = (last.content.strip(), last.reasoning.strip()) == (self.content.strip(), self.reasoning.strip())
        return said and self.asked == tuple(messages[:-1])


@dataclass
class LoadedModel:
    """Everything a conversation needs. Other code reads its fields; only its methods change where weights and cache
    are.

    `budget`: the user's memory limits, with the format, context and threads decided when it was loaded. `tokenizer` is
    None for a shape. `reply_start`: number of cached tokens before the last reply; `said`: that reply, if it can be
    continued. `drafts`: whether tokens are drafted, by prompt lookup and by `draft` if there is one. `can_use_device`:
    False after the GPU was lost or stayed full. `tower`: the vision part, after the first picture.
    """

    name: str
    source: Source
    spec: ModelSpec
    plan: Plan
    budget: Budget
    machine: Machine
    weights: HostWeights
    model: LanguageModel
    cache: KVCache
    tokenizer: Tokenizer | None
    sampling: Sampling
    profile: Profile = field(default_factory=Profile)
    can_use_device: bool = True
    reply_start: int = 0
    said: SaidReply | None = None
    drafts: bool = True
    draft: DraftModel | None = None
    tower: Tower | None = None

    @property
    def sees(self) -> bool:
        """Whether it accepts pictures."""
        if self.source.folder is None or self.tokenizer is None:
            return False
        return self.model.vision is not None or has_tower(self.source.module)

    def open_vision(self) -> None:
        """Load the vision parts, for the first picture. Raises BadRequest for a model without them, ModelUnreadable,
        UnsupportedModel, NotEnoughMemory."""
        if self.model.vision is not None:
            return
        module, folder = self.source.module, self.source.folder
        placeholder = placeholder_id(module.config)
        if folder is None or self.tokenizer is None or placeholder is None or not self.sees:
            raise BadRequest(
                "This model cannot see pictures.", "It only reads text.", "Choose a model that sees, or ask without it."
            )
        processor = load_processor(folder, module.config, self.tokenizer.backend, placeholder)
        vision = ModelVision(module, self.source.weights, processor)
        self.model.vision = self.tokenizer.vision = vision
        self.tower = vision.tower
        self._place_sight()

    @property
    def sight_to_come(self) -> int:
        """Bytes of VRAM that the vision part will take at the first picture."""
        return 0 if self.plan.gpu < 0 or self.tower is not None else self.plan.memory[-1].sight

    def look_from_ram(self) -> bool:
        """Move the vision part to RAM from now on; return whether it was on a GPU."""
        was_there = self.tower is not None and self.plan.sight_gpu >= 0
        self.budget = replace(self.budget, sight_on_card=False)
        self.plan = without_sight(self.plan)
        if was_there:
            self._place_sight()
        return was_there

    def speculation(self, ids: Sequence[int]) -> Speculation | None:
        """Return the speculation for a reply to these ids; None if nothing drafts."""
        if not self.drafts:
            return None
        draft = self.draft
        if draft is not None and draft.reads_ids and min(ids) < 0:  # a draft model does not see pictures
            draft = None
        models = [] if draft is None else [draft.drafter(self.cache, ids)]
        return Speculation([PromptLookup(prices(self.plan, None)), *models])

    def drop_draft(self) -> None:
        """Continue without the draft model; its memory becomes available to later plans."""
        if self.draft is not None:
            if self.draft.plan.gpu >= 0:
                self.machine.reserved.pop(self.draft.plan.gpu, None)
            self.model.on_states = None
            self.draft.close()
            self.draft = None

    @cached_property
    def grammars(self) -> Grammars:
        """Builds token masks for this model's tokenizer."""
        assert self.tokenizer is not None
        return Grammars(self.tokenizer)

    @cached_property
    def parked(self) -> ParkedPrefixes:
        """KV cache contents of other conversations."""
        return ParkedPrefixes(self.plan.memory[0].parked)

    @cached_property
    def kept(self) -> KeptReadings | None:
        """KV caches of conversations on disk; None for random weights."""
        if not self.source.files:
            return None
        recipe = f"kv {self.plan.kv} {self.plan.format} {self.source.module.config.to_json_string()}"
        return KeptReadings(cache_key(self.source.files, recipe))

    def keep_reading(self, conversation: str) -> None:
        """Start writing the KV cache to disk for the conversation with this id."""
        if conversation and self.kept is not None:
            self.kept.keep(conversation, self.cache, self.reply_start)

    def turn_to(self, ids: Sequence[int], conversation: str = "") -> None:
        """Restore as much of these ids as possible in the KV cache, from parked prefixes or from disk. Empties it if
        the device is lost or full, which the next pass will notice and handle."""
        placement = self.model.placement
        self.settle()
        try:
            with placement.failures():
                if isinstance(placement, DevicePlacement):
                    placement.accelerator.synchronize()
                self.reply_start = self.parked.switch(self.cache, ids, self.reply_start, placement.device)
                if conversation and self.kept is not None:
                    self.reply_start = self.kept.recall(
                        conversation, self.cache, ids, self.reply_start, placement.device
                    )
        except (NotEnoughMemory, DeviceLost):
            self.cache.reset()
            self.reply_start = 0

    def limit(self, vram: int | None, ram: int | None) -> None:
        """Set the user's limits, in bytes, for later plans."""
        self.budget = replace(self.budget, vram=vram, ram=ram)

    def move_to(self, plan: Plan) -> None:
        """Change to any plan with the same format and context, including to or from a GPU. Raises NotEnoughMemory and
        DeviceLost: a GPU that was in use is then partly filled, one that was not is released again."""
        if self.plan.gpu not in (-1, plan.gpu):
            self.to_host()
        if plan.gpu < 0:
            self.plan = plan
            assert isinstance(self.model.placement, HostPlacement)
            self.model.placement.reads_copy = plan.head_copy > 0
        elif self.plan.gpu < 0:
            self._to_device(plan)
        else:
            self.machine.accelerator(plan.gpu).limit(self.budget.vram)
            self._rearrange(plan)

    def to_host(self) -> None:
        """Continue without the GPU. If the KV cache cannot be copied back, it is replaced by an empty one."""
        self.drop_draft()
        self.plan = place(self.spec, self.machine.without_gpus(), replace(self.budget, vram=None))
        if not self._cache_comes_along():
            self.cache = KVCache(self.source.module.config, self.plan.context, format=self.plan.kv)
            self.reply_start = 0
        self.keep_expert_uses()
        if self.tower is not None:
            self.tower.come_back()
        self.model.placement.close()
        self.model.placement = HostPlacement(self.source.module, self.weights, reads_copy=self.plan.head_copy > 0)
        rehearse(self.model, self.plan)

    def avoid_device(self) -> None:
        """Continue without the GPU until `look_for_device`."""
        self.can_use_device = False
        if self.plan.gpu >= 0:
            self.to_host()

    def look_for_device(self) -> None:
        """Let the next plan use a GPU again: a lost one may be back, for example after sleep."""
        if self.machine.forget_lost() and self.plan.gpu >= 0:
            self.to_host()
        self.can_use_device = True
        self.budget = replace(self.budget, sight_on_card=True)

    def learn(self, profile: Profile) -> None:
        """Store what a reply has revealed about this model's speed here, and about its experts."""
        if isinstance(placement := self.model.placement, DevicePlacement):
            known = popularity(placement.expert_uses.values()) or profile.hottest
            profile = replace(profile, hottest=known)
            self.plan = with_graph_note(self.plan, placement)
        if profile != self.profile:
            self.profile = profile
            remember(cache_folder(), model_key(self.plan, self.machine.hardware), profile)

    @property
    def expert_shares(self) -> ExpertShares | None:
        """Where the chosen experts were computed; None if the GPU holds none whole."""
        placement = self.model.placement
        use = placement.expert_use if isinstance(placement, DevicePlacement) else None
        if use is None or not (chosen := use.hits + use.copied + use.computed):
            return None
        return ExpertShares(use.hits / chosen, use.copied / chosen, use.computed / chosen, use.held)

    def keep_expert_uses(self) -> None:
        """Store how often each expert was used, for the next load."""
        if isinstance(placement := self.model.placement, DevicePlacement):
            keep_uses(cache_folder(), self.source.files, placement.expert_uses)

    def close(self) -> None:
        """Free the devices' memory."""
        self.settle(finish=True)
        self.keep_expert_uses()
        self.drop_draft()
        if self.tower is not None:
            self.tower.come_back()
        self.model.placement.close()
        self.machine.close()

    def settle(self, *, finish: bool = False) -> None:
        """Abort the writing of the KV cache, or wait for it with `finish`."""
        # Do not create `kept` here: it stats the model's files, which may be gone by now.
        if (kept := vars(self).get("kept")) is not None:
            kept.settle(finish=finish)

    def _to_device(self, plan: Plan) -> None:
        device = self.machine.accelerator(plan.gpu)
        device.limit(self.budget.vram)
        apart = [] if self.tower is None else self.tower.parts
        try:
            placement = DevicePlacement(self.source.module, self.weights, plan, device, self.spec.kv_layers, apart)
            self.model.placement = placement
            placement.recall_expert_uses(recall_uses(cache_folder(), self.source.files))
            self._rearrange(plan)
        except (NotEnoughMemory, DeviceLost):
            self.to_host()
            raise

    def _rearrange(self, plan: Plan) -> None:
        """Change to another plan for the GPU in use. Raises NotEnoughMemory, DeviceLost."""
        placement = self.model.placement
        assert isinstance(placement, DevicePlacement)
        self.plan = plan
        there, home = placement.kv_places(plan), placement.kv_home(self.source.module.config)
        with placement.failures():
            # First move what leaves the device, last what comes to it.
            self.cache.retreat(there, home)
            for _ in placement.apply(plan):
                pass
            self.cache.move(there, home)
        self.plan = with_pinning_note(plan, placement)
        self._place_sight()

    def _place_sight(self) -> None:
        """Move the vision part to its planned device, or to RAM if the GPU has no room for it."""
        if self.tower is None:
            return
        try:
            self.tower.lie(self.model.placement, on_device=self.plan.sight_gpu >= 0)
        except NotEnoughMemory:
            self.look_from_ram()

    def _cache_comes_along(self) -> bool:
        placement = self.model.placement
        if isinstance(placement, HostPlacement):
            return not self.cache.away
        if not self.cache.can_rewind:
            return False  # recurrent states cannot be moved
        try:
            with placement.failures():
                placement.accelerator.synchronize()
                self.cache.move({})
        except (NotEnoughMemory, DeviceLost):
            return False
        return True


def with_pinning_note(plan: Plan, placement: DevicePlacement) -> Plan:
    """Return the plan, with a note if the system pins too little memory for it."""
    return replace(plan, reasons=(*plan.reasons, UNLOCKED)) if placement.streams_starved else plan


def with_graph_note(plan: Plan, placement: DevicePlacement) -> Plan:
    """Return the plan, with a note if some work was not captured because the memory for it is used up."""
    use = placement.captures.graphs
    is_new = use is not None and use.full and GRAPHS_FULL not in plan.reasons
    return replace(plan, reasons=(*plan.reasons, GRAPHS_FULL)) if is_new else plan
