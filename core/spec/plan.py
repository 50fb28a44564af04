"""A plan, the budget that it keeps to, and what it predicts: records only.

Sizes are bytes, times seconds, speeds tokens per second.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from core.spec.formats import DECODE, PREFILL, Format, FormatWish, KvFormat, Strategy, bucket
from core.spec.hardware import KernelRate

COMFORTABLE_TOK_S = 6.0
"""As fast as people read: below this a model is slow."""
MIN_CONTEXT, MAX_CONTEXT = 256, 10_000_000
"""Contexts that may be asked for, in tokens."""


@dataclass(frozen=True)
class Profile:
    """Factors on predicted times, by engine, learned from `tokens` tokens of one model on this machine. `hottest`: the
    part of all uses of experts, 0-1, that goes to the eighth of them that is used most, to the first two eighths, and
    so on; empty while nothing was counted."""

    cpu: float = 1.0
    link: float = 1.0
    gpu: float = 1.0
    overhead: float = 1.0
    tokens: int = 0
    hottest: tuple[float, ...] = ()

    def covered(self, part: float) -> float:
        """The part of all uses that goes to this part of a layer's experts, the most used ones: itself if unknown."""
        if not self.hottest:
            return part
        points = (0.0, *self.hottest)
        at = part * len(self.hottest)
        low = min(int(at), len(self.hottest) - 1)
        return points[low] + (at - low) * (points[low + 1] - points[low])


@dataclass(frozen=True)
class Budget:
    """What may be used, None = decided here: `vram` bytes of each GPU, `ram` bytes, CPU threads, tokens of context.
    `kv`: how keys and values are kept; `whole_head`: that the output head has no copy that is read first;
    `sight_on_card`: whether what sees may lie on a card."""

    vram: int | None = None
    ram: int | None = None
    threads: int | None = None
    context: int | None = None
    format: FormatWish = "auto"
    kv: KvFormat = "bf16"
    whole_head: bool = False
    sight_on_card: bool = True


@dataclass(frozen=True)
class Rows:
    """How one linear's rows are divided in one phase: [0:resident) in VRAM, then `streamed`, the rest on the CPU."""

    resident: int
    streamed: int
    cpu: int

    @property
    def total(self) -> int:
        """All rows."""
        return self.resident + self.streamed + self.cpu


@dataclass(frozen=True)
class LinearPlan:
    """One linear's rows by bucket of M. The resident rows are the same in all. `gpu` is an index, -1 = none. Linears of
    one `group` read the same input and are computed together, with one exchange; -1 = with none. One that comes `after`
    a group, and has no other input, is divided by its columns as those are by their rows: `rows` and `shares` count
    columns then, and neither side's results go to the other in between."""

    name: str
    rows: int
    shares: tuple[Rows, Rows, Rows, Rows]
    gpu: int = -1
    group: int = -1
    after: int = -1

    @property
    def by_columns(self) -> bool:
        """Whether columns are counted."""
        return self.after >= 0

    @property
    def resident(self) -> int:
        """Rows that stay on the device."""
        return self.shares[DECODE].resident

    @property
    def decode(self) -> Rows:
        """The split while one token is computed."""
        return self.shares[DECODE]

    @property
    def prefill(self) -> Rows:
        """The split while a prompt is read."""
        return self.shares[PREFILL]

    def at(self, tokens: int) -> Rows:
        """The division for `tokens` rows of input."""
        return self.shares[bucket(tokens)]


@dataclass(frozen=True)
class Ring:
    """Staging buffers for streamed rows, as many pinned in RAM as in VRAM; a linear larger than one goes in pieces.
    `copiers`: threads that fill them."""

    buffers: int = 0
    bytes: int = 0
    copiers: int = 1

    @property
    def total(self) -> int:
        """Bytes of all buffers."""
        return self.buffers * self.bytes


