"""What a plan is made from: the model's linears, the machine's rates, and what may be used. Records only, no torch.

Sizes are bytes, rates bytes (or operations) per second, times seconds. A linear is `rows` outputs by `columns` inputs.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

Format = Literal["bf16", "int8", "int4"]
FORMATS: tuple[Format, ...] = ("bf16", "int8", "int4")
"""From the most exact to the smallest; `bf16` means the weights as stored, whatever their type."""
Storage = Literal["bf16", "fp16", "fp32", "int8", "int4"]
"""How weights really lie in memory: `bf16` of a model stored in fp32 is fp32."""
Strategy = Literal["hetegen", "stream", "cpu", "serial"]

ITEM_BYTES: dict[str, int] = {"bf16": 2, "fp16": 2, "fp32": 4}
INT4_GROUP = 32
QUANTUM: dict[str, int] = {"bf16": 16, "int8": 16, "int4": 16}
"""Rows are divided between devices in multiples of these: the kernels' blocks of rows."""

COPY_PIECE = 2 << 20
"""Large copies to a card go in pieces of this size, so that a small one of another stream waits for one at most."""

BUCKET_LIMITS = (1, 8, 64)
BUCKET_NAMES = ("1", "2-8", "9-64", ">64")
BUCKET_TOKENS = (1, 4, 32, 512)
"""Rows of input (M) are told apart in four buckets; these stand for each in planning."""
DECODE, FEW, PREFILL = 0, 1, 3
"""The buckets of one token, of the most that still count as few, and of long prompts."""


def bucket(tokens: int) -> int:
    """Index of the bucket that `tokens` rows of input fall in: 1, 2-8, 9-64, more."""
    return bisect_left(BUCKET_LIMITS, tokens)


