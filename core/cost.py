"""How long one pass takes under given shares: the law of DESIGN section 2, for three shares and priced exchanges.

Linears that read one input form a group, which is exchanged between CPU and GPU once; groups of the same make form a
class. One pass, with the link fetching ahead across linears:

    group   = max(CPU rows + exchange, resident and streamed rows on the GPU)        (added up if they share cores)
    pass    = max(all groups + attention + overhead, streamed bytes / link)          (added up if serial)

Both sides of the last line slow each other down while both run, and the link can run ahead by no more than its ring.

Each engine's time is linear in its share, so a class is a handful of coefficients and a pass costs microseconds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from core.spec import (
    BUCKET_TOKENS,
    COPY_PIECE,
    DECODE,
    FEW,
    PREFILL,
    Gpu,
    Hardware,
    KernelRate,
    LinearSpec,
    ModelSpec,
    Profile,
    Ring,
    Storage,
    Strategy,
    Times,
)

GUESSED_BYTES_SHARE = 0.5
GUESSED_FLOPS = (50e9, 100e9, 200e9, 300e9)
NEARLY_ALL = 0.9
"""Share of the experts from which on all of them are streamed, used or not."""
TYPICAL_CONTEXT = 1024
"""Tokens assumed to lie in the KV cache when rates are predicted."""
FUSED_GROUPS, FUSED_SHARE = (3, 1, 2, 1), 0.2
"""Linears of a layer that share an input (q, k, v; output; gate, up; down) where `core.fused_layers` computes it, and
what of the time between its products that leaves."""
CPU_ATTENTION_SHARE = 0.4
"""Part of the memory's rate at which attention on the CPU reads the KV cache."""


@dataclass(frozen=True)
class GroupClass:
    """Groups of one make, with the layer of each. Whole-group seconds by bucket; `exchange` = fixed, and per share of
    CPU rows."""

    members: tuple[tuple[int, ...], ...]
    layers: tuple[int, ...]
    count: int
    matrices: int
    nbytes: int
    cpu: tuple[float, ...]
    cpu_call: float
    gpu: tuple[float, ...]
    gpu_call: float
    exchange: tuple[float, ...]
    exchange_out: tuple[float, ...]
    streamable: tuple[bool, ...]


@dataclass(frozen=True)
class Residents:
    """What lies in VRAM of each class: the first `whole` groups, and the share `part` of each of the others.
    `host_layers` are computed by the CPU alone in passes of few tokens: nothing of them lies there."""

    whole: tuple[int, ...]
    part: tuple[float, ...]
    host_layers: tuple[int, ...] = ()

    def hosted(self, item: GroupClass, bucket: int) -> int:
        """How many groups of a class the CPU computes as parts of such layers."""
        return sum(layer in self.host_layers for layer in item.layers) if self.host_layers and bucket <= FEW else 0


@dataclass(frozen=True)
class Machine:
    """The rates of one placement: the CPU with or without a GPU, alone and while copies run."""

    hardware: Hardware
    gpu: Gpu | None
    profile: Profile
    threads: int

    def link_s(self, strategy: Strategy) -> float:
        """Seconds per streamed byte, nothing else running."""
        if self.gpu is None:
            return 0.0
        return self.profile.link / (self.gpu.link.h2d_pageable if strategy == "serial" else self.gpu.link.staged)

    @property
    def piece_s(self) -> float:
        """Seconds that each streamed piece costs besides its bytes."""
        return self.profile.link * self.gpu.link.piece_s if self.gpu else 0.0

    @property
    def shares_cores(self) -> bool:
        """Whether the device computes on the processor's own cores."""
        return self.gpu is not None and self.gpu.shares_cores

    @property
    def queue_s(self) -> float:
        """Seconds that a small copy to the card waits behind streamed pieces, on average."""
        return COPY_PIECE / 2 / self.gpu.link.h2d_pinned if self.gpu else 0.0

    @property
    def cpu_under_copy(self) -> float:
        return self.gpu.cpu_under_copy if self.gpu else 1.0

    @property
    def link_under_cpu(self) -> float:
        return self.gpu.link_under_cpu if self.gpu else 1.0


@dataclass(frozen=True)
class Fixed:
    """What one pass costs besides its linears, by bucket: attention (with the KV cache where it lies) and the rest."""

    attention: tuple[float, ...]
    overhead: tuple[float, ...]