@dataclass(frozen=True)
class ExpertRates:
    """What whoever computes an expert needs for it, in seconds and rates: `cpu` and `card` multiply; `copy_s` brings
    one byte to the card while the CPU computes, `piece_s` is what each copy costs besides; `exchange_s`: that the CPU
    computes any of a layer's; `call_s`: one product on the card. `slower`: how much longer the CPU takes while
    copies run. `apart`: whether both compute at the same time."""

    cpu: KernelRate
    card: KernelRate
    copy_s: float
    piece_s: float = 0.0
    exchange_s: float = 0.0
    call_s: float = 0.0
    slower: float = 1.0
    apart: bool = True


@dataclass(frozen=True)
class DeviceMemory:
    """What a plan takes of one device, and what was free before. `margin` is left untouched for others; `parked` is for
    what the KV cache held of other conversations, `sight` for what sees, once there is a picture."""

    device: str
    weights: int
    kv_cache: int
    workspace: int
    staging: int
    free_before: int
    margin: int
    parked: int = 0
    sight: int = 0

    @property
    def used(self) -> int:
        """Bytes that the model takes there, of all kinds."""
        return self.weights + self.kv_cache + self.workspace + self.staging + self.parked + self.sight


@dataclass(frozen=True)
class Prediction:
    """Tokens per second."""

    low: float
    likely: float
    high: float


@dataclass(frozen=True)
class Times:
    """Where one pass spends its time, in seconds: each engine's own work, the rest, and all of it (with overlap).

    `critical`: everything that happens one after the other while the link runs beside it.
    """

    cpu: float = 0.0
    link: float = 0.0
    gpu: float = 0.0
    attention: float = 0.0
    overhead: float = 0.0
    disk: float = 0.0
    total: float = 0.0
    critical: float = 0.0


@dataclass(frozen=True)
class BytesPerToken:
    """Bytes that each engine reads to decode one token."""

    cpu: int = 0
    link: int = 0
    gpu: int = 0


Confidence = Literal["measured", "derived", "guess"]
Fits = Literal["yes", "slow", "no"]


@dataclass(frozen=True)
class Plan:
    """Where everything lies and who computes it: decided by `planner.place`, carried out by the model.

    `gpu` is the index of the compute device, -1 = the CPU. `kv_devices` has one entry per layer of the KV cache
    (a GPU's index or -1), and all are kept in the format `kv`; the input table stays in RAM. `host_layers`: the numbers
    of those that the CPU computes by itself in passes of few tokens. `mapped`: weights are used straight from the
    files; `from_disk` bytes of them do not fit in RAM and are read again for every token. `active_bytes`: of the
    weights that one token uses. `load_peak`: bytes of RAM of its own that the process takes at most while loading.
    `few_times`: of a pass over a few tokens. `profile`: the corrections that the times contain. `expert_rates`:
    what the experts of a mixture cost beside a card. `head_copy`: bytes of RAM for a copy of the output head in fewer
    bits, which one token reads first; 0 = none. `sight_gpu`: the card that what sees is to lie on, -1 = RAM.
    """

    model: str
    strategy: Strategy
    format: Format
    fits: Fits
    reason: str
    context: int
    prefill_chunk: int
    threads: int
    gpu: int
    linears: tuple[LinearPlan, ...]
    kv_devices: tuple[int, ...]
    host_layers: tuple[int, ...]
    ring: Ring
    memory: tuple[DeviceMemory, ...]
    decode: Prediction
    prefill: Prediction
    confidence: Confidence
    decode_times: Times
    few_times: Times
    prefill_times: Times
    bytes_per_token: BytesPerToken
    ideal_ms: float
    mapped: bool = False
    from_disk: int = 0
    active_bytes: int = 0
    load_peak: int = 0
    reasons: tuple[str, ...] = ()
    profile: Profile = field(default_factory=Profile)
    expert_rates: ExpertRates | None = None
    kv: KvFormat = "bf16"
    head_copy: int = 0
    sight_gpu: int = -1

    @cached_property
    def by_name(self) -> dict[str, LinearPlan]:
        """The linears' plans by their names."""
        return {linear.name: linear for linear in self.linears}