def row_bytes(storage: Storage, columns: int) -> int:
    """Bytes of one row of weights: int8 has one fp32 scale per row, int4 one of 16 bits per group; both are padded."""
    if storage == "int8":
        return -(-columns // 64) * 64 + 4
    if storage == "int4":
        padded = -(-columns // 128) * 128
        return padded // 2 + padded // INT4_GROUP * 2
    return columns * ITEM_BYTES[storage]


@dataclass(frozen=True)
class LinearSpec:
    """One linear of the model, or all experts of one fused linear.

    `group` is shared by linears that read the same input; `layer` is the decoder layer, -1 outside of them. With
    `experts` > 1 there are that many matrices of `rows` x `columns`, and each token uses `active` of them.
    """

    name: str
    rows: int
    columns: int
    group: int
    layer: int = -1
    experts: int = 1
    active: int = 1
    has_bias: bool = False

    @property
    def parameters(self) -> int:
        return self.experts * self.rows * self.columns

    def nbytes(self, storage: Storage) -> int:
        """Bytes of the whole weight."""
        return self.experts * self.rows * row_bytes(storage, self.columns)

    def touched(self, tokens: int) -> float:
        """Share of the weight that `tokens` rows of input read: 1, or the experts that they are likely to use."""
        if self.experts == self.active:
            return 1.0
        return float(1 - (1 - self.active / self.experts) ** tokens)


@dataclass(frozen=True)
class KvLayer:
    """The KV cache of one layer: grows with each token up to `window` (0 = the context); plus `state_bytes` always."""

    layer: int
    bytes_per_token: int
    window: int = 0
    state_bytes: int = 0

    def nbytes(self, context: int) -> int:
        return self.state_bytes + self.bytes_per_token * (min(context, self.window) if self.window else context)


@dataclass(frozen=True)
class ModelSpec:
    """What the planner knows of a model.

    `linears` in the order of the forward pass, the output head among them. `resident_bytes`: norms, biases and other
    small parameters, always on the compute device. `embedding_bytes`: input tables as stored; if `head_tied`, they are
    the head's own weights. `head` is the name of the output head among `linears` ('' if there is none).
    """

    name: str
    architecture: str
    layers: int
    hidden: int
    vocab: int
    context_limit: int
    linears: tuple[LinearSpec, ...]
    kv_layers: tuple[KvLayer, ...]
    resident_bytes: int
    embedding_bytes: int
    head: str
    head_tied: bool
    stored_dtype: Literal["bf16", "fp16", "fp32"] = "bf16"
    parameters: int = 0

    def storage(self, format: Format) -> Storage:
        return self.stored_dtype if format == "bf16" else format

    def kv_bytes(self, context: int) -> int:
        """Bytes of the whole KV cache for `context` tokens."""
        return sum(layer.nbytes(context) for layer in self.kv_layers)

    def weight_bytes(self, format: Format) -> int:
        """Bytes of all linears in this format."""
        storage = self.storage(format)
        return sum(linear.nbytes(storage) for linear in self.linears)


@dataclass(frozen=True)
class KernelRate:
    """How fast the CPU multiplies weights of one storage type: `bytes_s` of weights read at M = 1, at most `flops`
    operations per second in each bucket of M (2 x rows x columns x M operations per linear)."""

    storage: Storage
    bytes_s: float
    flops: tuple[float, float, float, float]

    def seconds(self, nbytes: float, operations: float, bucket: int) -> float:
        """Time for weights of `nbytes` with `operations` in all."""
        return max(nbytes / self.bytes_s, operations / self.flops[bucket])


@dataclass(frozen=True)
class Cpu:
    """The processor and its memory. `threads` is how many the rates were measured with; `call_s` one kernel call;
    `layer_s` what one layer costs besides its linears and attention (norms, rotary, Python)."""

    name: str
    physical_cores: int
    logical_cores: int
    isa: tuple[str, ...]
    ram_total: int
    ram_free: int
    read_bytes_s: float
    rates: tuple[KernelRate, ...]
    threads: int = 1
    call_s: float = 8e-6
    layer_s: float = 250e-6


@dataclass(frozen=True)
class Link:
    """The way between RAM and one GPU, bytes per second, alone on the machine. `staged`: pageable weights through the
    pinned ring to the GPU, which is what streaming really gets; `sync_s`: a small input brought to RAM and waited for;
    `back_s`: the result of one linear's CPU rows brought to the GPU; `piece_s`: what each streamed piece costs besides
    its bytes; `lockable`: whether memory could be pinned at all; `copiers`: threads that fill the ring fastest."""

    h2d_pinned: float
    h2d_pageable: float
    d2h_pinned: float
    d2h_pageable: float
    staged: float
    sync_s: float = 30e-6
    back_s: float = 10e-6
    piece_s: float = 50e-6
    lockable: bool = True
    copiers: int = 1


@dataclass(frozen=True)
class Gpu:
    """One graphics card.

    `rates` by storage type where measured, else `bytes_s` and `flops`. `cpu_under_copy` and `link_under_cpu`: what is
    left of each rate (0-1) while both run. `shares_cores`: it computes on the CPU's own cores (simulated without a
    rate), so their times add up. `layer_s`: one layer besides its linears and attention, computed there.
    """

    name: str
    index: int
    vram_total: int
    vram_free: int
    bytes_s: float
    flops: float
    link: Link
    rates: tuple[KernelRate, ...] = ()
    cpu_under_copy: float = 1.0
    link_under_cpu: float = 1.0
    launch_s: float = 10e-6
    layer_s: float = 250e-6
    simulated: bool = False
    shares_cores: bool = False
    kind: str = "cuda"


@dataclass(frozen=True)
class Hardware:
    """This machine. `measured` is False where the rates are guesses: from a table, or taken while others worked;
    `unusable`: why a card that is there cannot be used."""

    cpu: Cpu
    gpus: tuple[Gpu, ...] = ()
    disk_bytes_s: float = 500e6
    measured: bool = True
    unusable: tuple[str, ...] = ()


@dataclass(frozen=True)
class Profile:
    """Factors on predicted times, by engine, learned from `tokens` tokens of one model on this machine."""

    cpu: float = 1.0
    link: float = 1.0
    gpu: float = 1.0
    overhead: float = 1.0
    tokens: int = 0


@dataclass(frozen=True)
class Budget:
    """What may be used, None = decided here: `vram` bytes of each GPU, `ram` bytes, CPU threads, tokens of context."""

    vram: int | None = None
    ram: int | None = None
    threads: int | None = None
    context: int | None = None
    format: Format | Literal["auto"] = "auto"


@dataclass(frozen=True)
class Rows:
    """How one linear's rows are divided in one phase: [0:resident) in VRAM, then `streamed`, the rest on the CPU."""

    resident: int
    streamed: int
    cpu: int

    @property
    def total(self) -> int:
        return self.resident + self.streamed + self.cpu


@dataclass(frozen=True)
class LinearPlan:
    """One linear's rows by bucket of M. The resident rows are the same in all. `gpu` is an index, -1 = none."""

    name: str
    rows: int
    shares: tuple[Rows, Rows, Rows, Rows]
    gpu: int = -1

    @property
    def resident(self) -> int:
        return self.shares[DECODE].resident

    @property
    def decode(self) -> Rows:
        return self.shares[DECODE]

    @property
    def prefill(self) -> Rows:
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
        return self.buffers * self.bytes


@dataclass(frozen=True)
class DeviceMemory:
    """What a plan takes of one device, and what was free before. `margin` is left untouched for others."""

    device: str
    weights: int
    kv_cache: int
    workspace: int
    staging: int
    free_before: int
    margin: int

    @property
    def used(self) -> int:
        return self.weights + self.kv_cache + self.workspace + self.staging


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
    (a GPU's index or -1); the input table stays in RAM. `host_layers`: the numbers of those that the CPU computes by
    itself in passes of few tokens. `mapped`: weights are used straight from the files; `from_disk`
    bytes of them do not fit in RAM and are read again for every token. `profile`: the corrections that the times
    contain.
    """

    model: str
    strategy: Strategy
    format: Format
    storage: Storage
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
    prefill_times: Times
    bytes_per_token: BytesPerToken
    ideal_ms: float
    mapped: bool = False
    from_disk: int = 0
    reasons: tuple[str, ...] = ()
    profile: Profile = field(default_factory=Profile)

    @cached_property
    def by_name(self) -> dict[str, LinearPlan]:
        return {linear.name: linear for linear in self.linears}
