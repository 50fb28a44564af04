"""A plan, the budget that it respects, and its predictions: records only.

Sizes are in bytes, times in seconds, speeds in tokens per second.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from core.spec.formats import DECODE, PREFILL, Format, FormatWish, KvFormat, Strategy, bucket
from core.spec.hardware import KernelRate

COMFORTABLE_TOK_S = 6.0
"""Reading speed: below it, a model counts as slow."""
MIN_CONTEXT, MAX_CONTEXT = 256, 10_000_000
"""The range of contexts that may be requested, in tokens."""


@dataclass(frozen=True)
class Profile:
    """Factors on predicted times, by engine, learned from `tokens` tokens of one model on this machine. `hottest`: the
    fraction (0-1) of all expert uses that goes to the most used eighth of experts, to the two most used eighths, and so
    on; empty if nothing was counted."""

    cpu: float = 1.0
    link: float = 1.0
    gpu: float = 1.0
    overhead: float = 1.0
    tokens: int = 0
    hottest: tuple[float, ...] = ()

    def covered(self, part: float) -> float:
        """Return the fraction of all uses covered by the most used `part` of a layer's experts; `part` itself if
        unknown."""
        if not self.hottest:
            return part
        points = (0.0, *self.hottest)
        at = part * len(self.hottest)
        low = min(int(at), len(self.hottest) - 1)
        return points[low] + (at - low) * (points[low + 1] - points[low])


@dataclass(frozen=True)
class Budget:
    """Resource limits, None = decided by the planner: `vram` bytes of each GPU, `ram` bytes, CPU threads, context
    tokens. `kv`: the KV cache's format; `whole_head`: do not use a coarse copy of the output head; `sight_on_card`:
    whether the vision part may be on a GPU."""

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
    """The division of a linear's rows in one bucket: [0, resident) in VRAM, then `streamed`, the rest on the CPU."""

    resident: int
    streamed: int
    cpu: int

    @property
    def total(self) -> int:
        """All rows."""
        return self.resident + self.streamed + self.cpu


@dataclass(frozen=True)
class LinearPlan:
    """A linear's division by bucket of M; the resident rows are the same in all. `gpu` is an index, -1 = none. Linears
    of one `group` read the same input and are computed together, with one exchange; -1 = none. A linear that comes
    `after` a group, with no other input, is divided by columns as the group is by rows: `rows` and `shares` then count
    columns, and no intermediate results are exchanged between devices. If the group's results meet in attention, it is
    divided by `heads`: so many KV heads, with their queries, are on the device, along with their part of the KV cache;
    0 = no attention, or not divided. The CPU computes the others while few tokens are processed."""

    name: str
    rows: int
    shares: tuple[Rows, Rows, Rows, Rows]
    gpu: int = -1
    group: int = -1
    after: int = -1
    heads: int = 0

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
        """The division for a single token."""
        return self.shares[DECODE]

    @property
    def prefill(self) -> Rows:
        """The division while a prompt is read."""
        return self.shares[PREFILL]

    def at(self, tokens: int) -> Rows:
        """Return the division for `tokens` input rows."""
        return self.shares[bucket(tokens)]


@dataclass(frozen=True)
class Ring:
    """Staging buffers for streamed rows, the same number pinned in RAM and in VRAM; larger linears are copied in
    pieces. `copiers`: threads that fill them."""

    buffers: int = 0
    bytes: int = 0
    copiers: int = 1

    @property
    def total(self) -> int:
        """Bytes of all buffers."""
        return self.buffers * self.bytes


@dataclass(frozen=True)
class ExpertRates:
    """The costs of computing an expert, in seconds and rates: `cpu` and `card` multiply; `copy_s`: one byte copied to
    the GPU while the CPU computes; `piece_s`: overhead per copy; `exchange_s`: overhead if the CPU computes any of a
    layer's experts; `call_s`: one product on the GPU; `at_once_s`: those of all its resident experts with few tokens,
    None if each is called. `slower`: factor of the CPU's time while copies run. `apart`: whether CPU and GPU compute
    concurrently."""

    cpu: KernelRate
    card: KernelRate
    copy_s: float
    piece_s: float = 0.0
    exchange_s: float = 0.0
    call_s: float = 0.0
    at_once_s: float | None = None
    slower: float = 1.0
    apart: bool = True


@dataclass(frozen=True)
class DeviceMemory:
    """A plan's use of one device's memory, and what was free before. `margin` is left for other programs; `parked` is
    for the KV caches of other conversations, `sight` for the vision part, once there is a picture."""

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
        """Bytes of all kinds that the model takes there."""
        return self.weights + self.kv_cache + self.workspace + self.staging + self.parked + self.sight


@dataclass(frozen=True)
class Prediction:
    """Tokens per second."""

    low: float
    likely: float
    high: float


@dataclass(frozen=True)
class Times:
    """The time of one pass in seconds: each engine's work, the overhead, and the total with overlap.

    `critical`: everything that runs sequentially while the link works in parallel.
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
    """Where everything is placed and who computes it: decided by `planner.place`, carried out by `core.model`.

    `gpu`: index of the compute device, -1 = CPU. `kv_devices`: one entry per KV cache layer (GPU index or -1); `kv`:
    its format. The input table stays in RAM. `host_layers`: layers that the CPU computes alone in passes of few tokens.
    `mapped`: weights are used directly from the files; `from_disk` bytes of them do not fit in RAM and are read again
    for every token. `active_bytes`: weights that one token reads. `load_peak`: peak of the process's own RAM while
    loading. `check_s`: seconds of passes that verify drafts. `profile`: the corrections contained in the times.
    `expert_rates`: the costs of experts beside a GPU. `head_copy`: bytes of RAM for the coarse copy of the output head;
    0 = none. `sight_gpu`: the GPU for the vision part, -1 = RAM. `captured`: layers whose work may be replayed there,
    except that of `gaps`, modules in them by path; `graph_bytes`: VRAM, as part of the workspace, for what is replayed.
    `in_place`: the GPU reads resident rows in RAM, which it shares; its `memory` counts what is copied only.
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
    check_s: tuple[float, ...]
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
    captured: tuple[int, ...] = ()
    gaps: tuple[str, ...] = ()
    graph_bytes: int = 0
    in_place: bool = False

    @property
    def rank(self) -> int:
        """How well the model fits: 0 = not at all, 1 = slowly, 2 = well."""
        return ("no", "slow", "yes").index(self.fits)

    @property
    def divides_heads(self) -> bool:
        """Whether attention is divided by heads between the device and the CPU."""
        return any(linear.heads for linear in self.linears)

    @cached_property
    def by_name(self) -> dict[str, LinearPlan]:
        """The linears' plans by name."""
        return {linear.name: linear for linear in self.linears}