def cpu_rate(hardware: Hardware, storage: Storage, threads: int) -> KernelRate:
    """The CPU's rate for this storage type with so many threads; guessed from the memory's rate if not measured."""
    cpu = hardware.cpu
    found = next((rate for rate in cpu.rates if rate.storage == storage), None)
    rate = found or KernelRate(storage, cpu.read_bytes_s * GUESSED_BYTES_SHARE, GUESSED_FLOPS)
    scale = min(1.0, threads / max(1, cpu.threads))
    # Half of the cores already draw what memory gives; operations grow with each of them.
    flops = rate.flops
    return KernelRate(
        storage,
        rate.bytes_s * min(1.0, 2 * scale),
        (flops[0] * scale, flops[1] * scale, flops[2] * scale, flops[3] * scale),
    )


def gpu_rate(gpu: Gpu, storage: Storage) -> KernelRate:
    """The GPU's rate for this storage type; from its memory rate and peak operations if not measured."""
    found = next((rate for rate in gpu.rates if rate.storage == storage), None)
    return found or KernelRate(storage, gpu.bytes_s, (gpu.flops,) * 4)


def classify(spec: ModelSpec, storage: Storage, machine: Machine) -> tuple[GroupClass, ...]:
    """The model's groups, gathered by make, with this machine's times."""
    groups: dict[int, list[int]] = {}
    for index, linear in enumerate(spec.linears):
        groups.setdefault(linear.group, []).append(index)
    classes: dict[tuple[tuple[int, int, int, int, bool], ...], list[tuple[int, ...]]] = {}
    for members in groups.values():
        signature = tuple(_make(spec, spec.linears[index]) for index in members)
        classes.setdefault(signature, []).append(tuple(members))
    return tuple(_class(spec, storage, machine, members) for members in classes.values())


def _make(spec: ModelSpec, linear: LinearSpec) -> tuple[int, int, int, int, bool]:
    return linear.rows, linear.columns, linear.experts, linear.active, linear.name == spec.head


def _class(spec: ModelSpec, storage: Storage, machine: Machine, members: list[tuple[int, ...]]) -> GroupClass:
    linears = [spec.linears[index] for index in members[0]]
    # The head is asked for the last position only, whatever the length of the input.
    tokens = tuple(1 if linears[0].name == spec.head else count for count in BUCKET_TOKENS)
    nbytes = sum(linear.nbytes(storage) for linear in linears)
    touched = tuple(sum(linear.nbytes(storage) * linear.touched(m) for linear in linears) / nbytes for m in tokens)
    operations = tuple(
        sum(2.0 * m * linear.active * linear.rows * linear.columns for linear in linears) for m in tokens
    )
    buckets = [DECODE if m == 1 else index for index, m in enumerate(tokens)]
    cpu = cpu_rate(machine.hardware, storage, machine.threads)
    profile = machine.profile
    gpu = gpu_rate(machine.gpu, storage) if machine.gpu else cpu
    launch = machine.gpu.launch_s if machine.gpu else 0.0
    call_s = machine.hardware.cpu.call_s * (between_share(spec) if machine.gpu is None else 1.0)
    into, back = _exchange(machine, linears, tokens)
    return GroupClass(
        members=tuple(members),
        layers=tuple(spec.linears[group[0]].layer for group in members),
        count=len(members),
        matrices=sum(linear.experts for linear in linears),
        nbytes=nbytes,
        cpu=tuple(
            profile.cpu * cpu.seconds(nbytes * share, count, b)
            for share, count, b in zip(touched, operations, buckets, strict=True)
        ),
        cpu_call=call_s * sum(linear.active for linear in linears),
        gpu=tuple(
            profile.gpu * gpu.seconds(nbytes * share, count, b)
            for share, count, b in zip(touched, operations, buckets, strict=True)
        ),
        gpu_call=launch * sum(linear.active for linear in linears),
        exchange=into,
        exchange_out=back,
        # Prefetching needs to know what comes next: experts can be fetched in their order where nearly all are used.
        streamable=tuple(share >= NEARLY_ALL for share in touched),
    )


def _exchange(
    machine: Machine, linears: Sequence[LinearSpec], tokens: Sequence[int]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Seconds to bring the input to the CPU (with the wait), and to bring all outputs back, by bucket."""
    if machine.gpu is None:
        return (0.0,) * len(tokens), (0.0,) * len(tokens)
    link, overhead = machine.gpu.link, machine.profile.overhead
    columns = linears[0].columns
    rows = sum(linear.rows for linear in linears)
    waits = overhead * (link.sync_s + link.back_s * sum(linear.active for linear in linears))
    into = tuple(waits + 2 * m * columns / link.d2h_pinned for m in tokens)
    return into, tuple(2 * m * rows / link.h2d_pinned for m in tokens)


def fixed(
    spec: ModelSpec, machine: Machine, kv_devices: Sequence[int], occupied: int, host_layers: Sequence[int] = ()
) -> Fixed:
    """Attention over `occupied` tokens and overhead of one pass, with `kv_devices` and `host_layers` as in a Plan."""
    sizes = [layer.nbytes(occupied) for layer in spec.kv_layers]
    on_host = sum(size for size, device in zip(sizes, kv_devices, strict=True) if device < 0)
    divided = sum(device < 0 for device in kv_devices)
    cpu = machine.hardware.cpu
    share = on_host / max(1, sum(sizes))
    attention, overhead = [], []
    for bucket, m in enumerate(BUCKET_TOKENS):
        hosted = len(host_layers) if bucket <= FEW else 0
        operations = 4.0 * m * (occupied + m) / 2 * spec.hidden * spec.layers if m > 1 else 0.0
        host = max(on_host / (cpu.read_bytes_s * CPU_ATTENTION_SHARE), share * operations / (0.5 * _cpu_flops(machine)))
        seconds = host + _gpu_attention(machine, sum(sizes) - on_host, (1 - share) * operations)
        seconds += (divided - hosted) * _visit_s(spec, machine, m)
        attention.append(seconds)
        overhead.append(machine.profile.overhead * _layers_s(spec, machine, hosted, m))
    return Fixed(tuple(attention), tuple(overhead))


def _visit_s(spec: ModelSpec, machine: Machine, tokens: int) -> float:
    """Seconds to bring as many states as a layer reads to the host, and as many back."""
    if machine.gpu is None:
        return 0.0
    link = machine.gpu.link
    return machine.profile.overhead * link.sync_s + 4.0 * tokens * spec.hidden / link.d2h_pinned


def _layers_s(spec: ModelSpec, machine: Machine, hosted: int, tokens: int) -> float:
    """Seconds of all layers besides linears and attention, `hosted` of them on the CPU alone."""
    on_cpu = machine.hardware.cpu.layer_s
    if machine.gpu is None:
        return on_cpu * between_share(spec) * spec.layers
    visit = _visit_s(spec, machine, tokens) if hosted else 0.0
    return on_cpu * FUSED_SHARE * hosted + machine.gpu.layer_s * (spec.layers - hosted) + visit


def between_share(spec: ModelSpec) -> float:
    """What is left of the time between products where a layer is computed in two calls: all of it on the CPU."""
    return FUSED_SHARE if in_two_calls(spec) else 1.0


def in_two_calls(spec: ModelSpec) -> bool:
    """Whether all layers look like those that `core.fused_layers` computes."""
    layers: dict[int, list[int]] = {}
    for linear in spec.linears:
        if linear.layer >= 0:
            layers.setdefault(linear.layer, []).append(linear.group)
    return bool(layers) and all(tuple(Counter(groups).values()) == FUSED_GROUPS for groups in layers.values())


def _gpu_attention(machine: Machine, nbytes: float, operations: float) -> float:
    gpu = machine.gpu
    return max(nbytes / gpu.bytes_s, operations / (0.5 * gpu.flops)) if gpu else 0.0


def _cpu_flops(machine: Machine) -> float:
    return max((rate.flops[PREFILL] for rate in machine.hardware.cpu.rates), default=GUESSED_FLOPS[PREFILL])


@dataclass(frozen=True)
class Case:
    """One phase of one placement, ready to be priced under any shares."""

    classes: tuple[GroupClass, ...]
    bucket: int
    machine: Machine
    fixed: Fixed
    strategy: Strategy
    ring: Ring

    def times(self, residents: Residents, streamed: Sequence[float]) -> Times:
        """Times when the share `streamed[class]` of what is not resident is streamed and the CPU has the rest."""
        work = self._groups(residents, streamed)
        link, attention = self._link(residents, streamed), self.fixed.attention[self.bucket]
        between = self.fixed.overhead[self.bucket]
        rest, overhead = attention + between, between + work.exchanged
        if self.strategy == "serial":
            alone = work.alone + rest
            return Times(work.cpu, link, work.gpu, attention, overhead, 0.0, alone + link, alone)
        critical, link_until, slower = overlapped(
            work.alone + rest - work.dead, work.slowed + rest - work.dead, link, self._link_share(work)
        )
        total = work.dead + max(critical, link_until)
        return Times(work.cpu * slower, link_until, work.gpu, attention, overhead, 0.0, total, work.dead + critical)

    def _link(self, residents: Residents, streamed: Sequence[float]) -> float:
        """Seconds of the link, nothing else running."""
        nbytes, pieces, buffer = 0.0, 0.0, max(1, self.ring.bytes)
        for item, whole, part, share in zip(self.classes, residents.whole, residents.part, streamed, strict=True):
            rest = item.count - whole - residents.hosted(item, self.bucket)
            if (away := (1 - part) * share) and rest:
                sent = away * item.nbytes
                nbytes += rest * sent
                pieces += rest * max(item.matrices, sent / buffer)
        return nbytes * self.machine.link_s(self.strategy) + pieces * self.machine.piece_s

    def _link_share(self, work: Work) -> float:
        """What the link keeps of its rate while the processor works."""
        meets = work.cpu > 0 or self.machine.shares_cores
        return self.machine.link_under_cpu if meets else 1.0

    def _groups(self, residents: Residents, streamed: Sequence[float]) -> Work:
        """All groups, one after the other."""
        machine, bucket, adds = self.machine, self.bucket, self.machine.shares_cores
        slower, waiting, lead = 1 / machine.cpu_under_copy, machine.queue_s, self._lead_s()
        cpu = gpu = exchanged = alone = slowed = dead = 0.0
        for item, whole, part, share in zip(self.classes, residents.whole, residents.part, streamed, strict=True):
            hosted = residents.hosted(item, bucket)
            rest, on_cpu = item.count - whole - hosted, (1 - part) * (1 - share)
            gpu_whole = item.gpu[bucket] + item.gpu_call
            gpu_s = (1 - on_cpu) * item.gpu[bucket] + item.gpu_call if on_cpu < 1 else 0.0
            cpu_s = on_cpu * item.cpu[bucket] + item.cpu_call if on_cpu > 0 else 0.0
            cross = item.exchange[bucket] + on_cpu * item.exchange_out[bucket] if on_cpu > 0 else 0.0
            hosted_s = hosted * (item.cpu[bucket] + FUSED_SHARE * item.cpu_call)
            cpu += rest * cpu_s + hosted_s
            gpu += rest * gpu_s + whole * gpu_whole
            exchanged += rest * cross
            alone += rest * ((cpu_s + gpu_s if adds else max(cpu_s, gpu_s)) + cross) + whole * gpu_whole + hosted_s
            if adds:
                slowed += (rest * (cpu_s + gpu_s) + whole * gpu_whole) * slower + rest * cross
            else:
                slowed += rest * (max(cpu_s * slower, gpu_s) + cross) + whole * gpu_whole
            slowed += hosted_s * slower + (rest * waiting if on_cpu > 0 else 0.0)
            # The first groups of a class are the whole ones: meanwhile the link fills the ring and then waits.
            dead += max(0.0, whole * gpu_whole - lead)
        return Work(cpu, gpu, exchanged, alone, slowed, dead if lead else 0.0)

    def _lead_s(self) -> float:
        """Seconds of the link that the ring holds."""
        return self.ring.total * self.machine.link_s(self.strategy)


@dataclass(frozen=True)
class Work:
    """Seconds of all groups: of the CPU, of the GPU and of exchanges between them; of all that follows one after the
    other, alone and while the link runs; and of stretches that are longer than the link can run ahead."""

    cpu: float
    gpu: float
    exchanged: float
    alone: float
    slowed: float
    dead: float


def overlapped(alone: float, slowed: float, link: float, link_share: float) -> tuple[float, float, float]:
    """When the work and the link are done that start together, and how much longer the work took than by itself.

    They slow each other down while both run: the work takes `slowed` instead of `alone` seconds, the link keeps
    `link_share` of its rate. The one that is left over goes on at its own rate.
    """
    together = min(slowed, link / link_share)
    done = together / slowed if slowed else 1.0
    work_until = together + (1 - done) * alone
    link_until = together + link - together * link_share
    return work_until, link_until, work_until / alone if alone else 1.0


def with_disk(times: Times, seconds: float) -> Times:
    """The same pass when weights must be read from the disk again as well."""
    return replace(times, disk=seconds, total=times.total + seconds)
